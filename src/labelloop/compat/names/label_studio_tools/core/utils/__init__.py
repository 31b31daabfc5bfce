"""labelloop's stand-in."""

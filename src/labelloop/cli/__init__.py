"""Floor 9: doors for people."""

"""labelloop's stand-in: the three functions that models import from here."""

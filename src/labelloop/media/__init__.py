"""Floor 1: a reference becomes bytes, then an upright picture."""

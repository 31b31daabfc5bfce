"""labelloop: the learning loop for Label Studio."""

__version__ = "0.1.0"

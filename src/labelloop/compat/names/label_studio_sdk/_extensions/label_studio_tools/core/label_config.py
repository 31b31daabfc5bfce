"""labelloop's stand-in."""

from label_studio_ml.label_interface import parse_config

__all__ = ["parse_config"]

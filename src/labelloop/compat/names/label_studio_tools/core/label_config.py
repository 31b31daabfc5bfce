"""labelloop's stand-in."""

from labelloop_label_config import parse_config

__all__ = ["parse_config"]

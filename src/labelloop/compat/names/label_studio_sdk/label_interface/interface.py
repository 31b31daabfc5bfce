"""labelloop's stand-in."""

from labelloop_label_config import LabelInterface

__all__ = ["LabelInterface"]

"""labelloop's stand-in."""

from label_studio_ml.label_interface import LabelInterface

__all__ = ["LabelInterface"]

"""labelloop's stand-in: a label config as objects."""

from labelloop_label_config import ControlTag, Label, LabelInterface, ObjectTag, parse_config

__all__ = ["ControlTag", "Label", "LabelInterface", "ObjectTag", "parse_config"]

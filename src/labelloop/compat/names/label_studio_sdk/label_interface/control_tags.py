"""labelloop's stand-in: `ControlTag`, and `RectangleLabelsTag`, `ChoicesTag` and so on, to check against."""

from typing import Any

from labelloop_label_config import ControlTag, ObjectTag, tag_class

__all__ = ["ControlTag", "ObjectTag"]


def __getattr__(name: str) -> Any:
    return tag_class(name, ControlTag, __name__)

"""labelloop's stand-in: `ObjectTag`, and `ImageTag`, `TextTag` and so on, to check against."""

from typing import Any

from labelloop_label_config import ObjectTag, tag_class

__all__ = ["ObjectTag"]


def __getattr__(name: str) -> Any:
    return tag_class(name, ObjectTag, __name__)

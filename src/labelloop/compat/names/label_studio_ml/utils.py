"""Helpers that models import from here."""

from __future__ import annotations

import difflib
import os
import struct
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from labelloop_label_config import parse_config

from label_studio_ml.state import keeper

DATA_UNDEFINED_NAME = "$undefined$"
"""The key of a task that was imported before the project had a label config."""

__all__ = [
    "DATA_UNDEFINED_NAME",
    "InMemoryLRUDictCache",
    "get_annotated_dataset",
    "get_choice",
    "get_env",
    "get_first_tag_keys",
    "get_image_local_path",
    "get_image_size",
    "get_local_path",
    "get_single_tag_keys",
    "is_preload_needed",
    "is_skipped",
    "is_valid_url",
    "match_labels",
    "parse_config",
]


def get_single_tag_keys(
    parsed_label_config: dict[str, dict[str, Any]], control_type: str, object_type: str
) -> tuple[str, str, str, list[str]]:
    """Name of the only control, what it is about, that object's key in the task, and the labels. Raises AssertionError,
    which models of that time expect, when the config is not one control of this type on one object of that."""
    if len(parsed_label_config) != 1:
        raise AssertionError(f"the label config has {len(parsed_label_config)} controls, and this model fills one")
    name, control = next(iter(parsed_label_config.items()))
    shown = control["inputs"]
    if control["type"] != control_type:
        raise AssertionError(f"{name!r} is a <{control['type']}>, and this model fills <{control_type}>")
    if len(control["to_name"]) != 1 or len(shown) != 1 or shown[0]["type"] != object_type:
        raise AssertionError(f"{name!r} is not about one <{object_type}>")
    return name, control["to_name"][0], shown[0]["value"], control["labels"]


def get_first_tag_keys(
    parsed_label_config: dict[str, dict[str, Any]], control_type: str, object_type: str
) -> tuple[str | None, dict[str, Any] | None]:
    """Name and description of the first control of this type that is about an object of that; None twice where there
    is none."""
    for name, control in parsed_label_config.items():
        if control["type"] == control_type and any(shown["type"] == object_type for shown in control["inputs"]):
            return name, control
    return None, None


def is_skipped(task: dict[str, Any]) -> bool:
    """Whether the only annotation of a task says that it was passed on."""
    annotations = task["annotations"]
    if len(annotations) != 1:
        return False
    return bool(annotations[0].get("was_cancelled") or annotations[0].get("skipped"))


def get_choice(task: dict[str, Any]) -> str:
    """The first choice of the first annotation."""
    choice: str = task["annotations"][0]["result"][0]["value"]["choices"][0]
    return choice


def get_local_path(url: str, *_: Any, task_id: Any = None, **__: Any) -> str:
    """A file with what `url` refers to; see LabelStudioMLBase.get_local_path."""
    return str(keeper().local_path(url, "", task_id))


def get_image_local_path(url: str, *_: Any, **__: Any) -> str:
    return get_local_path(url)


def is_valid_url(text: str) -> bool:
    """Whether a text is an address: a scheme and a host."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return False
    return bool(parts.scheme and parts.netloc)


def is_preload_needed(url: str) -> bool:
    """Whether a text of a task is a reference to a file: an upload, local storage, the cloud, an address, a path."""
    references = ("/data/", "/upload", "upload/", "s3:", "gs:", "azure-blob:", "azure_blob:", "redis:", "data:")
    return url.startswith(references) or is_valid_url(url) or (os.path.isabs(url) and os.path.exists(url))


def get_env(name: str, default: Any = None, is_bool: bool = False) -> Any:
    """A variable under any of the names that Label Studio reads."""
    for prefix in ("LABEL_STUDIO_", "HEARTEX_", ""):
        value = os.environ.get(prefix + name)
        if value is not None:
            return value.lower() in ("1", "true", "yes", "on") if is_bool else value
    return default


def match_labels(text: str, labels: list[str]) -> list[str]:
    """For each line of `text`, which is what a language model answered, the label that is spelt most like it."""

    def nearest(line: str) -> str:
        return max(labels, key=lambda label: difflib.SequenceMatcher(None, line, label).ratio())

    return [nearest(line) for line in text.splitlines()]


def get_annotated_dataset(project_id: Any, hostname: Any = None, api_key: Any = None) -> Any:
    """The annotated tasks of a project, as labelloop reads them from Label Studio."""
    return keeper().annotated(str(project_id))


class InMemoryLRUDictCache:
    """The `capacity` newest of what was put."""

    def __init__(self, capacity: int = 1) -> None:
        self.capacity = capacity
        self.cache: OrderedDict[Any, Any] = OrderedDict()

    def put(self, key: Any, value: Any) -> None:
        self.cache[key] = value
        self.cache.move_to_end(key)
        while len(self.cache) > self.capacity:
            self.cache.popitem(last=False)

    def get(self, key: Any) -> Any:
        if key in self.cache:
            self.cache.move_to_end(key)
        return self.cache.get(key)

    def __contains__(self, key: object) -> bool:
        return key in self.cache

    def __len__(self) -> int:
        return len(self.cache)


# --- the size of a picture -----------------------------------------------------------------------------


def get_image_size(path: str) -> tuple[int, int]:
    """Width and height as the picture is shown, with the orientation that its EXIF says. Raises ValueError for what is
    no picture that is known here."""
    with open(path, "rb") as file:
        data = file.read()
    for magic, measure in _FORMATS:
        if data.startswith(magic):
            try:
                return measure(data)
            except (struct.error, IndexError) as error:
                raise ValueError(f"{path} is damaged") from error
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise ValueError(f"{path} is neither JPEG, PNG, GIF nor BMP; others need Pillow") from None
    with Image.open(path) as picture:
        width, height = ImageOps.exif_transpose(picture).size
        return width, height


def _png(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from(">II", data, 16)
    return width, height


def _gif(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<HH", data, 6)
    return width, height


def _bmp(data: bytes) -> tuple[int, int]:
    width, height = struct.unpack_from("<ii", data, 18)
    return width, abs(height)


def _jpeg(data: bytes) -> tuple[int, int]:
    """Walks the segments: EXIF says the orientation, the start of frame the size as stored."""
    at, turned = 2, False
    while True:
        marker = data[at + 1]
        if data[at] != 0xFF:
            raise IndexError
        if marker == 0xFF:
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            return (height, width) if turned else (width, height)
        if marker == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            turned = _orientation(data[at + 10 : at + 2 + length]) >= 5
        at += 2 + length


def _orientation(tiff: bytes) -> int:
    """1 to 8, from 5 on width and height are exchanged; 1 where it is not said."""
    order = "<" if tiff[:2] == b"II" else ">"
    try:
        (at,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, at)
        for index in range(count):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", tiff, at + 2 + 12 * index)
            if (tag, kind) == (0x0112, 3):
                return int(value)
    except struct.error:
        return 1  # a damaged note about the picture; the picture itself may be fine
    return 1


_FORMATS: tuple[tuple[bytes, Callable[[bytes], tuple[int, int]]], ...] = (
    (b"\xff\xd8\xff", _jpeg),
    (b"\x89PNG\r\n\x1a\n", _png),
    (b"GIF8", _gif),
    (b"BM", _bmp),
)

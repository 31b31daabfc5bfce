"""Class names: the two COCO lists, and reading names from the files people have."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from labelloop.core.errors import ModelError

BACKGROUND = "__background__"
MISSING = "N/A"
"""Stands for an index that no class uses; no region ever carries it."""

COCO = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat", "traffic light",
    "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog", "horse", "sheep", "cow",
    "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella", "handbag", "tie", "suitcase", "frisbee",
    "skis", "snowboard", "sports ball", "kite", "baseball bat", "baseball glove", "skateboard", "surfboard",
    "tennis racket", "bottle", "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple",
    "sandwich", "orange", "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch",
    "potted plant", "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors", "teddy bear",
    "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes in the order of YOLO, MMDetection, RT-DETR and most others."""


def named(labels: Iterable[str]) -> tuple[str, ...]:
    """The names that a region can carry: without the background and without what stands for an unused index."""
    return tuple(label for label in labels if label not in (BACKGROUND, MISSING))


_UNUSED_IDS = (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)


def _by_category_id() -> tuple[str, ...]:
    names = iter(COCO)
    return (BACKGROUND, *(MISSING if number in _UNUSED_IDS else next(names) for number in range(1, 91)))


COCO91 = _by_category_id()
"""The same classes at their COCO category ids 1..90, index 0 the background: torchvision, RF-DETR."""

BUILT_IN = {"coco": COCO, "coco91": COCO91}


def read_labels(source: str | Path) -> tuple[str, ...]:
    """Class names in the order of the class index.

    `source` is "coco", "coco91", or a file: text with one name a line; JSON or YAML with a list of names or a
    mapping index -> name, at the top or under `names` (the data.yaml of YOLO). Raises ModelError.
    """
    if str(source).lower() in BUILT_IN:
        return BUILT_IN[str(source).lower()]
    path = Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig")
        suffix = path.suffix.lower()
        if suffix == ".json":
            names = as_names(json.loads(text))
        elif suffix in (".yaml", ".yml"):
            names = as_names(yaml.safe_load(text))
        else:
            names = as_names([line.strip() for line in text.splitlines() if line.strip()])
    except FileNotFoundError as error:
        raise ModelError(
            f"There is no label list and no file called {str(source)!r}.", hint=f"Built in: {', '.join(BUILT_IN)}."
        ) from error
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ModelError(
            f"The class names in {path} cannot be read: {error}", hint="Write one name per line, or a JSON list."
        ) from error
    return names


def as_names(value: Any) -> tuple[str, ...]:
    """A list of names, a mapping index -> name, or either under the key `names`. Raises ValueError."""
    if isinstance(value, dict) and "names" in value:
        value = value["names"]
    if isinstance(value, dict):
        by_index = {int(index): name for index, name in value.items()}
        if not by_index or min(by_index) < 0 or max(by_index) > 10 * len(by_index) + 100:
            raise ValueError("the indices are not those of class names")
        value = [by_index.get(index, MISSING) for index in range(max(by_index) + 1)]
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError("there is no list of names in it")
    if any(isinstance(name, (dict, list)) or name is None for name in value):
        raise ValueError("a name is not a text")
    return tuple(str(name) for name in value)


def placeholders(count: int) -> tuple[str, ...]:
    """Names for a file that carries none."""
    return tuple(f"class_{index}" for index in range(count))


def are_placeholders(names: Iterable[str]) -> bool:
    """Whether all of these are names that nobody gave."""
    return all(re.fullmatch(r"class_\d+", name) for name in names)


NAMELESS = "The file carries no class names: labelloop models add FILE.onnx --name NAME --labels names.txt (or coco)"
"""The next step where names that nobody gave fit no label."""

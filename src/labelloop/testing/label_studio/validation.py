"""Which predictions Label Studio's bulk import takes: its rules as observed on 1.23.2 (PROTOCOL 5), written anew.

Independent of `labelstudio/` on purpose: a fake that used our own reading of the rules would agree with our mistakes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_CHILD_TAGS = {"Label", "Choice"}


@dataclass(frozen=True)
class Control:
    """A tag with `toName`; `labels` are the values of its `<Label>` or `<Choice>` children."""

    name: str
    tag: str
    to_names: tuple[str, ...]
    labels: tuple[str, ...]

    @property
    def type(self) -> str:
        return self.tag.lower()


def controls_in(label_config: str) -> dict[str, Control]:
    """By name. Raises xml.etree.ElementTree.ParseError."""
    found = {}
    for node in ET.fromstring(label_config).iter():  # noqa: S314 - a test's own label config
        if "toName" in node.attrib and "name" in node.attrib:
            labels = tuple(
                child.get("value") or child.get("alias") or "" for child in node.iter() if child.tag in _CHILD_TAGS
            )
            name = node.attrib["name"]
            found[name] = Control(name, node.tag, tuple(node.attrib["toName"].split(",")), labels)
    return found


def objects_in(label_config: str) -> dict[str, tuple[str, str]]:
    """Name -> (tag, value) of the tags that show data."""
    nodes = ET.fromstring(label_config).iter()  # noqa: S314
    return {
        node.attrib["name"]: (node.tag, node.attrib["value"])
        for node in nodes
        if "name" in node.attrib and "toName" not in node.attrib and "value" in node.attrib
    }


def is_valid(prediction: Any, label_config: str) -> bool:
    """Whether the bulk import stores this item instead of dropping it."""
    if not isinstance(prediction, dict) or not isinstance(prediction.get("result"), list):
        return False
    if not _score_is_valid(prediction.get("score")):
        return False
    controls, objects = controls_in(label_config), objects_in(label_config)
    regions = [region for region in prediction["result"] if not _is_relation(region)]
    return all(_region_is_valid(region, regions, controls, objects) for region in regions)


def _is_relation(region: Any) -> bool:
    return isinstance(region, dict) and region.get("type") == "relation"


def _score_is_valid(score: Any) -> bool:
    if score is None:
        return True
    return isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1


def _region_is_valid(
    region: Any, regions: list[Any], controls: dict[str, Control], objects: dict[str, tuple[str, str]]
) -> bool:
    if not isinstance(region, dict) or not {"from_name", "to_name", "type", "value"} <= region.keys():
        return False
    control = controls.get(region["from_name"])
    if control is None or region["to_name"] not in objects or region["to_name"] not in control.to_names:
        return False
    value = region["value"]
    if str(region["type"]).lower() != control.type or not isinstance(value, dict):
        return False
    if control.type == "labels" and not _has_geometry(region, regions):
        return False
    check = _CHECKS.get(control.type)
    return _labels_are_known(value, control) and (check is None or check(value))


def _has_geometry(region: dict[str, Any], regions: list[Any]) -> bool:
    """A `labels` region names the class of a shape that another region with its id draws; a text span is its own."""
    if {"start", "end"} <= region["value"].keys():
        return True
    same = [other for other in regions if isinstance(other, dict) and other.get("id") == region.get("id")]
    return any(other.get("type") in ("rectangle", "polygon", "ellipse", "brush") for other in same)


def _labels_are_known(value: dict[str, Any], control: Control) -> bool:
    if control.type != "choices" and not control.type.endswith("labels"):
        return True
    labels = value.get(control.type)
    return isinstance(labels, list) and all(label in control.labels for label in labels)


def _at_most(value: dict[str, Any], limit: float, *keys: str) -> bool:
    # `not >` would let NaN pass; Label Studio refuses NaN.
    return all(isinstance(value.get(key), (int, float)) and value[key] <= limit for key in keys)


def _rectangle(value: dict[str, Any]) -> bool:
    return _at_most(value, 100, "x", "y", "width", "height") and _at_most({"rotation": 0} | value, 360, "rotation")


def _ellipse(value: dict[str, Any]) -> bool:
    return _at_most(value, 100, "x", "y", "radiusX", "radiusY")


def _point(value: dict[str, Any]) -> bool:
    return _at_most(value, 100, "x", "y")


def _polygon(value: dict[str, Any]) -> bool:
    points = value.get("points")
    return isinstance(points, list) and all(
        isinstance(point, list) and len(point) == 2 and _at_most({"x": point[0], "y": point[1]}, 100, "x", "y")
        for point in points
    )


def _brush(value: dict[str, Any]) -> bool:
    return value.get("format") == "rle" and isinstance(value.get("rle"), list)


def _text(value: dict[str, Any]) -> bool:
    text = value.get("text")
    return isinstance(text, list) and all(isinstance(line, str) for line in text)


def _timeline(value: dict[str, Any]) -> bool:
    ranges = value.get("ranges")
    return isinstance(ranges, list) and bool(ranges) and all(isinstance(one, dict) and _is_range(one) for one in ranges)


def _is_range(one: dict[str, Any]) -> bool:
    return all(isinstance(one.get(end), int | float) for end in ("start", "end"))


def _video(value: dict[str, Any]) -> bool:
    keys = {"frame", "enabled", "x", "y", "width", "height", "time"}
    sequence = value.get("sequence")
    if not {"framesCount", "duration"} <= value.keys() or not isinstance(sequence, list):
        return False
    return all(isinstance(frame, dict) and keys <= frame.keys() for frame in sequence)


_CHECKS: dict[str, Callable[[dict[str, Any]], bool]] = {
    "rectangle": _rectangle,
    "rectanglelabels": _rectangle,
    "ellipse": _ellipse,
    "ellipselabels": _ellipse,
    "keypoint": _point,
    "keypointlabels": _point,
    "polygon": _polygon,
    "polygonlabels": _polygon,
    "brush": _brush,
    "brushlabels": _brush,
    "textarea": _text,
    "timelinelabels": _timeline,
    "videorectangle": _video,
}

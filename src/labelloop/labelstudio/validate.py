"""The last look at a result before it is sent: does Label Studio take it? The rules are PROTOCOL 5.

Bulk import drops what breaks them without a word, newer installations refuse the whole batch, and others store it and
show nonsense. Nothing here knows how results are made, so that it also holds for those of other people's code. Where
the rules and good sense differ we are stricter: nothing negative, nothing without area.
"""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from labelloop.labelstudio.config import Control, LabelConfig

GEOMETRY = frozenset({"rectangle", "polygon", "ellipse", "keypoint", "brush", "bitmask", "vector"})
"""Types that draw a shape whose class a `labels` result with the same id names."""

SMALLEST_AREA = 1e-9
"""Of an outline, in squared percent: a tenth of the smallest box that our four decimals can write, and more than what
rounding leaves between points on one line."""

_NUMBER_LIMIT = 1e308


def sendable(result: list[Any], config: LabelConfig) -> tuple[list[dict[str, Any]], list[str]]:
    """What of a `result` Label Studio takes, in order, and what is wrong with the rest.

    Results that share an id are one region (shape, labels, text), which stands or falls as a whole.
    """
    problems: list[str] = []
    kept: list[dict[str, Any]] = []
    broken: set[str | None] = set()  # ids of what was left out; None is nobody's
    joined = False
    for item in result:
        problem = problem_with(item, config)
        if problem is None:
            kept.append(item)
            joined = joined or item["type"] in ("labels", "relation")
        else:
            problems.append(problem)
            broken.add(_id_of(item))
    kept = _without(kept, broken)
    if joined:
        kept = _with_both_ends(_without(_with_shapes(kept, problems, broken), broken), problems)
    return kept, problems


def _without(items: list[dict[str, Any]], broken: set[str | None]) -> list[dict[str, Any]]:
    """`items` without what belongs to a broken region."""
    broken.discard(None)
    return [item for item in items if item.get("id") not in broken] if broken else items


def problem_with(item: Any, config: LabelConfig) -> str | None:
    """What is wrong with one item of a `result` by itself, None when nothing is. Raises nothing.

    Not seen here: a `labels` item needs a shape with its id, a relation needs both its ends (`sendable` looks).
    """
    if type(item) is not dict:
        return "it is no object"
    if item.get("type") == "relation":
        return _relation(item)
    try:
        control = config.fillable.get((item["from_name"], item["to_name"], item["type"]))
    except (KeyError, TypeError):  # not there, or no text
        control = None
    if control is None:
        return _misplaced(item, config)
    value, name = item.get("value"), item.get("id")
    if type(value) is not dict:
        return f"its value is {_short(value)}"
    if name is not None and type(name) is not str:
        return f"its id is {_short(name)}"
    if control.labels_key and (problem := _unknown(value.get(control.labels_key), control)) is not None:
        return problem
    if not _is_number_or_none(item.get("score")):
        return f"its score is {_short(item['score'])}"
    return None if _is_fine(control.type, value) else f"its {control.type} is {_short(value)}"


def _misplaced(item: dict[str, Any], config: LabelConfig) -> str:
    name, shown, kind = item.get("from_name"), item.get("to_name"), item.get("type")
    control = config.controls_by_name.get(name) if isinstance(name, str) else None
    if control is None:
        return f"no control is called {_short(name)}"
    if control.type != kind:
        return f"{_short(name)} is a <{control.tag}> and not of the type {_short(kind)}"
    return f"{_short(name)} is not about {_short(shown)}"


def _is_number_or_none(score: Any) -> bool:
    try:
        return score is None or -_NUMBER_LIMIT < score < _NUMBER_LIMIT
    except TypeError:
        return False


def _with_shapes(items: list[dict[str, Any]], problems: list[str], broken: set[str | None]) -> list[dict[str, Any]]:
    """`items` without labels that belong to no shape; what else they say of their region falls with them."""
    shapes = {item.get("id"): item["type"] for item in items if item["type"] in GEOMETRY}
    kept = []
    for item in items:
        if item["type"] != "labels" or _is_span(item["value"]) or _has_shape(item, shapes):
            kept.append(item)
        else:
            problems.append("its labels belong to no shape")
            broken.add(item.get("id"))
    return kept


def _with_both_ends(items: list[dict[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    """`items` without relations to what is not among them."""
    ids = {item.get("id") for item in items if item["type"] != "relation"}
    kept = [item for item in items if item["type"] != "relation" or {item["from_id"], item["to_id"]} <= ids]
    problems += ["its relation leads nowhere"] * (len(items) - len(kept))
    return kept


def _has_shape(item: dict[str, Any], shapes: Mapping[str | None, str]) -> bool:
    """Whether a shape has this id; the `labels` item must repeat its geometry."""
    shape = shapes.get(item["id"]) if item.get("id") is not None else None
    return shape is not None and _is_fine(shape, item["value"])


def _is_span(value: dict[str, Any]) -> bool:
    return "start" in value and "end" in value


def _id_of(item: Any) -> str | None:
    found = item.get("id") if type(item) is dict else None
    return found if type(found) is str else None


def _unknown(labels: Any, control: Control) -> str | None:
    """What is wrong with a list of labels. Dynamic ones are not known here; an empty list passes."""
    if type(labels) is not list:
        return f"its {control.type} is {_short(labels)}, not a list"
    known = control.values
    for label in labels:
        if type(label) is not str or (label not in known and not control.dynamic):
            return f"{_short(label)} is no label of {control.name!r}"
    return None


def _relation(item: dict[str, Any]) -> str | None:
    ends = isinstance(item.get("from_id"), str) and isinstance(item.get("to_id"), str)
    named = item.get("id") is None or isinstance(item.get("id"), str)
    fine = ends and named and item.get("direction") in ("left", "right", "bi")
    return None if fine else "its relation has no ends or no direction"


# --- values: each says whether the geometry part is fine, or raises what a missing or wrong part raises ---------------
# A chain of comparisons is false for NaN and infinity, so that no number needs a look of its own.


def _is_fine(kind: str, value: dict[str, Any]) -> bool:
    check = _CHECKS.get(kind)
    try:
        return check is None or check(value)
    except (KeyError, TypeError, ValueError, OverflowError):  # not there, not a number, not a list, not a float
        return False


def _rectangle(value: dict[str, Any]) -> bool:
    fine: bool = (
        0 <= value["x"] <= 100
        and 0 <= value["y"] <= 100
        and 0 < value["width"] <= 100
        and 0 < value["height"] <= 100
        and 0 <= value.get("rotation", 0) <= 360
    )
    return fine


def _ellipse(value: dict[str, Any]) -> bool:
    radii = 0 < value["radiusX"] <= 50 and 0 < value["radiusY"] <= 50
    return radii and _keypoint(value) and 0 <= value.get("rotation", 0) <= 360


def _keypoint(value: dict[str, Any]) -> bool:
    fine: bool = 0 <= value["x"] <= 100 and 0 <= value["y"] <= 100 and 0 <= value.get("width", 0) <= 100
    return fine


def _polygon(value: dict[str, Any]) -> bool:
    points = value["points"]
    area = 0.0
    x0, y0 = points[-1] if points else (0, 0)
    for x, y in points:
        if not (0 <= x <= 100 and 0 <= y <= 100):
            return False
        area += x0 * y - x * y0  # shoelace formula; a corner that is bad itself is refused in its own turn
        x0, y0 = x, y
    return len(points) > 2 and abs(area) / 2 > SMALLEST_AREA


def _brush(value: dict[str, Any]) -> bool:
    return value["format"] == "rle" and type(value["rle"]) is list and len(bytes(value["rle"])) > 0


def _text(value: dict[str, Any]) -> bool:
    return type(value["text"]) is list and all(type(line) is str for line in value["text"])


def _labels(value: dict[str, Any]) -> bool:
    """Places in a text are whole numbers; other labels repeat the geometry of their shape, which is looked at there."""
    start, end = value.get("start"), value.get("end")
    return type(start) is not int or type(end) is not int or 0 <= start < end


def _video(value: dict[str, Any]) -> bool:
    return (
        1 <= value["framesCount"] < _NUMBER_LIMIT
        and 0 <= value["duration"] < _NUMBER_LIMIT
        and all(map(_key_frame, value["sequence"]))
    )


def _timeline(value: dict[str, Any]) -> bool:
    """Frames are whole numbers that count from 1; a region without any is refused."""
    return bool(value["ranges"]) and all(
        type(one["start"]) is int and type(one["end"]) is int and 1 <= one["start"] <= one["end"]
        for one in value["ranges"]
    )


def _key_frame(frame: dict[str, Any]) -> bool:
    return (
        type(frame["frame"]) is int
        and frame["frame"] >= 1
        and type(frame["enabled"]) is bool
        and 0 <= frame["time"] < _NUMBER_LIMIT
        and _rectangle(frame)
    )


_CHECKS: Mapping[str, Callable[[dict[str, Any]], bool]] = {
    "rectangle": _rectangle,
    "rectanglelabels": _rectangle,
    "ellipse": _ellipse,
    "ellipselabels": _ellipse,
    "keypoint": _keypoint,
    "keypointlabels": _keypoint,
    "polygon": _polygon,
    "polygonlabels": _polygon,
    "brush": _brush,
    "brushlabels": _brush,
    "labels": _labels,
    "textarea": _text,
    "timelinelabels": _timeline,
    "videorectangle": _video,
}


def _short(value: Any) -> str:
    """For a message: not a whole mask, nor a thousand lists in each other."""
    return "missing" if value is None else reprlib.repr(value)

"""Shapes in pixels <-> the geometry part of a result's `value`, in percent. The only percent arithmetic in labelloop.

Label Studio writes x, y, width, height in percent of the upright picture (0..100), a rotation in degrees clockwise
about the **top-left corner** of the box; a `Box` turns about its centre.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from labelloop.core.outlines import bounding_box, box_at, corners
from labelloop.core.regions import Box, Interval, Mask, Point, Polygon, Shape, Size, Span, Whole
from labelloop.labelstudio.brush import mask_from, rle_of
from labelloop.labelstudio.clip import clip

TICKS = 10_000
"""Ticks of a percentage, so four digits: 0.0001 % of a 10,000 px picture is a hundredth of a pixel. Whole ticks are
what is counted, so that `x` plus `width` never passes 100 by a digit; `round` would also cost four times as much."""

EXACT_DIGITS = 10
"""Of percentages that are not ours to round; what is beyond them is what arithmetic in binary leaves."""

WHOLE_PICTURE = 100 * TICKS
FULL_TURN = 360 * TICKS
INFINITY = math.inf

LARGEST_NUMBER = 1e9
"""Larger ones in a result are nobody's percentage or pixel count; below it no product here overflows."""


class Canvas(NamedTuple):
    """A picture to draw on: its size in pixels, and how many ticks a pixel has."""

    width: int
    height: int
    x_ticks: float
    y_ticks: float

    @classmethod
    def of(cls, size: Size) -> Canvas:
        """Of a picture with a size; one without has no pixels to count."""
        width, height = size
        return cls(width, height, WHOLE_PICTURE / width, WHOLE_PICTURE / height)


NO_CANVAS = Canvas(0, 0, 0.0, 0.0)

Encode = Callable[[Any, Canvas], dict[str, Any] | None]
"""Writes a shape on a picture: its geometry, or None when nothing is left to draw, whatever the numbers."""


def encoder(shape: type[Shape], tag: str) -> Encode | None:
    """How a control of this tag writes shapes of this type, None when it does not."""
    if shape is Whole:
        return _encode_whole
    if shape is Span:
        return _encode_span
    if shape is Interval:
        return _encode_interval
    if tag.startswith("Brush"):
        return _encode_brush if shape is Mask else None
    if tag.startswith("Rectangle"):
        return _encode_box if shape is Box else _encode_bounds
    if tag.startswith("Polygon"):
        return _encode_outline
    return _encode_point if tag.startswith("KeyPoint") and shape is Point else None


def _encode_whole(_shape: Whole, _canvas: Canvas) -> dict[str, Any]:
    return {}


def _encode_span(span: Span, _canvas: Canvas) -> dict[str, Any] | None:
    return {"start": span.start, "end": span.end} if 0 <= span.start < span.end else None


def _encode_interval(shown: Interval, _canvas: Canvas) -> dict[str, Any] | None:
    ranges = [{"start": shown.first, "end": shown.last}]
    return {"ranges": ranges} if 1 <= shown.first <= shown.last else None


def _encode_box(box: Box, canvas: Canvas) -> dict[str, Any] | None:
    left, top, right, bottom = box.xyxy
    # false for NaN, for infinity and where there is no area, so that no number needs a look of its own
    if not (0.0 < right - left < INFINITY and 0.0 < bottom - top < INFINITY):
        return None
    if box.angle_deg and _angle_ticks(box.angle_deg) != 0:
        return _encode_turned(box, canvas)
    width, height, x_ticks, y_ticks = canvas
    x0 = int(left * x_ticks + 0.5) if left > 0 else 0
    y0 = int(top * y_ticks + 0.5) if top > 0 else 0
    x1 = int(right * x_ticks + 0.5) if right < width else WHOLE_PICTURE
    y1 = int(bottom * y_ticks + 0.5) if bottom < height else WHOLE_PICTURE
    if x1 <= x0 or y1 <= y0:
        return None
    return {
        "x": x0 / TICKS,
        "y": y0 / TICKS,
        "width": (x1 - x0) / TICKS,
        "height": (y1 - y0) / TICKS,
        "rotation": 0.0,
    }


def _encode_turned(box: Box, canvas: Canvas) -> dict[str, Any] | None:
    """The same box can be written from any of its corners, turned on by 90 degrees each: the first one inside the
    picture is taken. Where none is, what remains is the upright box around the part in the picture."""
    angle = _angle_ticks(box.angle_deg)
    if angle is None:
        return None
    left, top, right, bottom = box.xyxy
    side, other = right - left, bottom - top
    outline = corners(box)
    for turn, (x, y) in enumerate(outline):
        ticks = [_ticks(x, canvas.x_ticks), _ticks(y, canvas.y_ticks)]
        sides = [_ticks(side, canvas.x_ticks), _ticks(other, canvas.y_ticks)]
        if min(ticks) >= 0 and min(sides) > 0 and max(*ticks, *sides) <= WHOLE_PICTURE:
            rotation = (angle + turn * 90 * TICKS) % FULL_TURN / TICKS
            if not rotation:
                break  # an upright box is cut off at the border
            x, y, width, height = (number / TICKS for number in (*ticks, *sides))
            return {"x": x, "y": y, "width": width, "height": height, "rotation": rotation}
        side, other = other, side
    return _encode_bounds(Polygon(outline), canvas)


def _angle_ticks(degrees: float) -> int | None:
    """From 0 to below a full turn; None for what is no angle."""
    return int(degrees % 360 * TICKS + 0.5) % FULL_TURN if math.isfinite(degrees) else None


def _encode_brush(mask: Mask, canvas: Canvas) -> dict[str, Any] | None:
    code = rle_of(mask, Size(canvas.width, canvas.height))
    return {"format": "rle", "rle": code} if code else None


def _encode_bounds(shape: Shape, canvas: Canvas) -> dict[str, Any] | None:
    if isinstance(shape, Mask):
        around = bounding_box(shape)
        return None if around is None else _encode_box(around, canvas)
    box = bounding_box(Polygon(_outline_inside(shape, canvas)))
    return None if box is None else _encode_box(box, canvas)


def _encode_outline(shape: Shape, canvas: Canvas) -> dict[str, Any] | None:
    _, _, x_ticks, y_ticks = canvas
    inside = _outline_inside(shape, canvas)
    xs, ys = [int(x * x_ticks + 0.5) for x, _ in inside], [int(y * y_ticks + 0.5) for _, y in inside]
    if len(inside) < 3 or min(xs) == max(xs) or min(ys) == max(ys):
        return None
    return {"points": [[x / TICKS, y / TICKS] for x, y in zip(xs, ys, strict=True)], "closed": True}


def _outline_inside(shape: Shape, canvas: Canvas) -> tuple[tuple[float, float], ...]:
    """The points around the part of a shape that lies in the picture; none where there is no such part."""
    if isinstance(shape, Box):
        left, top, right, bottom = shape.xyxy
        upright = ((left, top), (right, top), (right, bottom), (left, bottom))
        if not math.isfinite(shape.angle_deg):
            return ()
        points = corners(shape) if shape.angle_deg else upright
    else:
        points = shape.points if isinstance(shape, Polygon) else ()
    return clip(points, Size(canvas.width, canvas.height)) if math.isfinite(sum(map(sum, points))) else ()


def _encode_point(point: Point, canvas: Canvas) -> dict[str, Any] | None:
    if not math.isfinite(point.x + point.y):
        return None
    x, y = min(max(point.x, 0.0), canvas.width), min(max(point.y, 0.0), canvas.height)
    return {"x": _ticks(x, canvas.x_ticks) / TICKS, "y": _ticks(y, canvas.y_ticks) / TICKS, "width": 0.5}


def _ticks(pixels: float, ticks: float) -> int:
    return math.floor(pixels * ticks + 0.5)


def fraction(score: float) -> float:
    """A score within [0, 1] and with four digits; what is no number is 0."""
    if 0.0 <= score <= 1.0:
        return int(score * TICKS + 0.5) / TICKS
    return 1.0 if score > 1.0 else 0.0


# --- back to pixels: KeyError, TypeError or ValueError for what is not what Label Studio writes -----------------------


def decode_shape(kind: str, value: Mapping[str, Any], size_wh: tuple[Any, Any]) -> Shape | None:
    """The shape in pixels of a `value` of the type `kind`, on a picture whose size the result names; None for a type
    that has no place in a picture, or one that is not known here."""
    width, height = (number(side) / 100.0 for side in size_wh)
    if width <= 0 or height <= 0:
        raise ValueError("a picture has a size")
    if kind.startswith("brush"):
        return mask_from(value["rle"], Size(round(width * 100), round(height * 100)))
    if "points" in value:
        points = tuple((number(x) * width, number(y) * height) for x, y in value["points"])
        return Polygon(points) if len(points) > 2 else None
    if kind.startswith("keypoint"):
        return Point(number(value["x"]) * width, number(value["y"]) * height)
    if kind.startswith(("rectangle", "labels", "textarea")) and "width" in value and "height" in value:
        return _decode_box(value, width, height)
    return None


def _decode_box(value: Mapping[str, Any], width: float, height: float) -> Box:
    corner = number(value["x"]) * width, number(value["y"]) * height
    sides = number(value["width"]) * width, number(value["height"]) * height
    return box_at(corner, sides, angle_deg=number(value.get("rotation") or 0.0))


def decode_box(value: Mapping[str, Any], size: Size) -> Box:
    """The box in pixels of `x`, `y`, `width`, `height` and `rotation`, on a picture of `size`."""
    return _decode_box(value, size.width / 100.0, size.height / 100.0)


def exact_box(box: Box, size: Size) -> dict[str, float]:
    """The inverse of `decode_box`, to ten digits: nothing is cut off at the border, because what people drew is handed
    back to them."""
    left, top, right, bottom = box.xyxy
    x, y = corners(box)[0] if box.angle_deg else (left, top)
    return {
        "x": round(x / size.width * 100.0, EXACT_DIGITS),
        "y": round(y / size.height * 100.0, EXACT_DIGITS),
        "width": round((right - left) / size.width * 100.0, EXACT_DIGITS),
        "height": round((bottom - top) / size.height * 100.0, EXACT_DIGITS),
        "rotation": round(box.angle_deg, EXACT_DIGITS),
    }


def number(value: Any) -> float:
    """A number of JSON that may be a percentage, pixels or degrees. true is none."""
    if type(value) not in (int, float):
        raise TypeError("not a number")
    if not -LARGEST_NUMBER <= value <= LARGEST_NUMBER:
        raise ValueError("neither a percentage nor pixels")
    return float(value)

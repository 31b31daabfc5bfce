"""Parts on a conveyor belt, as a camera above it would see them: pictures to train on that need no download.

Four classes of metal parts lie anywhere and anyhow on a worn belt, with shadows, uneven light, noise and JPEG's traces.
Every picture follows from its seed and number alone, and we know where each part is to the pixel.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Mask = NDArray[np.uint8]
Painter = Callable[[float, np.random.Generator], list[tuple[Mask, float]]]

LABELS = ("bolt", "nut", "washer", "bracket")
SIZE_WH = (640, 480)
JPEG_QUALITY = 88
FINE = 2
"""Parts are drawn this many times too large and averaged, which gives them soft edges."""
CANVAS = 176
"""Side of the square that one part is drawn in, in pixels of the picture."""
LEAST_VISIBLE = 0.35
"""A part of which less than this is to be seen, at the edge or under another, is not put there."""


class Part(NamedTuple):
    """`xyxy` encloses what is to be seen of the part, in pixels of the picture."""

    label: str
    xyxy: tuple[float, float, float, float]


class Scene(NamedTuple):
    """One picture: its file name, its JPEG bytes, and what lies on the belt."""

    name: str
    jpeg: bytes
    parts: tuple[Part, ...]


def draw_scene(seed: int, number: int) -> Scene:
    """Picture `number` of the belt `seed`: between no part (one in twelve) and nine."""
    rng = np.random.default_rng([seed, number])
    picture = _belt(rng)
    light = rng.uniform(0, 2 * np.pi)
    taken = np.zeros(picture.shape[:2], np.uint8)
    parts: list[Part] = []
    for _ in range(0 if rng.random() < 1 / 12 else int(rng.integers(2, 10))):
        label = LABELS[int(rng.integers(len(LABELS)))]
        part = _lay(picture, taken, label, light, rng)
        if part is not None:
            parts.append(part)
    return Scene(f"belt-{seed}-{number:04}.jpg", _photograph(picture, rng), tuple(parts))


def coco(scenes: Iterable[Scene]) -> dict[str, Any]:
    """The true boxes in COCO's form; categories count from 1 in the order of LABELS."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for scene in scenes:
        images.append({"id": len(images) + 1, "file_name": scene.name, "width": SIZE_WH[0], "height": SIZE_WH[1]})
        for part in scene.parts:
            left, top, right, bottom = part.xyxy
            box = [left, top, right - left, bottom - top]
            row = {"id": len(annotations) + 1, "image_id": len(images), "category_id": LABELS.index(part.label) + 1}
            annotations.append(row | {"bbox": box, "area": box[2] * box[3], "iscrowd": 0})
    categories = [{"id": index + 1, "name": label} for index, label in enumerate(LABELS)]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_data_set(folder: Path, *, train: Sequence[int], val: Sequence[int], seed: int = 0) -> None:
    """`images/`, `train.json` and `val.json` in `folder`: the pictures with these numbers, as trainers read them."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for split, numbers in (("train", train), ("val", val)):
        scenes = [draw_scene(seed, number) for number in numbers]
        for scene in scenes:
            (folder / "images" / scene.name).write_bytes(scene.jpeg)
        (folder / f"{split}.json").write_text(json.dumps(coco(scenes)))


# --- the belt ---------------------------------------------------------------------------------------


def _belt(rng: np.random.Generator) -> Floats:
    """Dark rubber with a weave, scratches along its way, stains, and rails above and below."""
    width, height = SIZE_WH
    level = np.full((height, width), rng.uniform(52, 84), np.float32)
    level += 3.0 * np.sin(np.arange(width) * 2 * np.pi / rng.uniform(7, 11))[None, :]
    level += cv2.resize(rng.normal(0, 5, (height // 3, 6)).astype(np.float32), SIZE_WH, interpolation=cv2.INTER_LINEAR)
    level += cv2.resize(rng.normal(0, 9, (5, 7)).astype(np.float32), SIZE_WH, interpolation=cv2.INTER_CUBIC)
    for _ in range(int(rng.integers(3, 9))):
        x, y = rng.uniform(0, width), rng.uniform(0, height)
        end = (int(x + rng.uniform(40, 260)), int(y + rng.uniform(-6, 6)))
        cv2.line(level, (int(x), int(y)), end, float(level.mean() + rng.uniform(8, 26)), 1, cv2.LINE_AA)
    rail = int(rng.integers(14, 34))
    shine = np.linspace(150, 96, rail, dtype=np.float32)[:, None]
    level[:rail], level[-rail:] = shine, shine[::-1]
    tint = np.array([1.06, 1.0, 0.96], np.float32) + rng.normal(0, 0.03, 3).astype(np.float32)
    return np.asarray(level[..., None] * tint, np.float32)


def _photograph(picture: Floats, rng: np.random.Generator) -> bytes:
    """Uneven light, a little blur, the sensor's noise, JPEG."""
    height, width = picture.shape[:2]
    x, y = np.meshgrid(np.linspace(-1, 1, width), np.linspace(-1, 1, height))
    centre = rng.uniform(-0.6, 0.6, 2)
    light = rng.uniform(0.85, 1.2) * (1.1 - rng.uniform(0.1, 0.3) * ((x - centre[0]) ** 2 + (y - centre[1]) ** 2))
    lit = cv2.GaussianBlur(picture * light[..., None].astype(np.float32), (0, 0), rng.uniform(0.4, 1.0))
    noisy = lit + rng.standard_normal(lit.shape, np.float32) * rng.uniform(2, 6)
    _, jpeg = cv2.imencode(".jpg", noisy.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    return bytes(jpeg.tobytes())


# --- the parts --------------------------------------------------------------------------------------


def _lay(picture: Floats, taken: NDArray[np.uint8], label: str, light: float, rng: np.random.Generator) -> Part | None:
    """Put one part somewhere, with its shadow; None when there was no room for it. `taken` marks where parts are."""
    cover, shade = _draw(label, light, rng)
    height, width = taken.shape
    left, top = (
        int(rng.integers(-CANVAS // 2, width - CANVAS // 2)),
        int(rng.integers(-CANVAS // 3, height - CANVAS * 2 // 3)),
    )
    there = np.s_[max(top, 0) : min(top + CANVAS, height), max(left, 0) : min(left + CANVAS, width)]
    here = np.s_[max(-top, 0) : min(height - top, CANVAS), max(-left, 0) : min(width - left, CANVAS)]
    seen = (cover[here] > 0.5) & (taken[there] == 0)
    rows, columns = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    if seen.sum() < LEAST_VISIBLE * (cover > 0.5).sum() or (cover[here] > 0.5).sum() > 1.15 * seen.sum():
        return None  # mostly outside, or on top of another part: nothing is hidden by what comes later
    shift = np.array([[1, 0, -5 * np.cos(light)], [0, 1, -5 * np.sin(light)]], np.float32)
    shadow = cv2.GaussianBlur(cv2.warpAffine(cover, shift, (CANVAS, CANVAS)), (0, 0), 3.0)[here]
    free = (taken[there] == 0).astype(np.float32)
    picture[there] *= (1 - 0.6 * shadow * free)[..., None]
    alpha = (cover[here] * free)[..., None]
    picture[there] = picture[there] * (1 - alpha) + shade[here] * alpha
    taken[there] |= (cover[here] > 0.5).astype(np.uint8)
    x, y = there[1].start, there[0].start
    right, bottom = x + columns[-1] + 1, y + rows[-1] + 1
    return Part(label, (float(x + columns[0]), float(y + rows[0]), float(right), float(bottom)))


def _draw(label: str, light: float, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """How much the part covers [CANVAS, CANVAS] in [0, 1], and its colours [CANVAS, CANVAS, 3]; turned at random."""
    fine = CANVAS * FINE
    pieces = _PAINTERS[label](rng.uniform(1.2, 1.8), rng)
    turn = cv2.getRotationMatrix2D((fine / 2, fine / 2), rng.uniform(0, 360), 1.0)
    metal = np.array([1.0, 1.0, 1.0], np.float32) + rng.choice(_FINISHES)
    base, cover, level = rng.uniform(125, 190), np.zeros((fine, fine), np.float32), np.zeros((fine, fine), np.float32)
    for mask, brightness in pieces:
        turned = cv2.warpAffine(mask, turn, (fine, fine), flags=cv2.INTER_LINEAR) > 127
        if brightness < 0:  # a hole
            cover[turned] = 0.0
        else:
            cover[turned], level[turned] = 1.0, base * brightness
    # the edge towards the light shines, the other one is dark: the slope of a blurred outline
    round_ = cv2.GaussianBlur(cover, (0, 0), 2.0 * FINE)
    slope = np.cos(light) * cv2.Sobel(round_, cv2.CV_32F, 1, 0) + np.sin(light) * cv2.Sobel(round_, cv2.CV_32F, 0, 1)
    level = level - slope * 420.0 + cv2.resize(rng.normal(0, 6, (40, 40)).astype(np.float32), (fine, fine))
    small = (CANVAS, CANVAS)
    colours = cv2.resize(level.clip(10, 250), small, interpolation=cv2.INTER_AREA)[..., None] * metal
    return np.asarray(cv2.resize(cover, small, interpolation=cv2.INTER_AREA)), np.asarray(colours, np.float32)


_FINISHES = np.array([[0, 0, 0], [0.05, 0, -0.05], [-0.25, -0.05, 0.1]], np.float32)
"""BGR: plain steel, zinc, brass."""


def _canvas() -> Mask:
    return np.zeros((CANVAS * FINE, CANVAS * FINE), np.uint8)


def _polygon(points: Sequence[tuple[float, float]], scale: float) -> Mask:
    middle = CANVAS * FINE / 2
    corners = np.round(np.array(points) * scale * FINE + middle).astype(np.int32)
    return np.asarray(cv2.fillPoly(_canvas(), [corners], 255), np.uint8)


def _disc(radius: float, scale: float, *, x: float = 0.0, y: float = 0.0) -> Mask:
    middle = CANVAS * FINE / 2
    at = (round(middle + x * scale * FINE), round(middle + y * scale * FINE))
    return np.asarray(cv2.circle(_canvas(), at, round(radius * scale * FINE), 255, -1), np.uint8)


def _hexagon(radius: float, scale: float, *, x: float = 0.0) -> Mask:
    corners = [(x + radius * np.cos(a), radius * np.sin(a)) for a in np.arange(6) * np.pi / 3]
    return _polygon(corners, scale)


def _bolt(scale: float, rng: np.random.Generator) -> list[tuple[Mask, float]]:
    end = rng.uniform(24, 44)
    shaft = _polygon([(-16, -7), (end, -7), (end + 4, -4), (end + 4, 4), (end, 7), (-16, 7)], scale)
    threads = _canvas()
    for x in np.arange(0, end, 4):
        threads |= _polygon([(x, -7), (x + 1.6, -7), (x + 3, 7), (x + 1.4, 7)], scale)
    head = _polygon([(-30, -14), (-16, -14), (-16, 14), (-30, 14)], scale)
    return [(shaft, 0.85), (threads, 0.6), (head, 1.05)]


def _nut(scale: float, rng: np.random.Generator) -> list[tuple[Mask, float]]:
    hole = rng.uniform(9, 12)
    return [(_hexagon(22, scale), 0.95), (_disc(hole + 3, scale), 0.75), (_disc(hole, scale), -1.0)]


def _washer(scale: float, rng: np.random.Generator) -> list[tuple[Mask, float]]:
    hole = rng.uniform(8, 14)
    return [(_disc(23, scale), 1.05), (_disc(hole, scale), -1.0)]


def _bracket(scale: float, rng: np.random.Generator) -> list[tuple[Mask, float]]:
    arm = rng.uniform(30, 42)
    plate = _polygon([(-24, -24), (arm, -24), (arm, -6), (-6, -6), (-6, arm - 6), (-24, arm - 6)], scale)
    holes = [_disc(5, scale, x=arm - 10, y=-15), _disc(5, scale, x=-15, y=arm - 16)]
    return [(plate, 0.9), *((hole, -1.0) for hole in holes)]


_PAINTERS: dict[str, Painter] = {"bolt": _bolt, "nut": _nut, "washer": _washer, "bracket": _bracket}

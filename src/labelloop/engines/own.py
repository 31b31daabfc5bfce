"""A class of the user's own as a model: ten lines with `labels` and `predict`, in a process of its own.

`predict(picture)` is given an array uint8 [height, width, 3], RGB, upright (or a text, where its `task` is "text" or
"ner"), and returns dictionaries: `label`, `score`, and a place in pixels: `box` (left, top, right, bottom, with `angle`
in degrees clockwise), `polygon` (points), `point`, `mask` (truths [height, width]), or in a text: `span` (its first
character, and the one behind its last), or none for the picture or text as a whole; `text` for what is read there.
"""

from __future__ import annotations

import math
import operator
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from labelloop.compat.names.labelloop_masks import parts_of
from labelloop.core import outlines
from labelloop.core.cards import Hosted, ModelCard
from labelloop.core.errors import LabelloopError, ModelError, ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Mask, Point, Polygon, Region, Shape, Size, Span, Whole
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.isolated import Died, Isolated, Program
from labelloop.engines.sdk import OPEN_S, digest_of_code, path_of

TASKS = ("detect", "segment", "ocr", "classify", "pose", "text", "ner")
READ = ("text", "ner")
"""Tasks of classes that are given texts."""


class OwnEngine:
    """One object of the user's class, called for one item at a time or, with `predict_batch`, for `max_batch`."""

    needs_file = False
    input_size: Size | None = None
    parallel = 1

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        del path
        if card.host is None:
            raise ModelError(f"The model {card.name} names no code.", hint="Add it: labelloop models add FILE.py:Class")
        folder = options.desk.folder(card.name) if options.desk is not None else None
        self._timeout_s = card.host.timeout_s
        self._host = _host(card.name, card.host, folder)
        try:
            about = self._host.call("about", timeout_s=OPEN_S)
        except LabelloopError:
            self._host.close()
            raise
        self.classes = card.labels
        self.max_batch = max(1, about["max_batch"])
        self.wants: Wants = "text" if card.task in READ else "picture"

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """The card with the labels and the task that the class says; it is built for that once. Raises ModelError."""
        del path
        if card.host is None:
            raise ModelError("The engine own hosts a class.", hint="Name it: labelloop models add FILE.py:Class")
        host = _host(card.name, card.host, None)
        try:
            about = host.call("about", timeout_s=OPEN_S)
        finally:
            host.close()
        if about["task"] not in TASKS:
            raise ModelError(f"{card.host.source} says task = {about['task']!r}.", hint=f"Known: {', '.join(TASKS)}.")
        if not about["labels"]:
            raise ModelError(f"{card.host.source} has no labels.", hint='Write labels = ("cat", "dog") into the class.')
        code = msgspec.structs.replace(card.host, code=digest_of_code(str(path_of(card.host.source))))
        return msgspec.structs.replace(card, labels=tuple(about["labels"]), task=about["task"], host=code)

    def prepare(self, item: Picture | str) -> Any:
        return item if isinstance(item, str) else np.ascontiguousarray(item.rgb)

    def predict(self, batch: Sequence[Any]) -> list[tuple[Region, ...] | Exception]:
        """Regions of each item, best first, or why there are none. A crash fails the item that it came with alone."""
        try:
            answers = self._host.call("predict", items=list(batch), timeout_s=self._timeout_s)
        except Died as error:
            if len(batch) == 1:
                return [error]
            return [self.predict([item])[0] for item in batch]
        return [self._read(answer, item) for answer, item in zip(answers, batch, strict=True)]

    def close(self) -> None:
        self._host.close()

    def _read(self, answer: Mapping[str, Any], item: Any) -> tuple[Region, ...] | Exception:
        if "error" in answer:
            return ModelFailed(answer["error"])
        try:
            text = item if isinstance(item, str) else ""
            found = [region_of(one, text) for one in answer["found"]]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            return ModelFailed(f"It answered what cannot be read: {type(error).__name__}: {error}.")
        regions = [region for region in found if region is not None]
        return tuple(sorted(regions, key=lambda region: -(region.score or 0.0)))


def _host(name: str, host: Hosted, folder: Path | None) -> Isolated:
    """With `folder` None it is only looked at, and its log goes beside nothing that stays."""
    place = folder or Path(tempfile.mkdtemp(prefix="labelloop-own-"))
    path = path_of(host.source)
    opening = {"source": host.source, "options": dict(host.options), "model_dir": host.model_dir or str(place)}
    program = Program(name, "own.py", host.python, path if path.is_dir() else path.parent, opening=("open", opening))
    return Isolated(program, log_file=place / "log.txt")


def region_of(found: Mapping[str, Any], item: str = "") -> Region | None:
    """The region that one dictionary means, none for a mask of nothing. `item` is the text that a span is about. Raises
    what a wrong one raises."""
    label, text = found.get("label"), found.get("text")
    score = None if found.get("score") is None else float(found["score"])
    if score is not None and not math.isfinite(score):
        raise ValueError(f"the score is {score}")
    name = None if label is None else str(label)
    if "span" in found:
        span = _span(found["span"], item)
        return Region(span, name, score, item[span.start : span.end])
    shape = _shape(found)
    return None if shape is None else Region(shape, name, score, None if text is None else str(text))


def _span(ends: Any, item: str) -> Span:
    start, end = (operator.index(place) for place in ends)
    if not 0 <= start < end <= len(item):
        raise ValueError(f"the span from {start} to {end} is not in the text, which has {len(item)} characters")
    return Span(start, end)


def _shape(found: Mapping[str, Any]) -> Shape | None:
    if "box" in found:
        left, top, right, bottom = (_finite(value) for value in found["box"])
        return Box((left, top, right, bottom), _finite(found.get("angle", 0.0)))
    if "polygon" in found:
        return Polygon(tuple((_finite(x), _finite(y)) for x, y in found["polygon"]))
    if "point" in found:
        x, y = found["point"]
        return Point(_finite(x), _finite(y))
    if "mask" in found:
        return mask_of(np.asarray(found["mask"]))
    return Whole()


def _finite(value: Any) -> float:
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"a coordinate is {number}")
    return number


def mask_of(covered: np.ndarray[Any, Any]) -> Mask | None:
    """The truths [height, width] as outlines, None where none is true. Raises ValueError."""
    if covered.ndim != 2:
        raise ValueError(f"the mask has the shape {covered.shape}, not [height, width]")
    return outlines.mask_of(parts_of(covered != 0))

"""Detectors and instance segmenters of MMDetection and MMYOLO, in the interpreter that has these packages.

The file of such a model is made by `pack` from a config and a checkpoint. It is data only: what an older checkpoint
would run by being loaded is run there once, if the user trusts it, and never again.
"""

from __future__ import annotations

import tempfile
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.core.decoding import from_json
from labelloop.core.errors import ModelError
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Mask, Region, Size
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.isolated import Died, Isolated, Program
from labelloop.engines.sdk import OPEN_S

ADAPTER = "mmdet.py"
MODEL = "model.json"
MAX_BATCH = 8
"""Pictures in one batch: a network at 640 pixels takes some hundred MB for each."""


class About(msgspec.Struct, frozen=True):
    """What `model.json` says first."""

    family: str
    masks: bool
    classes: tuple[str, ...]


class MmdetEngine:
    """One network in a process of its own; `max_batch` pictures are one batch there."""

    needs_file: ClassVar[bool] = True
    wants: Wants = "picture"
    input_size: Size | None = None
    parallel = 1

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        """Raises ModelError when the interpreter or the file is not what it should be."""
        if path is None or card.host is None:
            raise ModelError(f"The model {card.name} has no file or no interpreter.", hint=HOW)
        self.classes, self.max_batch, self._timeout_s = card.labels, options.max_batch or MAX_BATCH, card.host.timeout_s
        folder = options.desk.folder(card.name) if options.desk is not None else None
        opening = ("open", {"path": str(path), "device": options.device})
        self._host = _host(card.name, card.host.python, folder, opening)
        try:
            self._host.call("predict", pictures=[np.zeros((64, 64, 3), np.uint8)], timeout_s=OPEN_S)
        except BaseException:
            self._host.close()
            raise

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """The card completed from the file alone. Raises ModelError for one that `pack` did not make."""
        about = read_about(path)
        task = "segment" if about.masks else "detect"
        return msgspec.structs.replace(card, task=task, family=about.family, labels=about.classes)

    def prepare(self, picture: Picture) -> Prepared:
        height, width = picture.rgb.shape[:2]
        scale_xy = picture.size.width / width, picture.size.height / height
        return Prepared(np.ascontiguousarray(picture.rgb), picture.size, scale_xy)

    def predict(self, batch: Sequence[Prepared]) -> list[tuple[Region, ...] | Exception]:
        """Regions of each picture, best first. A crash fails the picture that it came with alone."""
        try:
            found = self._host.call("predict", pictures=[item.rgb for item in batch], timeout_s=self._timeout_s)
        except Died as error:
            if len(batch) == 1:
                return [error]
            return [self.predict([item])[0] for item in batch]
        return [tuple(_regions(one, item, self.classes)) for one, item in zip(found, batch, strict=True)]

    def close(self) -> None:
        self._host.close()


class Prepared(msgspec.Struct, frozen=True):
    """`rgb` is uint8 [height, width, 3]; `scale_xy` brings its pixels back to those of the original, of size `size`."""

    rgb: np.ndarray[Any, np.dtype[np.uint8]]
    size: Size
    scale_xy: tuple[float, float]


HOW = "Add it: labelloop models add --engine mmdet --config CONFIG.py --checkpoint WEIGHTS.pth"


def pack(
    config: Path, checkpoint: Path, target: Path, *, python: str, trust: bool = False, labels: Sequence[str] = ()
) -> None:
    """Write the model of a config and a checkpoint into the file `target`, after it has answered once. With `trust` the
    checkpoint may hold more than weights, which loading it runs. Raises ModelError."""
    for path in (config, checkpoint):
        if not path.is_file():
            raise ModelError(f"There is no file {path}.", hint=HOW)
    paths = {"config": str(config.resolve()), "checkpoint": str(checkpoint.resolve()), "target": str(target)}
    host = _host(config.stem, python, None, None)
    try:
        host.call("pack", **paths, trust=trust, labels=list(labels), timeout_s=OPEN_S)
    finally:
        host.close()


def read_about(path: Path | None) -> About:
    """What a model's file says of it, without OpenMMLab. Raises ModelError."""
    if path is None:
        raise ModelError("The engine mmdet needs a config and a checkpoint.", hint=HOW)
    try:
        with zipfile.ZipFile(path) as archive:
            return from_json(archive.read(MODEL), About)
    except (OSError, KeyError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise ModelError(f"{path} is no packed model of OpenMMLab: {error}.", hint=HOW) from error


def _host(name: str, python: str, folder: Path | None, opening: tuple[str, Mapping[str, Any]] | None) -> Isolated:
    """With `folder` None it is only looked at, and its log goes beside nothing that stays."""
    place = folder or Path(tempfile.mkdtemp(prefix="labelloop-mmdet-"))
    return Isolated(Program(name, ADAPTER, python, opening=opening, opening_s=OPEN_S), log_file=place / "log.txt")


def _regions(found: Mapping[str, Any], item: Prepared, classes: Sequence[str]) -> Iterator[Region]:
    """Boxes, cut at the picture's edges, or masks where the network makes them."""
    x, y = item.scale_xy
    width, height = item.size
    for number, (label, score) in enumerate(zip(found["labels"], found["scores"], strict=True)):
        if found["masks"]:
            parts = [
                tuple(tuple(((px + 0.5) * x, (py + 0.5) * y) for px, py in ring) for ring in part)
                for part in found["parts"][number]  # the middle of a pixel is half a pixel in
            ]
            if parts:
                yield Region(Mask(tuple(parts)), classes[label], float(score))
            continue
        left, top, right, bottom = found["boxes"][number]
        left, right = (min(max(side * x, 0.0), float(width)) for side in (left, right))
        top, bottom = (min(max(side * y, 0.0), float(height)) for side in (top, bottom))
        if left < right and top < bottom:
            yield Region(Box((left, top, right, bottom)), classes[label], float(score))

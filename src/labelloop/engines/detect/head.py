"""The seam between the engine and the families of detection heads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.cards import InputSpec
from labelloop.engines.onnx import Array, Signature, Tensor, as_float32

Floats = NDArray[np.float32]


class Found(NamedTuple):
    """Boxes of one picture in pixels of the network input: `xyxy` [n, 4], `scores` [n], `classes` [n] (class index)."""

    xyxy: Floats
    scores: Floats
    classes: NDArray[np.integer[Any]]


class Clues(msgspec.Struct, frozen=True):
    """What a family looks at when it is asked whether a file is its own.

    `image` is the picture input, `size_wh` the size that it has or would get, `classes` how many class names are
    known beforehand (None: unknown). `forced` is true when the card names the family, so that only what the
    decoding itself needs must fit.
    """

    signature: Signature
    image: Tensor
    size_wh: tuple[int, int]
    classes: int | None
    forced: bool = False

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        return self.signature.outputs

    @property
    def is_ultralytics(self) -> bool:
        """Their exporter writes both keys into every file."""
        return {"names", "stride"} <= self.signature.metadata.keys()

    def cells(self, *strides: int) -> int:
        """How many grid cells the strides make over the network input: sum of ceil(width / s) * ceil(height / s)."""
        return sum(-(-self.size_wh[0] // stride) * -(-self.size_wh[1] // stride) for stride in strides)


NOTHING: Mapping[str, Array] = MappingProxyType({})


class Head(msgspec.Struct, frozen=True):
    """One way to write boxes into tensors; made by `fit`. `classes` is how many classes the file knows, None when its
    outputs do not show it."""

    family: ClassVar[str]
    defaults: ClassVar[InputSpec]
    """How the family's own code prepares pictures."""
    iou_threshold: ClassVar[float | None] = None
    """Default for non-maximum suppression; None: the boxes are final, suppress nothing."""
    floor: ClassVar[float] = 0.01
    """Default score below which nothing is returned: far below what people are shown, so that mAP stays whole."""
    single: ClassVar[bool] = False
    """True when the network answers one picture at a time, whatever its input's shape says."""

    classes: int | None

    @classmethod
    def fit(cls, clues: Clues) -> Self | None:
        """A head that can read this file, or None when the file is not of this family."""
        raise NotImplementedError

    @property
    def extra(self) -> Mapping[str, Array]:
        """Inputs beside the picture: name -> the row that each picture of a batch gets."""
        return NOTHING

    def decode(self, outputs: Sequence[Array], *, floor: float) -> Iterator[Found]:
        """Boxes with a score above `floor`, picture by picture. Nothing is suppressed, clipped or sorted here."""
        raise NotImplementedError


def grid(size_wh: tuple[int, int], strides: Sequence[int]) -> tuple[Floats, Floats]:
    """Column and row [n, 2] of each grid cell, and its stride [n, 1]: row by row, one stride after the other."""
    places, sizes = [], []
    for stride in strides:
        columns, rows = -(-size_wh[0] // stride), -(-size_wh[1] // stride)
        row, column = np.divmod(np.arange(columns * rows), columns)
        places.append(np.stack([column, row], axis=1))
        sizes.append(np.full((columns * rows, 1), stride))
    return np.concatenate(places).astype(np.float32), np.concatenate(sizes).astype(np.float32)


def centred(cxcywh: Floats) -> Floats:
    """Boxes [n, 4] given as centre, width, height -> left, top, right, bottom."""
    half = cxcywh[:, 2:] / 2
    return np.concatenate([cxcywh[:, :2] - half, cxcywh[:, :2] + half], axis=1)


def best_class(scores: Floats, floor: float) -> tuple[NDArray[np.intp], Floats, NDArray[np.intp]]:
    """Rows of `scores` [n, c] whose best class is above `floor`: their indices, scores and classes.

    One class a box: the second best guess at the same place is no help to a person who has to delete it.
    """
    rows = np.flatnonzero(scores.max(axis=1) > floor)
    kept = scores[rows]
    classes = kept.argmax(axis=1)
    return rows, kept[np.arange(len(rows)), classes], classes


def final(xyxy: Array, scores: Array, classes: Array, *, floor: float) -> Found:
    """Boxes that the network has finished itself, without those at or below `floor`."""
    keep = scores > floor
    return Found(as_float32(xyxy[keep]), as_float32(scores[keep]), classes[keep].astype(np.intp))

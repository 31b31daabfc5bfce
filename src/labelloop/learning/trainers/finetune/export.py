"""What was learned, written back into the ONNX file, and compared with what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.core.geometry import iou
from labelloop.engines.detect.head import Found
from labelloop.engines.detect.prepare import Normaliser, Prepared
from labelloop.engines.detect.recognise import recognise
from labelloop.engines.onnx import OnnxModel
from labelloop.learning.trainers.base import TrainerFailed, replace_file
from labelloop.learning.trainers.finetune.families import Told
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph
from labelloop.learning.trainers.finetune.suppression import Suppression
from labelloop.learning.trainers.finetune.suppression_tail import put_on

if TYPE_CHECKING:
    from torch import nn

MOST_PIXELS_APART = 2e-3
MOST_PIXELS_OF_A_QUERY = 0.1
"""A decoder works a box out in several steps, from places that it reads off a map, and where it is in two minds the
last digit counts: boxes that nobody sees (scores of 0.0002 to 0.006 of an untrained DEIMv2-atto) came to 0.014 pixels,
torch and ONNX Runtime being equally far from float64; 0.0003 after training on bccd."""
MOST_SCORE_APART = 1e-4
COMPARED = 300
"""Boxes compared per picture: as many as the engine returns at most."""
IOU_ROUNDING = 1e-3
"""Around the threshold of the suppression: which of two boxes is left out there hangs on the last digit."""
FAR = 1e9
Floats = NDArray[np.float32]


class Parity(NamedTuple):
    """How far the file and the module are apart: corners in pixels of the network input, scores."""

    pixels: float
    score: float


def write_back(graph: OnnxGraph, weights: Mapping[str, nn.Parameter]) -> None:
    """Put learned weights into the initializers of the same name."""
    for name, value in weights.items():
        graph.set_constant(name, value.detach().cpu().float().numpy())


def save(graph: OnnxGraph, path: Path, *, labels: Sequence[str], suppression: Suppression | None = None) -> None:
    """Check and write the model file, in one step. Class names go where the file already keeps them; a suppression
    that was taken off is put on again."""
    if suppression is not None:
        put_on(graph, suppression)
    for one in graph.model.metadata_props:
        if one.key == "names":
            one.value = str(dict(enumerate(labels)))
    onnx.checker.check_model(graph.model)
    replace_file(path, lambda fresh: onnx.save(graph.model, fresh))


def parity(
    path: Path,
    card: ModelCard,
    pictures: Sequence[Prepared],
    xyxy: Floats,
    scores: Floats,
    *,
    suppression: Suppression | None = None,
    told: Told = "cells",
) -> Parity:
    """Serve `pictures` with the file, one by one and all together, decode as the engine does, and compare with the
    module's `xyxy` [b, n, 4] and `scores` [b, n, c]: the best cells, or what a `suppression` in the file
    leaves of them, or what the file has `told` instead.

    Raises TrainerFailed when they are further apart than 0.002 pixels (0.1 where a decoder makes them) or 0.0001.
    """
    model = OnnxModel(path)
    head, complete = recognise(model.signature, card)
    normaliser = Normaliser(complete.input, dtype="float32")
    name = model.signature.inputs[0].name

    def served(some: Sequence[Prepared]) -> list[Found]:
        extra = {name: np.stack([row] * len(some)) for name, row in head.extra.items()}
        return list(head.decode(model.run({name: normaliser.tensor(some, size=len(some))} | extra), floor=-1.0))

    limits = np.array((complete.input.size_wh or (0, 0)) * 2, np.float32)
    worst = Parity(0.0, 0.0)
    for answers in (served(pictures), [found for one in pictures for found in served([one])]):
        for found, boxes, of_classes in zip(answers, xyxy, scores, strict=True):
            if suppression is not None:
                apart = _rows_apart(found, boxes, of_classes, limits, suppression)
            elif told == "cells":
                apart = _cells_apart(found, boxes, of_classes.max(axis=1), limits)
            else:
                apart = _queries_apart(found, boxes, of_classes, limits, ranked=told == "ranks")
            worst = Parity(*np.maximum(worst, apart).tolist())  # which keeps a NaN, as max does not
    most_pixels = MOST_PIXELS_APART if told == "cells" else MOST_PIXELS_OF_A_QUERY
    if not (worst.pixels <= most_pixels and worst.score <= MOST_SCORE_APART):
        raise TrainerFailed(
            f"The written file does not answer as the trained model does: {worst.pixels:.4f} pixels, "
            f"{worst.score:.5f} in the score.",
            hint="Please report the model; train it with another trainer (command, openmmlab) meanwhile.",
        )
    return worst


def _cells_apart(found: Found, boxes: Floats, scores: Floats, limits: Floats) -> Parity:
    """Cell by cell: `boxes` [n, 4] and the best of their `scores` [n]."""
    chosen = np.argsort(-scores)[:COMPARED]
    # as served: what sticks out of the picture, however far, is cut off
    served, meant = (np.clip(some[chosen], 0, limits) for some in (found.xyxy, boxes))
    pixels = float(np.abs(served - meant).max(initial=0))
    return Parity(pixels, float(np.abs(found.scores[chosen] - scores[chosen]).max(initial=0)))


def _rows_apart(found: Found, boxes: Floats, scores: Floats, limits: Floats, suppression: Suppression) -> Parity:
    """Every row against the cell that it comes from, among `boxes` [n, 4] and `scores` [n, c]; and the score of a cell
    that should have become a row."""
    real = found.scores > 0
    rows = Found(found.xyxy[real], found.scores[real], found.classes[real])
    pixels = np.abs(np.clip(boxes, 0, limits) - np.clip(rows.xyxy, 0, limits)[:, None]).max(axis=2)
    by_score = np.abs(scores[:, rows.classes].T - rows.scores[:, None])
    cell = (pixels / MOST_PIXELS_APART + by_score / MOST_SCORE_APART).argmin(axis=1)[:, None]
    farthest, worst = (float(np.take_along_axis(some, cell, axis=1).max(initial=0)) for some in (pixels, by_score))
    return Parity(farthest, max(worst, _missing(rows, boxes, scores, suppression)))


def _queries_apart(found: Found, boxes: Floats, scores: Floats, limits: Floats, *, ranked: bool) -> Parity:
    """What is served may come in another order, where scores are nearly the same, and the last of it may be others:
    each has its own partner among the queries and their classes, all together as near as can be."""
    from scipy.optimize import linear_sum_assignment

    if ranked:
        queries, classes = np.unravel_index(np.argsort(-scores, axis=None)[: 2 * len(found.scores)], scores.shape)
    else:
        queries, classes = np.nonzero(scores >= scores.max(axis=1, keepdims=True) - 10 * MOST_SCORE_APART)
    pixels = np.abs(np.clip(boxes, 0, limits)[queries] - np.clip(found.xyxy, 0, limits)[:, None]).max(axis=2)
    by_score = np.abs(scores[queries, classes] - found.scores[:, None])
    other = found.classes[:, None] != classes
    row, column = linear_sum_assignment(pixels / MOST_PIXELS_OF_A_QUERY + by_score / MOST_SCORE_APART + FAR * other)
    missing = float("inf") if other[row, column].any() else 0.0
    return Parity(float(pixels[row, column].max(initial=missing)), float(by_score[row, column].max(initial=missing)))


def _missing(rows: Found, boxes: Floats, scores: Floats, suppression: Suppression) -> float:
    """The highest score, of the best cells, that is in no row without a reason: a better box of its class over it, a
    class or an answer that is full, a score below the file's threshold."""
    cells, classes = np.unravel_index(np.argsort(-scores, axis=None)[:COMPARED], scores.shape)
    best = scores[cells, classes]
    corners, theirs = (_upright(some.astype(np.float64)) for some in (boxes[cells], rows.xyxy))
    over = iou(corners, theirs) > suppression.most_iou - IOU_ROUNDING
    itself = np.abs(corners[:, None] - theirs).max(axis=2, initial=0) <= MOST_PIXELS_APART
    better = (rows.classes == classes[:, None]) & (rows.scores >= best[:, None] - MOST_SCORE_APART)
    full = np.bincount(rows.classes, minlength=scores.shape[1])[classes] >= suppression.most_of_class
    lowest = rows.scores.min() if len(rows.scores) == suppression.most else 0.0
    wanted = best > max(suppression.least_score, lowest) + MOST_SCORE_APART
    if suppression.most_cells is not None and suppression.most_cells < len(scores):
        peaks = scores.max(axis=1)
        wanted &= peaks[cells] > np.sort(peaks)[-suppression.most_cells] + MOST_SCORE_APART
    return float(best[wanted & ~full & ~((over | itself) & better).any(axis=1)].max(initial=0))


def _upright(xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    """The operator takes any two corners."""
    first, last = xyxy[:, :2], xyxy[:, 2:]
    return np.concatenate([np.minimum(first, last), np.maximum(first, last)], axis=1)

"""What was learned, written back into the ONNX file, and compared with what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.engines.detect.head import Found, Head
from labelloop.engines.detect.prepare import Normaliser, Prepared
from labelloop.engines.detect.recognise import recognise
from labelloop.engines.onnx import OnnxModel
from labelloop.learning.trainers.base import TrainerFailed, replace_file
from labelloop.learning.trainers.onnx_graph import OnnxGraph

if TYPE_CHECKING:
    from torch import nn

MOST_PIXELS_APART = 2e-3
MOST_SCORE_APART = 1e-4
COMPARED = 300
"""Boxes compared per picture: as many as the engine returns at most."""


class Parity(NamedTuple):
    """How far the file and the module are apart: corners in pixels of the network input, scores."""

    pixels: float
    score: float


def write_back(graph: OnnxGraph, weights: Mapping[str, nn.Parameter]) -> None:
    """Put learned weights into the initializers of the same name."""
    for name, value in weights.items():
        graph.set_constant(name, value.detach().cpu().float().numpy())


def save(graph: OnnxGraph, path: Path, *, labels: Sequence[str]) -> None:
    """Check and write the model file, in one step. Class names go where the file already keeps them."""
    for one in graph.model.metadata_props:
        if one.key == "names":
            one.value = str(dict(enumerate(labels)))
    onnx.checker.check_model(graph.model)
    replace_file(path, lambda fresh: onnx.save(graph.model, fresh))


def parity(
    path: Path,
    card: ModelCard,
    pictures: Sequence[Prepared],
    xyxy: NDArray[np.float32],
    scores: NDArray[np.float32],
    *,
    ranked: bool,
) -> Parity:
    """Serve `pictures` with the file, one by one and all together, decode as the engine does, and compare the best
    boxes with the module's `xyxy` [b, n, 4] and class `scores` [b, n, c]. `ranked`: the file gives the best of its
    n * c scores, not a row for each box.

    Raises TrainerFailed when they are further apart than 0.002 pixels or 0.0001.
    """
    model = OnnxModel(path)
    head, complete = recognise(model.signature, card)
    normaliser = Normaliser(complete.input, dtype="float32")
    name = model.signature.inputs[0].name
    together, *alone = (
        model.run({name: normaliser.tensor(some, size=len(some))} | _extra(head, len(some)))
        for some in (pictures, *([one] for one in pictures))
    )
    compare = _apart_by_rank if ranked else _apart_by_place
    limits = np.array((complete.input.size_wh or (0, 0)) * 2, np.float32)
    worst = Parity(0.0, 0.0)
    for outputs in (together, [np.concatenate(parts) for parts in zip(*alone, strict=True)]):
        for found, boxes, sure in zip(head.decode(outputs, floor=-1.0), xyxy, scores, strict=True):
            # as served: what sticks out of the picture, however far, is cut off
            served, meant = (np.clip(some, 0, limits) for some in (found.xyxy, boxes))
            apart = compare(found._replace(xyxy=served), meant, sure)
            worst = Parity(max(worst.pixels, apart.pixels), max(worst.score, apart.score))
    if not (worst.pixels <= MOST_PIXELS_APART and worst.score <= MOST_SCORE_APART):
        raise TrainerFailed(
            f"The written file does not answer as the trained model does: {worst.pixels:.4f} pixels, "
            f"{worst.score:.5f} in the score.",
            hint="Please report the model; train it with another trainer (command, openmmlab) meanwhile.",
        )
    return worst


def _apart_by_place(found: Found, xyxy: NDArray[np.float32], scores: NDArray[np.float32]) -> Parity:
    best = scores.max(axis=1)
    chosen = np.argsort(-best)[:COMPARED]
    pixels = float(np.abs(found.xyxy[chosen] - xyxy[chosen]).max(initial=0))
    return Parity(pixels, float(np.abs(found.scores[chosen] - best[chosen]).max(initial=0)))


def _apart_by_rank(found: Found, xyxy: NDArray[np.float32], scores: NDArray[np.float32]) -> Parity:
    """Scores that are nearly the same may come in another order, and the last of them may be others: each that is
    served has its own partner among those that are meant, of the same class, all together as near as can be."""
    from scipy.optimize import linear_sum_assignment

    places = np.argsort(-scores, axis=None)[: 2 * len(found.scores)]
    queries, classes = np.divmod(places, scores.shape[1])
    pixels = np.abs(found.xyxy[:, None] - xyxy[queries]).max(axis=2)
    apart = np.abs(found.scores[:, None] - scores.reshape(-1)[places])
    other_class = found.classes[:, None] != classes
    rows, columns = linear_sum_assignment(pixels / MOST_PIXELS_APART + apart / MOST_SCORE_APART + 1e9 * other_class)
    pixels[other_class], apart[other_class] = np.inf, np.inf
    return Parity(float(pixels[rows, columns].max(initial=0)), float(apart[rows, columns].max(initial=0)))


def _extra(head: Head, count: int) -> dict[str, NDArray[Any]]:
    return {name: np.stack([row] * count) for name, row in head.extra.items()}

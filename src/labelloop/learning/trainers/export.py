"""What was learned, written back into the ONNX file, and compared with what was trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import onnx
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
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
) -> Parity:
    """Serve `pictures` with the file, one by one and all together, decode as the engine does, and compare the best
    cells with the module's `xyxy` [b, n, 4] and best class `scores` [b, n].

    Raises TrainerFailed when they are further apart than 0.002 pixels or 0.0001.
    """
    model = OnnxModel(path)
    head, complete = recognise(model.signature, card)
    normaliser = Normaliser(complete.input, dtype="float32")
    name = model.signature.inputs[0].name
    together = model.run({name: normaliser.tensor(pictures, size=len(pictures))})
    alone = [model.run({name: normaliser.tensor([one], size=1)}) for one in pictures]
    limits = np.array((complete.input.size_wh or (0, 0)) * 2, np.float32)
    worst = Parity(0.0, 0.0)
    for outputs in (together, [np.concatenate(parts) for parts in zip(*alone, strict=True)]):
        for found, boxes, best in zip(head.decode(outputs, floor=-1.0), xyxy, scores, strict=True):
            chosen = np.argsort(-best)[:COMPARED]
            # as served: what sticks out of the picture, however far, is cut off
            served, meant = (np.clip(some[chosen], 0, limits) for some in (found.xyxy, boxes))
            pixels = float(np.abs(served - meant).max(initial=0))
            score = float(np.abs(found.scores[chosen] - best[chosen]).max(initial=0))
            worst = Parity(max(worst.pixels, pixels), max(worst.score, score))
    if not (worst.pixels <= MOST_PIXELS_APART and worst.score <= MOST_SCORE_APART):
        raise TrainerFailed(
            f"The written file does not answer as the trained model does: {worst.pixels:.4f} pixels, "
            f"{worst.score:.5f} in the score.",
            hint="Please report the model; train it with another trainer (command, openmmlab) meanwhile.",
        )
    return worst

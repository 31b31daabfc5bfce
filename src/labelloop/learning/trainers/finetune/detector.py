"""A detector taken apart: the frozen part for ONNX Runtime, the rest as a torch module with a new class layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from torch import Tensor

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.engines.detect import DetectEngine
from labelloop.engines.detect.prepare import Normaliser, Prepared
from labelloop.learning.trainers.base import TrainerRefused, TrainRequest
from labelloop.learning.trainers.finetune.assign import Objects, assign
from labelloop.learning.trainers.finetune.class_layer import Rows
from labelloop.learning.trainers.finetune.cut import Cut, find_cut, find_head
from labelloop.learning.trainers.finetune.families import Answers, Family, LastLayers, Points, points_of
from labelloop.learning.trainers.finetune.known_shapes import settle_shapes
from labelloop.learning.trainers.finetune.losses import detection_loss
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph, free_batch, read_graph
from labelloop.learning.trainers.finetune.onnx_torch import Agreement, OnnxModule, check, open_session
from labelloop.learning.trainers.finetune.recipes import FAMILIES, located, why_not
from labelloop.learning.trainers.finetune.rtmdet import points_in_cells
from labelloop.learning.trainers.finetune.set_loss import set_loss
from labelloop.learning.trainers.finetune.suppression import Suppression, take_off

FRESH_LOGIT = 0.0
"""Where there is an objectness, the score of a class not yet learned starts at half of it, for all classes alike."""


class Detector(NamedTuple):
    """`graph` is the whole model with the new class layer, `image` its input for pictures. `frozen` makes `module`'s
    inputs from a picture; None when the module starts from the picture itself. `suppression` is what the graph ended in
    and has to end in again."""

    graph: OnnxGraph
    image: str
    card: ModelCard
    family: Family
    layers: LastLayers
    cut: Cut | None
    frozen: ort.InferenceSession | None
    module: OnnxModule
    points: Points
    normaliser: Normaliser
    suppression: Suppression | None

    def pixels(self, pictures: Sequence[Prepared]) -> NDArray[np.float32]:
        """The network's input [b, 3, h, w]."""
        return np.asarray(self.normaliser.tensor(pictures, size=len(pictures)), np.float32)

    def features(self, pictures: Sequence[Prepared]) -> list[NDArray[np.float32]]:
        """The inputs of the module."""
        pixels = self.pixels(pictures)
        if self.frozen is None or self.cut is None:
            return [pixels]
        return list(self.frozen.run(list(self.cut.values), {self.image: pixels}))

    def answers(self, maps: Sequence[Tensor], points: Points) -> Answers:
        """What the module says about its inputs; differentiable. `points` are ours, on the device of the maps."""
        values = dict(zip(self.module.outputs, self.module(*maps), strict=True))
        return self.family.answers(self.layers, values, points)

    def loss(self, answers: Answers, objects: Objects, points: Points) -> Tensor:
        if self.family.strides:
            return detection_loss(answers, assign(answers, objects, points))
        return set_loss(answers, objects, points)

    def check(self, features: Sequence[NDArray[np.float32]]) -> Agreement:
        """Compare module and ONNX Runtime on these inputs. Raises TrainerRefused where they differ."""
        part = self.graph.subgraph(self.module.inputs, self.module.outputs)
        with _refusing():
            samples = dict(zip(self.module.inputs, features, strict=True))
            return check(self.module, part, samples, rank=self.layers.chosen)


def open_detector(request: TrainRequest, *, part: str, cut: Sequence[str] = ()) -> Detector:
    """Take `request.base` apart; `part` says what is trained: "head", "neck" (and head) or "all". `cut` names the end
    of the backbone where the graph does not show it.

    Raises TrainerRefused for a family without a recipe and for a file that cannot be taken apart, ModelError for a card
    that does not fit the file.
    """
    if request.base is None or request.base_card is None:
        raise TrainerRefused("There is no model to start from.", hint="Use the trainer scratch.")
    card = DetectEngine.describe(request.base, request.base_card)
    family = FAMILIES.get(card.family or "")
    if family is None or card.input.size_wh is None:
        raise TrainerRefused(why_not(card), hint="")
    with _refusing():
        return _taken_apart(request.base, card, family, request.labels, part=part, cut=cut)


def _taken_apart(
    path: Path, card: ModelCard, family: Family, labels: tuple[str, ...], *, part: str, cut: Sequence[str]
) -> Detector:
    assert card.input.size_wh is not None
    graph = read_graph(path, size_wh=card.input.size_wh)
    points = points_of(family, card.input.size_wh)
    suppression = take_off(graph, cells=len(points.cells))
    free_batch(graph)
    image = next(name for name in graph.inputs if len(graph.shapes[name]) == 4)
    if not family.strides:
        settle_shapes(graph, image=image, joined=True)  # a decoder reckons with shapes all the way
    layers = located(family, graph, card)
    _give_classes(graph, family, layers, card.labels, labels)
    trained_card = msgspec.structs.replace(card, labels=labels, sha256="")
    layers = located(family, graph, trained_card)
    if suppression is not None:
        points = points._replace(centres=points_in_cells(graph, points.cells, points.strides))
    place = _cut(graph, layers, image=image, family=card.family or "", part=part, names=tuple(cut))
    return Detector(
        graph=graph,
        image=image,
        card=trained_card,
        family=family,
        layers=layers,
        cut=place,
        frozen=open_session(graph.subgraph([image], place.values)) if place else None,
        module=OnnxModule(graph, inputs=place.values if place else [image], outputs=layers.values, apart=layers.apart),
        points=points,
        normaliser=Normaliser(card.input, dtype="float32"),
        suppression=suppression,
    )


@contextmanager
def _refusing() -> Iterator[None]:
    """A file that cannot be taken apart may be one for another trainer."""
    try:
        yield
    except ModelError as error:
        raise TrainerRefused(error.message, hint=error.hint) from error


def _cut(
    graph: OnnxGraph, layers: LastLayers, *, image: str, family: str, part: str, names: tuple[str, ...]
) -> Cut | None:
    if part == "all":
        return None
    cut = find_cut(graph, image=image, family=family, names=names)
    return cut if part == "neck" else find_head(graph, layers.classes, cut, image=image)


def _give_classes(graph: OnnxGraph, family: Family, layers: LastLayers, old: Sequence[str], new: Sequence[str]) -> None:
    """Rows of labels that the model knows already are kept, whatever their order; the others start alike."""
    by_name = {name.casefold(): index for index, name in enumerate(old)}
    places = [by_name.get(name.casefold()) for name in new]
    fresh = FRESH_LOGIT if layers.objectness else None
    family.give_classes(graph, layers, [_rows(graph, one, places, fresh) for one in layers.classes])


def _rows(graph: OnnxGraph, layer: Rows, places: Sequence[int | None], fresh: float | None) -> list[NDArray[Any]]:
    """New weight and bias of one class layer. Without an objectness to lean on, a new class starts as the mean of the
    old ones: where the model sees something, whatever it is."""
    rows = []
    for name, axis in zip(layer.weights, layer.axes, strict=False):
        old = np.moveaxis(graph.constants[name], axis, 0)[layer.start : layer.stop]
        blank = old.mean(axis=0) if fresh is None else np.full(old.shape[1:], fresh if old.ndim == 1 else 0.0)
        rows.append(np.stack([blank if place is None else old[place] for place in places]).astype(np.float32))
    return rows

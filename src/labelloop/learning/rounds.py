"""One round of a simulated loop: train on what is labelled, measure on what is held out, look at what is left.

No server and no store: the model file is loaded as serving loads it, and mapped onto the labels as on a project's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, TypeVar

import msgspec

from labelloop.core import plugins
from labelloop.core.cards import ModelCard
from labelloop.core.regions import Box, Region
from labelloop.engines.base import Engine, EngineFactory, EngineOptions
from labelloop.engines.labels import named
from labelloop.formats import coco
from labelloop.labelstudio.config import Control, Label, LabelConfig, ObjectTag
from labelloop.labelstudio.labelmap import LabelMap, build_label_map
from labelloop.learning.detections import truth_of
from labelloop.learning.evaluate import found_in
from labelloop.learning.labelled import PICTURE
from labelloop.learning.manifest import SIDES, Item, Manifest, as_coco, encode
from labelloop.learning.measures import Measures, measure
from labelloop.learning.pool import Observation, score_of
from labelloop.media.image import decode

T = TypeVar("T")


class Model(NamedTuple):
    """A loaded model, and what of it is drawn under which label."""

    engine: Engine
    labels: LabelMap


class Seen(NamedTuple):
    """What a model says about one picture that nobody has labelled; `drawn` in the labels of the data set."""

    observation: Observation
    drawn: tuple[Region, ...]


class Pictures(NamedTuple):
    """The pictures of a manifest, stored upright in a folder."""

    manifest: Manifest
    folder: Path
    max_pixels: int

    def ask(self, model: Model, items: Sequence[Item], take: Callable[[Item, tuple[Region, ...]], T]) -> list[T]:
        """What `take` makes of what `model` finds on each picture, in order. Only what it returns is kept."""
        engine = model.engine

        def one(item: Item) -> T:
            picture = decode(
                (self.folder / item.file_name).read_bytes(), min_size=engine.input_size, max_pixels=self.max_pixels
            )
            return take(item, engine.predict([engine.prepare(picture)])[0])

        with ThreadPoolExecutor(engine.parallel, thread_name_prefix="pictures") as threads:
            return list(threads.map(one, items))


def open_model(
    path: Path, card: ModelCard, labels: Sequence[str], *, threshold: float | None, device: str, threads: int
) -> Model:
    """Load a model file for a project with these labels. `threshold` None takes the card's. Raises ModelError."""
    factory: EngineFactory = plugins.load("labelloop.engines", card.engine)
    engine = factory(path, card, EngineOptions(device=device, threads=threads))
    threshold = card.score_threshold if threshold is None else threshold
    label_map = build_label_map(config_of(labels), named(engine.classes), task=card.task, threshold=threshold)
    return Model(engine, label_map)


def config_of(labels: Sequence[str]) -> LabelConfig:
    """A project in which boxes with these labels are drawn on one picture."""
    choices = tuple(Label(label, (label,)) for label in labels)
    picture = ObjectTag("image", "Image", PICTURE.field)
    return LabelConfig((Control("label", "RectangleLabels", ("image",), choices),), (picture,))


def measured(model: Model, pictures: Pictures) -> Measures:
    """How good a model is on what is held out."""
    truth = truth_of(as_coco(pictures.manifest, "val"))
    found = pictures.ask(model, pictures.manifest.on("val"), lambda _, regions: regions)
    return measure(truth, found_in(found, model.labels, truth.labels))


def look(model: Model, pictures: Pictures, items: Sequence[Item]) -> dict[int, Seen]:
    """What a model says about pictures, by task."""

    def take(item: Item, regions: tuple[Region, ...]) -> Seen:
        return _seen(item.task_id, regions, model.labels)

    return {seen.observation.task_id: seen for seen in pictures.ask(model, items, take)}


def truth_on(item: Item) -> tuple[Region, ...]:
    """What people drew on a picture."""
    return tuple(Region(Box(one.xyxy), label=one.label) for one in item.drawn)


def write_round(pictures: Pictures, labelled: Collection[int], target: Path) -> Path:
    """The folder that a trainer reads: of the pictures that are not held out only those that are `labelled`. Writing it
    again changes nothing, so that an interrupted training knows it."""
    manifest = msgspec.structs.replace(pictures.manifest, items=tuple(_known(pictures.manifest.items, labelled)))
    target.mkdir(parents=True, exist_ok=True)
    images = target / "images"
    if not images.is_symlink():
        images.symlink_to(pictures.folder.resolve(), target_is_directory=True)
    for side in SIDES:
        coco.write(target / f"{side}.json", as_coco(manifest, side))
    (target / "manifest.json").write_bytes(encode(manifest))
    return target


def _known(items: Iterable[Item], labelled: Collection[int]) -> Iterable[Item]:
    wanted = set(labelled)
    return (item for item in items if item.side == "val" or item.task_id in wanted)


def _seen(task_id: int, regions: Sequence[Region], labels: LabelMap) -> Seen:
    drawn, hidden = list[Region](), 0.0
    for region in regions:
        targets = labels.targets_of(region)
        if targets:
            drawn.append(msgspec.structs.replace(region, label=targets[0].label))
        else:
            hidden = max(hidden, score_of(region))
    scores = tuple(score_of(region) for region in drawn)
    observation = Observation(task_id, scores=scores, labels=tuple(r.label or "" for r in drawn), hidden=hidden)
    return Seen(observation, tuple(drawn))

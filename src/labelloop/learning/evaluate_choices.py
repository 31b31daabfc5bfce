"""A model version on held-out pictures or texts that people made choices about, asked as people ask it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from labelloop.core.errors import ModelFailed
from labelloop.core.regions import ItemError, Prediction, Whole
from labelloop.core.tasks import Task
from labelloop.labelstudio.config import ObjectTag
from labelloop.learning.choices import ChoiceMeasures, ChoiceMetric, Chosen, commonest, flags_of, measure, sampled
from labelloop.learning.detections import Flags, Floats
from labelloop.learning.evaluate import BATCH, Predict, data_uri
from labelloop.learning.manifest import Item, Manifest
from labelloop.serving.projects import View


class ChoiceEvaluation(msgspec.Struct, frozen=True):
    """What a version chose for held-out items, and how good that is. `truth` and `found` are [n, c]."""

    model: str
    labels: tuple[str, ...]
    reads: str
    truth: Flags
    found: Flags
    measures: ChoiceMeasures

    @property
    def items(self) -> int:
        return len(self.truth)

    @property
    def answers(self) -> int:
        return len(self.truth)  # without any choice is an answer too, where several may be true

    @property
    def described(self) -> str:
        return f"{self.items} held-out {self.reads}"

    def value(self, metric: str) -> float | None:
        known: ChoiceMetric = "accuracy" if metric == "accuracy" else "macro-F1"
        return self.measures.value(known)

    def floor(self, metric: str) -> float:
        """What the most frequent answer reaches, given always."""
        value = sampled(self.truth, commonest(self.truth), metric, np.ones((1, self.items)))[0]
        return 0.0 if np.isnan(value) else float(value)

    def sampled(self, metric: str, draws: Floats) -> Floats:
        return sampled(self.truth, self.found, metric, draws)

    def same_items(self, other: object) -> bool:
        same = isinstance(other, ChoiceEvaluation) and self.labels == other.labels
        return same and np.array_equal(self.truth, other.truth)  # type: ignore[attr-defined]


def evaluate_choices(manifest: Manifest, folder: Path, view: View, predict: Predict) -> ChoiceEvaluation:
    """Ask the version of `view` about what is held out of the data set in `folder`, and measure what it would choose.

    A version none of whose classes has a label in the project chooses nothing. Raises ModelFailed when no item at all
    gets an answer: that says nothing about how good the model is.
    """
    items = manifest.on("val")
    truth = flags_of([item.said for item in items], manifest.labels)
    chosen = Chosen(np.zeros(truth.shape, bool), np.zeros(truth.shape))
    asked = _one_field(view, manifest)
    failures: list[ItemError] = []
    seconds = 0.0
    for start in range(0, len(items), BATCH) if asked.label_map.fields else ():
        tasks = [_task(item, folder, asked) for item in items[start : start + BATCH]]
        begun = time.perf_counter()
        predictions = predict(tasks, asked)
        seconds += time.perf_counter() - begun
        failures += [one.error for one in predictions if one.error is not None]
        for row, prediction in enumerate(predictions, start):
            _note(prediction, view, manifest.labels, chosen, row)
    if failures and len(failures) == len(items):
        raise ModelFailed(f"{view.version.id} answered for none of {len(items)} held-out items: {failures[-1].message}")
    measures = measure(
        truth, chosen, manifest.labels, seconds_per_item=seconds / max(1, len(items)), failed=len(failures)
    )
    return ChoiceEvaluation(view.version.id, manifest.labels, manifest.reads, truth, chosen.flags, measures)


def _one_field(view: View, manifest: Manifest) -> View:
    """The same version with its thresholds, on one picture or text a task; texts are kept as they are read."""
    labels = view.label_map
    if not labels.fields:
        return view
    first = labels.fields[0]
    tag = ObjectTag(first.name, "Text" if manifest.reads == "texts" else first.tag, first.field)
    targets = {
        key: tuple(msgspec.structs.replace(target, object=tag) for target in found[:1])
        for key, found in labels.targets.items()
    }
    return msgspec.structs.replace(view, label_map=msgspec.structs.replace(labels, targets=targets, fields=(tag,)))


def _task(item: Item, folder: Path, view: View) -> Task:
    (tag,) = view.label_map.fields
    content = item.text if item.text is not None else data_uri(folder / "images" / item.file_name)
    return Task(item.task_id, {tag.field: content})


def _note(prediction: Prediction, view: View, known: Sequence[str], chosen: Chosen, row: int) -> None:
    """Write what would be chosen into row `row`."""
    for region in prediction.regions:
        if not isinstance(region.shape, Whole):
            continue
        for target in view.label_map.targets_of(region)[:1]:
            if target.label in known:
                at = known.index(target.label)
                chosen.flags[row, at] = True
                chosen.scores[row, at] = max(chosen.scores[row, at], 1.0 if region.score is None else region.score)

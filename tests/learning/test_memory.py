"""What is remembered of predictions: everything an order needs, and never at anybody's expense."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.regions import Box, ItemError, Prediction, Region
from labelloop.core.settings import read_settings
from labelloop.core.tasks import Task
from labelloop.learning.memory import Recorder, keep, packed, recall, remember, unpacked
from labelloop.learning.pool import Observation
from labelloop.serving.models import Store, add_model, open_store
from labelloop.serving.projects import Lens, View
from labelloop.store.scores import Scores, Seen

CONFIG = """<View><Image name="img" value="$image"/><RectangleLabels name="box" toName="img">
<Label value="Vehicle" predicted_values="car,truck"/><Label value="Bus"/></RectangleLabels></View>"""


def region(label: str | None, score: float | None) -> Region:
    return Region(Box((0, 0, 1, 1)), label, score)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = open_store(read_settings(home=tmp_path / "home"))
    yield made
    made.engine.dispose()


@pytest.fixture
def view(store: Store, tmp_path: Path) -> View:
    card = ModelCard(name="cars", engine="empty", labels=("car", "truck", "bus"))
    version = add_model(store.registry, None, card, read_settings(home=tmp_path / "home"))
    return Lens(threshold=0.3).view(version, CONFIG)


def test_an_observation_survives_to_the_last_digit() -> None:
    scores = tuple(np.random.default_rng(0).random(300).tolist())
    regions = [region(f"class {number % 7}", score) for number, score in enumerate(scores)]
    seen = remember(7, regions, 0.1 + 0.2, label_of=lambda one: one.label)
    assert recall(seen) == Observation(7, scores, tuple(one.label or "" for one in regions), hidden=0.1 + 0.2)
    assert len(seen.content) < 300 * 9 + 200
    assert recall(remember(8, [], 0.0, label_of=str)) == Observation(8)
    assert recall(Seen(8, seen.content, 0.25)).inconsistency == 0.25


def test_regions_are_remembered_under_the_labels_that_people_see(store: Store, view: View) -> None:
    found = Prediction((region("car", 0.9), region("truck", 0.8), region("bus", 0.7), region(None, None)), hidden=0.2)
    keep(store.scores, [Task(1, {}, 5)], [found], view)
    (seen,) = store.scores.all(5, view.name)
    assert recall(seen) == Observation(1, (0.9, 0.8, 0.7, 1.0), ("Vehicle", "Vehicle", "Bus", ""), hidden=0.2)


def test_what_failed_or_has_no_id_is_not_remembered(store: Store, view: View) -> None:
    tasks = [Task(1, {}, 5), Task(None, {}, 5), Task(3, {}, None), Task(4, {}, 6)]
    lost = Prediction(error=ItemError("media", "gone"))
    keep(store.scores, tasks, [lost, Prediction(), Prediction(), Prediction()], view)
    assert [seen.task_id for seen in store.scores.all(5, view.name)] == []
    assert [seen.task_id for seen in store.scores.all(6, view.name)] == [4]


def test_embeddings_are_kept_in_single_precision() -> None:
    vector = np.array([0.1, -2.0, 3e7])
    assert unpacked(packed(vector)).tolist() == vector.astype(np.float32).tolist()


def test_the_recorder_writes_behind_the_back_of_whoever_answers(store: Store, view: View) -> None:
    recorder = Recorder(store.scores)
    recorder.note([Task(1, {}, 5), Task(2, {}, 5)], [Prediction(hidden=0.2), Prediction()], view)
    recorder.note([Task(1, {}, 5)], [Prediction(hidden=0.4)], view)
    recorder.flush()
    assert [recall(seen).hidden for seen in store.scores.all(5, view.name)] == [0.4, 0.0]
    recorder.note([Task(3, {}, 5)], [Prediction()], view)
    recorder.close()
    assert [seen.task_id for seen in store.scores.all(5, view.name)] == [1, 2, 3]


class Stuck(Scores):
    """A database that takes its time, and then fails."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.tried: list[list[int]] = []

    def put(self, project_id: int, version: str, rows: Sequence[Seen]) -> None:
        self.entered.set()
        assert self.gate.wait(60)
        self.tried.append([row.task_id for row in rows])
        if len(self.tried) == 1:
            raise OSError("disk full")


def test_a_database_that_hangs_or_fails_costs_nobody_anything(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelloop.learning.memory.WAITING", 2)
    scores = Stuck()
    recorder = Recorder(scores)
    answer: list[Any] = [[Prediction()], view]
    recorder.note([Task(1, {}, 5)], *answer)
    assert scores.entered.wait(60)  # the first is being written; two may wait, the others are dropped
    for task in range(2, 9):
        recorder.note([Task(task, {}, 5)], *answer)
    scores.gate.set()
    recorder.flush()
    assert scores.tried == [[1], [2, 3]]
    recorder.note([Task(10, {}, 5)], *answer)
    recorder.close()
    assert scores.tried == [[1], [2, 3], [10]]

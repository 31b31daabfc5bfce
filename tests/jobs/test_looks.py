"""Second looks through the real prediction path: decoded pictures, thresholds, mirror images, embeddings."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from labelloop.app import open_looks
from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region
from labelloop.core.settings import Settings, read_settings
from labelloop.core.tasks import Task
from labelloop.engines.base import Engine
from labelloop.jobs.looks import Looks
from labelloop.learning.features import DIMENSIONS
from labelloop.serving.models import add_model, open_store
from labelloop.serving.projects import Lens
from labelloop.testing import FakeEngine
from reference.running_server import CONFIG


def picture(*, bright: str) -> str:
    """40 x 20, one half white."""
    rgb = np.zeros((20, 40, 3), np.uint8)
    half = slice(0, 20) if bright == "left" else slice(20, 40)
    rgb[:, half] = 255
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", rgb)[1].tobytes()).decode()


LEFT, RIGHT = picture(bright="left"), picture(bright="right")


def is_bright_left(seen: Picture) -> bool:
    return bool(seen.rgb[0, 0, 0] > 128)


def bright_half(seen: Picture) -> tuple[Region, ...]:
    """What a sound detector says: it follows the bright half."""
    return (Region(Box((0, 0, 20, 20) if is_bright_left(seen) else (20, 0, 40, 20)), "car", 0.9),)


def always_left(seen: Picture) -> tuple[Region, ...]:
    """What one says that looks at nothing."""
    return (Region(Box((0, 0, 20, 20)), "car", 0.9),)


def hesitant(seen: Picture) -> tuple[Region, ...]:
    """The same box both times, the second time below the threshold."""
    (region,) = bright_half(seen)
    return (Region(region.shape, "car", 0.9 if is_bright_left(seen) else 0.2), Region(region.shape, "unknown", 0.9))


class Knowing(FakeEngine):
    """An engine with an embedding of its own."""

    def embed(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        return np.stack([np.array([1.0, float(is_bright_left(item))], np.float32) for item in batch])


@contextmanager
def looking(settings: Settings, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Looks]:
    store = open_store(settings)
    version = add_model(store.registry, None, ModelCard(name="cars", engine="empty", labels=("car",)), settings)
    view = Lens(threshold=0.3).view(version, CONFIG)
    monkeypatch.setattr("labelloop.app.load_engine", lambda *_: engine)
    with open_looks(settings, store, view, project_id=1, label_studio=("http://127.0.0.1:1", "token")) as looks:
        yield looks
    store.engine.dispose()


@pytest.fixture
def settings(tmp_path: Any) -> Settings:
    return read_settings(home=tmp_path / "home")


TASKS = [Task(1, {"image": LEFT}, 1), Task(2, {"image": "data:,x"}, 1), Task(3, {"image": RIGHT}, 1), Task(4, {}, 1)]


@pytest.mark.parametrize(
    ("find", "doubts"),
    [
        pytest.param(bright_half, {1: 0.0, 3: 0.0}, id="agrees with itself"),
        pytest.param(always_left, {1: 1.0, 3: 1.0}, id="says the same about another picture"),
        pytest.param(hesitant, {1: 0.7, 3: 0.7}, id="what is not drawn counts for what is"),
        pytest.param(lambda _: (), {1: 0.0, 3: 0.0}, id="nothing both times"),
    ],
)
def test_consistency_of_two_looks(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, find: Any, doubts: dict[int, float]
) -> None:
    engine = FakeEngine(find, classes=("car", "unknown"))
    with looking(settings, engine, monkeypatch) as looks:
        assert looks.inconsistencies(TASKS) == pytest.approx(doubts)


def test_embeddings_come_from_the_engine_where_it_has_some(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with looking(settings, Knowing(), monkeypatch) as looks:
        found = looks.embeddings(TASKS)
    assert {task: vector.tolist() for task, vector in found.items()} == {1: [1, 1], 3: [1, 0]}


def test_embeddings_are_pooled_features_otherwise(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with looking(settings, FakeEngine(), monkeypatch) as looks:
        found = looks.embeddings([*TASKS, Task(5, {"image": LEFT}, 1)])
    assert set(found) == {1, 3, 5}
    assert found[1].shape == (DIMENSIONS,)
    assert np.array_equal(found[1], found[5])
    assert not np.allclose(found[1], found[3])


def test_a_model_that_does_not_load_is_said_before_anything_is_read(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: Picture) -> tuple[Region, ...]:
        raise ValueError("no memory")

    with pytest.raises(ModelFailed, match="no memory"), looking(settings, FakeEngine(broken), monkeypatch):
        pass

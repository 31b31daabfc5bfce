"""Promotions and rollbacks while people ask: real ONNX files, steady requests, and nobody notices a swap."""

from __future__ import annotations

import base64
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread

import httpx
import pytest

from labelloop.app import assemble, create_app
from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.engines.base import Engine
from labelloop.serving.models import add_model, load_engine, open_registry
from labelloop.store.registry import ModelVersion
from labelloop.testing import FakeEngine, LoopbackServer
from reference.running_server import Backend, jpeg
from reference.tiny_models import Thing, build_v8, ultralytics_metadata

SIZE = (64, 64)
RATE_HZ = 30
SWAPS = 10
LEFT_PX = {"old@1": 8, **{f"new@{number}": 8 + 8 * number for number in range(1, SWAPS // 2 + 1)}}
"""Where the box begins that each version sees: the answer itself says who made it."""


def promoted_by(swap: int) -> str:
    """Every other swap promotes a version that was never loaded before; the ones between go back."""
    return "old@1" if swap % 2 else f"new@{swap // 2 + 1}"


class Crowd:
    """Asks RATE_HZ times a second whatever the answers do (an open loop), with pictures that no cache has seen."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._pool = ThreadPoolExecutor(16)
        self._end = Event()
        self._thread = Thread(target=self._ask)
        self.answers: list[Future[httpx.Response]] = []

    def _ask(self) -> None:
        began = time.monotonic()
        while not self._end.wait(max(0.0, began + len(self.answers) / RATE_HZ - time.monotonic())):
            uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(*SIZE, seed=len(self.answers))).decode()
            tasks = [{"id": len(self.answers) + 1, "data": {"image": uri}}]
            self.answers.append(self._pool.submit(self._backend.predict, tasks))

    @contextmanager
    def asking(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()
            self._pool.shutdown()


def version_of(answer: httpx.Response) -> str:
    """The version that an answer names, once its box is known to be that version's."""
    assert answer.status_code == 200, answer.text
    (prediction,) = answer.json()["results"]
    (region,) = prediction["result"]
    version = prediction["model_version"].partition(".")[0]
    assert region["value"]["x"] == pytest.approx(100 * LEFT_PX[version] / SIZE[0], abs=0.01)
    return str(version)


def named(answer: Future[httpx.Response], version: str) -> bool:
    return answer.done() and version_of(answer.result()) == version


@contextmanager
def serving(folder: Path, loaded: list[str]) -> Iterator[Backend]:
    """A server whose project 1 has old@1, and real ONNX sessions."""
    settings = read_settings(home=folder / "home", jobs=False)
    registry = open_registry(settings)
    for spec, left in LEFT_PX.items():
        name = spec.partition("@")[0]
        metadata = ultralytics_metadata(["Car"], size_wh=SIZE)
        file = build_v8(
            folder / f"{spec}.onnx",
            [Thing((left, 8, left + 8, 24), 0, 0.9)],
            size_wh=SIZE,
            classes=1,
            metadata=metadata,
        )
        add_model(registry, file, ModelCard(name=name), settings)
    registry.bind(1, "old@1")

    def load(version: ModelVersion) -> Engine:
        loaded.append(version.id)
        return load_engine(registry, settings, version)

    parts = assemble(settings, load=load)
    server = LoopbackServer(create_app(settings, parts), lifespan="on")
    server.start()
    backend = Backend(server, parts, FakeEngine(), settings.home)
    try:
        backend.wait(lambda: backend.setup(1).startswith("old@1."))
        yield backend
    finally:
        backend.http.close()
        server.stop()


@pytest.mark.slow
def test_ten_swaps_under_load_fail_nobody_and_mix_nothing(tmp_path: Path) -> None:
    loaded: list[str] = []
    with serving(tmp_path, loaded) as backend:
        swap_under_load(backend)
    assert sorted(loaded) == sorted(LEFT_PX), "each version was loaded while people asked"


def swap_under_load(backend: Backend) -> None:
    registry = open_registry(read_settings(home=backend.home))  # as another process on the same store has it
    crowd, marks = Crowd(backend), [0]
    with crowd.asking():
        for swap in range(SWAPS):
            asked_before = len(crowd.answers)
            if swap % 2:
                registry.rollback(1)
            else:
                registry.bind(1, promoted_by(swap))
            now = promoted_by(swap)
            backend.wait(lambda now=now: backend.setup(1).partition(".")[0] == now)
            backend.wait(lambda n=asked_before, now=now: any(named(one, now) for one in crowd.answers[n:]))
            marks.append(len(crowd.answers))
    versions = [version_of(answer.result()) for answer in crowd.answers]
    for swap, (first, end) in enumerate(pairwise(marks)):
        assert promoted_by(swap) in versions[first:end]

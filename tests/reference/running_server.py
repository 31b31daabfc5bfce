"""A labelloop server with real parts in a thread of this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest

from labelloop.app import Parts, assemble, create_app
from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.engines.base import Engine
from labelloop.serving.models import add_model
from labelloop.store.registry import ModelVersion
from labelloop.testing import FakeEngine, FakeLabelStudio, LoopbackServer
from reference.waiting import wait

CONFIG = '<View><Image name="img" value="$image"/><RectangleLabels name="box" toName="img"><Label value="Car"/></RectangleLabels></View>'


class Backend:
    """The server, a client for it, and the parts behind it."""

    def __init__(self, server: LoopbackServer, parts: Parts, engine: FakeEngine, home: Path) -> None:
        self.home = home
        self.url = server.url
        self.server = server
        self.parts = parts
        self.engine = engine
        self.http = httpx.Client(base_url=server.url, timeout=30, trust_env=False)

    def setup(self, project: int, *, config: str = CONFIG, studio: FakeLabelStudio | None = None) -> str:
        body = {
            "project": f"{project}.1795176116",
            "schema": config,
            "hostname": studio.url if studio else "",
            "access_token": studio.token if studio else "",
            "extra_params": "",
        }
        answer = self.http.post("/setup", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["model_version"]

    def predict(self, tasks: list[Any], *, project: int = 1, config: str = CONFIG, **params: Any) -> httpx.Response:
        body = {"tasks": tasks, "project": f"{project}.1795176116", "label_config": config, "params": params}
        return self.http.post("/predict", json=body)

    def wait_ready(self) -> None:
        self.wait(lambda: self.http.get("/ready").status_code == 200)

    @staticmethod
    def wait(condition: Callable[[], Any], seconds: float = 60) -> None:
        wait(condition, seconds, every_s=0.01)


Start = Callable[..., Backend]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    with servers(tmp_path) as begin:
        yield begin


@contextmanager
def servers(folder: Path) -> Iterator[Start]:
    """Start servers: `start(engine=…, models=("cars",), load=…, default=…, **settings)`. They run no jobs unless told so: there is
    one workflow engine per process."""
    running: list[tuple[Backend, LoopbackServer]] = []

    def begin(
        *,
        engine: FakeEngine | None = None,
        models: tuple[str, ...] = ("cars",),
        load: Callable[[ModelVersion], Engine] | None = None,
        default: str | None = None,
        **options: Any,
    ) -> Backend:
        engine = engine or FakeEngine()
        settings = read_settings(**{"home": folder / "home", "jobs": False} | options)
        parts = assemble(settings, load=load or (lambda _version: engine), model=default)
        for name in models:
            add_model(parts.store.registry, None, ModelCard(name=name, engine="empty", labels=engine.classes), settings)
        parts.projects.refresh()
        server = LoopbackServer(create_app(settings, parts), lifespan="on")
        server.start()
        backend = Backend(server, parts, engine, settings.home)
        running.append((backend, server))
        return backend

    yield begin
    for backend, server in running:
        backend.engine.gate.set()
        backend.http.close()
        server.stop()


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as studio:
        yield studio


def jpeg(width: int = 80, height: int = 40, *, seed: int = 0) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)
    return bytes(cv2.imencode(".jpg", noise)[1])

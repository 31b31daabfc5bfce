"""A person's terminal: `labelloop` as processes, a store with one model, a fake Label Studio with a project."""

from __future__ import annotations

import base64
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from labelloop.testing import FakeLabelStudio
from reference.running_server import CONFIG, jpeg
from reference.tiny_models import Thing, build_v8, ultralytics_metadata

PROGRAM = [sys.executable, "-m", "labelloop"]
PICTURE = "data:image/jpeg;base64," + base64.b64encode(jpeg(320, 320)).decode()


class Terminal:
    """A person with a store that has one model, and a project of 60 pictures of which two are broken."""

    def __init__(self, studio: FakeLabelStudio, home: Path) -> None:
        self.studio = studio
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_"))}
        self.environment = kept | {"LABELLOOP_HOME": str(home), "PYTHONUNBUFFERED": "1"}
        self.environment |= {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.token}
        self.project = studio.add_project("streets", CONFIG)
        self.tasks = studio.add_tasks(self.project, ({"image": PICTURE if n % 30 else "data:,x"} for n in range(60)))
        size_wh = (320, 320)
        model = home / "cars.onnx"
        home.mkdir(parents=True)
        build_v8(
            model,
            [Thing((80, 80, 240, 240), 0, 0.9)],
            size_wh=size_wh,
            metadata=ultralytics_metadata(("car", "dog", "cat"), size_wh=size_wh),
        )
        assert self.run("models", "add", str(model)).returncode == 0

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PROGRAM, *arguments], env=self.environment, capture_output=True, text=True, timeout=180)

    @contextmanager
    def serving(self, *arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
        """`labelloop serve` on a free port: its address and process."""
        command = [*PROGRAM, "serve", "--port", "0", *arguments]
        env = self.environment | environment
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, process.stderr and process.stderr.read()
            yield found[0], process
        finally:
            process.terminate()
            process.communicate(timeout=60)

    def stored(self) -> list[int]:
        return [len(self.studio.predictions(task)) for task in self.studio.state.projects[self.project].task_ids]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with FakeLabelStudio() as studio:
        yield Terminal(studio, tmp_path / "home")

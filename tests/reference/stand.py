"""`labelloop start` as people run it: a process, its address, and what Label Studio would say to it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from labelloop.testing import FakeLabelStudio

BACKENDS = Path(__file__).parent.parent / "hosted" / "backends"
PROGRAM = [sys.executable, "-m", "labelloop"]
BOXES = '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image"><Label value="Car"/><Label value="Person"/></RectangleLabels></View>'
WORDS = '<View><Text name="text" value="$text"/><Choices name="mood" toName="text"><Choice value="good"/><Choice value="bad"/></Choices></View>'


class Stand:
    """One machine with a store; servers are started on it."""

    def __init__(self, home: Path) -> None:
        self.home = home
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_"))}
        self.environment = kept | {"LABELLOOP_HOME": str(home), "PYTHONUNBUFFERED": "1"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([*PROGRAM, *arguments], env=self.environment, capture_output=True, text=True, timeout=120)

    @contextmanager
    def serving(self, *arguments: str, command: str = "start") -> Iterator[Caller]:
        with (self.home.parent / "server.log").open("a") as log:
            argv = [*PROGRAM, command, *arguments, "--port", "0"]
            process = subprocess.Popen(argv, env=self.environment, stdout=subprocess.PIPE, stderr=log, text=True)
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found, (self.home.parent / "server.log").read_text()
            with Caller(found[0], process) as caller:
                yield caller
        finally:
            process.terminate()
            process.communicate(timeout=30)


class Caller:
    """Label Studio's side of one server."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.studio: FakeLabelStudio | None = None
        self.process = process
        self.http = httpx.Client(base_url=url, timeout=90, trust_env=False)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()

    def uid(self, project: int) -> str:
        """How Label Studio names a project in calls."""
        return self.studio.state.projects[project].uid if self.studio else f"{project}.1795176116"

    def setup(self, config: str = BOXES, *, project: int = 1, **fields: Any) -> str:
        body = {
            "project": self.uid(project),
            "schema": config,
            "hostname": "",
            "access_token": "",
            "extra_params": None,
        }
        answer = self.http.post("/setup", json=body | fields)
        assert answer.status_code == 200, answer.text
        return answer.json()["model_version"]

    def predict(
        self, tasks: list[Any], config: str = BOXES, *, project: int = 1, context: Any = None
    ) -> list[dict[str, Any]]:
        params = {"login": None, "password": None, "context": context}
        body = {"tasks": tasks, "project": self.uid(project), "label_config": config, "params": params}
        return self.replay(body)

    def replay(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        answer = self.http.post("/predict", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["results"]

    def jobs(self, kind: str = "fit") -> list[dict[str, Any]]:
        return [job for job in self.http.get("/api/jobs").json()["jobs"] if job["kind"] == kind]


def recording(shared: Path, name: str) -> dict[str, Any]:
    body = json.loads((shared / "label-studio" / "recordings" / f"{name}.json").read_text())["body"]
    return json.loads(body) if isinstance(body, str) else body

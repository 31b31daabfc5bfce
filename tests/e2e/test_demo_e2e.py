"""`labelloop demo` as people run it: in a process, stopped with Ctrl-C, started again."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from labelloop.labelstudio.client import Client

pytestmark = pytest.mark.e2e

START_S = 300


class Running(NamedTuple):
    process: subprocess.Popen[str]
    text: str
    """What it printed until it was ready."""

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(pid) for pid in listed.split()]

    def found(self, pattern: str) -> str:
        match = re.search(pattern, self.text)
        assert match, f"no {pattern!r} in {self.text}"
        return match[1]


@pytest.fixture
def own_home(home: Path, tmp_path: Path) -> Path:
    """A data folder that shares nothing but the runtimes with the user's own."""
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "runtimes").symlink_to(home / "runtimes")
    return tmp_path / "home"


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def start(home: Path, processes: list[subprocess.Popen[str]], *arguments: str) -> Running:
    """Start `labelloop demo` on free ports and read what it prints until it waits for Ctrl-C."""
    argv = [sys.executable, "-m", "labelloop", "demo", "--port", "0", "--label-studio-port", "0", *arguments]
    env = os.environ | {"LABELLOOP_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    processes.append(process)
    assert process.stdout is not None
    overdue = threading.Timer(START_S, process.kill)
    overdue.start()
    lines: list[str] = []
    for line in process.stdout:
        lines.append(line)
        if "Ctrl-C stops" in line:
            break
    overdue.cancel()
    text = "".join(lines)
    assert "Ctrl-C stops" in text, text
    return Running(process, text)


def wait_for_end(pidfds: list[int]) -> None:
    """A pidfd is readable once its process has ended."""
    for pidfd in pidfds:
        assert select.select([pidfd], [], [], 30)[0], "still running after 30 s"
        os.close(pidfd)


def test_check_passes_and_leaves_nothing_behind(own_home: Path) -> None:
    env = os.environ | {"LABELLOOP_HOME": str(own_home)}
    done = subprocess.run(
        [sys.executable, "-m", "labelloop", "demo", "--check"],
        env=env,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: 8 pictures read word for word" in done.stdout
    assert "OK: a project without a model has learned" in done.stdout
    assert [path.name for path in own_home.iterdir()] == ["runtimes"]


def test_check_shows_boxes_of_a_detector_on_the_users_pictures(own_home: Path, shared: Path) -> None:
    model, images = shared / "data/models/yolox_nano_416.onnx", shared / "data/datasets/coco32/images"
    argv = [
        sys.executable,
        "-m",
        "labelloop",
        "demo",
        "--check",
        "--model",
        model,
        "--images",
        images,
        "--labels",
        "coco",
    ]
    env = os.environ | {"LABELLOOP_HOME": str(own_home)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=START_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK: 32 pictures pre-annotated by yolox_nano_416@1" in done.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_ctrl_c_stops_everything_and_a_second_start_goes_on_with_the_same_project(
    own_home: Path, processes: list[subprocess.Popen[str]]
) -> None:
    first = start(own_home, processes)
    studio = first.found(r"(http://127\.0\.0\.1:\d+)/projects/\d+/data")
    backend = first.found(r"labelloop +(http://127\.0\.0\.1:\d+)")
    children = [os.pidfd_open(pid) for pid in first.children()]
    assert len(children) == 2, "Label Studio and labelloop serve"
    assert httpx.get(f"{backend}/health", trust_env=False).is_success

    refused = subprocess.run(
        [sys.executable, "-m", "labelloop", "demo"],
        env=os.environ | {"LABELLOOP_HOME": str(own_home)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert refused.returncode == 1
    assert "running already" in refused.stderr

    first.process.send_signal(signal.SIGINT)
    assert first.process.wait(30) == 0
    wait_for_end(children)
    for url in (studio, backend):
        with pytest.raises(httpx.ConnectError):
            httpx.get(url, trust_env=False)

    second = start(own_home, processes)
    assert "8 pictures are pre-annotated" in second.text
    studio = second.found(r"(http://127\.0\.0\.1:\d+)/projects/\d+/data")
    credentials = (own_home / "demo" / "data" / "label-studio" / "credentials.json").read_text()
    token = re.search(r'"personal_access_token":"([^"]+)"', credentials)
    assert token
    with Client(studio, token[1]) as client:
        (project,) = (row for row in client.projects() if row.title == "Receipts and signs")
        page = client.tasks(project.id)
        (row,) = client.backends(project.id)
        assert len(client.webhooks(project.id)) == 1
    assert (page.total, page.total_predictions) == (8, 8)
    assert row.url == second.found(r"labelloop +(http://127\.0\.0\.1:\d+)"), "the row of the first start's port is gone"

    children = [os.pidfd_open(pid) for pid in second.children()]
    second.process.kill()  # no chance to clean up: the kernel ends them
    wait_for_end(children)

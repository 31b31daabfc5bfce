"""`labelloop prelabel` and `labelloop jobs` as processes, the way people run them."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
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
        return subprocess.run([*PROGRAM, *arguments], env=self.environment, capture_output=True, text=True, timeout=90)

    def stored(self) -> list[int]:
        return [len(self.studio.predictions(task)) for task in self.studio.state.projects[self.project].task_ids]


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with FakeLabelStudio() as studio:
        yield Terminal(studio, tmp_path / "home")


def test_a_project_is_prelabelled_and_its_failed_tasks_are_tried_again(terminal: Terminal) -> None:
    done = terminal.run("prelabel", "streets")
    assert done.returncode == 1, "two tasks failed"
    assert "58 predictions" in done.stdout
    assert terminal.stored().count(1) == 58
    (job,) = re.findall(r"Job ([0-9a-f]{8})", done.stdout)

    failed = terminal.run("jobs", "show", job, "--failed").stdout.splitlines()
    assert [line.split("\t")[:2] for line in failed] == [
        [str(task), "media-undecodable"] for task in terminal.tasks[::30]
    ]
    for task in terminal.tasks[::30]:
        terminal.studio.state.tasks[task].data = {"image": PICTURE}
    again = terminal.run("jobs", "resume", job, "--failed")
    assert again.returncode == 0, again.stdout + again.stderr
    assert terminal.stored() == [1] * 60
    assert "Run 2 goes on" in terminal.run("jobs", "logs", job).stdout


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_cancel_ends_it(terminal: Terminal) -> None:
    terminal.studio.add_tasks(terminal.project, ({"image": PICTURE} for _ in range(4000)))
    process = subprocess.Popen(
        [*PROGRAM, "prelabel", "streets"], env=terminal.environment, stdout=subprocess.PIPE, text=True
    )
    wait(lambda: sum(terminal.stored()) > 0)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    (job,) = set(re.findall(r"Job ([0-9a-f]{8})", said))
    assert f"labelloop jobs show {job} --follow" in said
    before = sum(terminal.stored())
    wait(lambda: sum(terminal.stored()) > before)

    assert f"Job {job} does this already" in terminal.run("prelabel", "streets", "--detach").stdout
    assert "stops after this page" in terminal.run("jobs", "cancel", job).stdout
    wait(lambda: "cancelled" in terminal.run("jobs", "show", job).stdout)
    end = sum(terminal.stored())
    assert 0 < end < 4058
    listed = terminal.run("jobs", "list").stdout
    assert job in listed
    assert "cancelled" in listed


def test_what_cannot_be_done_is_said_before_a_job_is_made(terminal: Terminal) -> None:
    for arguments, reason in [
        (("prelabel", "streets", "--model", "trucks"), "There is no model trucks"),
        (("prelabel", "streets", "--filter", "nonsense=1"), "nonsense"),
        (("prelabel", "nowhere"), "no project 'nowhere'"),
        (("jobs", "show", "abc"), "There is no job 'abc'"),
    ]:
        done = terminal.run(*arguments)
        assert done.returncode == 1, arguments
        assert reason in done.stderr, arguments
    assert "No jobs yet" in terminal.run("jobs", "list").stdout


def wait(condition: object, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.05)

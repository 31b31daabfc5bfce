"""`labelloop serve` runs jobs itself: killed in the middle, stopped, told not to."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from reference.running_server import CONFIG
from reference.terminal import PICTURE, Terminal
from reference.waiting import wait


def slow_imports(_ask: Any, path: str, answer: Callable[[], Any]) -> Any:
    if not path.endswith("/import/predictions"):
        return answer()
    time.sleep(0.1)
    answered = answer()
    time.sleep(0.1)
    return answered


@pytest.fixture
def slowly(terminal: Terminal) -> Terminal:
    """Sixty good pictures, imported ten times six, a fifth of a second each."""
    for task in terminal.tasks[::30]:
        terminal.studio.state.tasks[task].data = {"image": PICTURE}
    terminal.environment |= {"LABELLOOP_IMPORT_SIZE": "6", "LABELLOOP_IMPORT_SETTLE_S": "1"}
    terminal.studio.around = slow_imports
    return terminal


def begin(terminal: Terminal) -> str:
    said = terminal.run("prelabel", "streets", "--detach").stdout
    return re.findall(r"Job ([0-9a-f]{8})", said)[0]


def log_of_workers(terminal: Terminal) -> str:
    path = terminal.home / "logs" / "worker.log"
    return path.read_text() if path.exists() else ""


def test_a_server_killed_in_the_middle_of_a_job_finishes_it_at_the_next_start(slowly: Terminal) -> None:
    with slowly.serving() as (_, process):
        job = begin(slowly)
        wait(lambda: sum(slowly.stored()) >= 12)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 12 <= sum(slowly.stored()) < 60
    with slowly.serving():
        wait(lambda: "done" in slowly.run("jobs", "show", job).stdout, seconds=240)
    assert slowly.stored() == [1] * 60
    assert log_of_workers(slowly) == "", "prelabel started a worker beside the server's"


def test_a_stopped_server_ends_soon_and_a_job_goes_on_with_the_next(slowly: Terminal) -> None:
    job = ""
    for number in (signal.SIGTERM, signal.SIGINT):
        before = sum(slowly.stored())
        with slowly.serving() as (_, process):
            job = job or begin(slowly)  # the second server goes on by itself
            wait(lambda before=before: sum(slowly.stored()) > before)
            process.send_signal(number)
            assert process.wait(30) == -number
            assert "Traceback" not in process.stderr.read()
    assert "running" in slowly.run("jobs", "show", job).stdout
    with slowly.serving():
        wait(lambda: "done" in slowly.run("jobs", "show", job).stdout, seconds=240)
    assert slowly.stored() == [1] * 60
    assert "failed" not in slowly.run("jobs", "show", job).stdout


def test_no_jobs_leaves_them_to_workers(slowly: Terminal) -> None:
    with slowly.serving("--no-jobs") as (url, _):
        assert httpx.get(url + "/health", trust_env=False).status_code == 200
        job = begin(slowly)
        wait(lambda: "done" in slowly.run("jobs", "show", job).stdout, seconds=240)
    assert "worker is ready" in log_of_workers(slowly)


def test_a_server_and_a_worker_share_the_jobs_of_one_store(slowly: Terminal) -> None:
    other = slowly.studio.add_project("roads", CONFIG)
    slowly.studio.add_tasks(other, ({"image": PICTURE} for _ in range(60)))
    with slowly.serving():
        begin(slowly)
        slowly.run("prelabel", "roads", "--detach")
        done = slowly.run("worker", "--until-idle")
        assert done.returncode == 0, done.stderr
        wait(lambda: slowly.run("jobs", "list").stdout.count("done") == 2)
    tasks = slowly.studio.state.projects[other].task_ids
    assert slowly.stored() + [len(slowly.studio.predictions(task)) for task in tasks] == [1] * 120


def test_a_listener_does_not_keep_a_server_from_stopping(terminal: Terminal) -> None:
    with terminal.serving() as (url, process), httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        with http.stream("GET", "/api/events") as answer:
            assert answer.status_code == 200
            process.send_signal(signal.SIGTERM)
            assert list(answer.iter_bytes()) == [], "it ends, and is not cut off"
        assert process.wait(30) == -signal.SIGTERM

"""`labelloop prelabel` and `labelloop jobs` as processes, the way people run them."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable
from itertools import count
from typing import Any

import pytest

from labelloop.core.settings import read_settings
from labelloop.serving.models import open_store
from reference.terminal import PICTURE, PROGRAM, Terminal
from reference.waiting import wait

IMPORT = "/import/predictions"


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
    assert "Run 2 continues" in terminal.run("jobs", "logs", job).stdout


def test_whoever_asks_after_a_job_whose_worker_was_killed_gets_it_done(terminal: Terminal) -> None:
    killed = threading.Event()
    terminal.studio.around = lambda _ask, path, answer: killed.wait(60) and answer() if IMPORT in path else answer()
    assert terminal.run("prelabel", "streets", "--detach").returncode == 0
    jobs = open_store(read_settings(home=terminal.home)).jobs
    wait(lambda: jobs.newest(1)[0].owner is not None)
    job = jobs.newest(1)[0]
    os.kill(int(str(job.owner).split("-")[-2]), signal.SIGKILL)
    killed.set()
    done = terminal.run("jobs", "show", job.id, "--follow")
    assert "58 predictions" in done.stdout, done.stdout + done.stderr
    assert terminal.stored().count(1) == 58


@pytest.mark.slow
def test_ctrl_c_leaves_the_job_running_and_cancel_ends_it(terminal: Terminal) -> None:
    held, let_go, imports = threading.Event(), threading.Event(), count()

    def around(_ask: Any, path: str, answer: Callable[[], Any]) -> Any:
        # the third import waits, or the job would be done before the commands of a busy machine have begun
        if IMPORT in path and next(imports) >= 2:
            held.set()
            let_go.wait(600)
        return answer()

    terminal.studio.around = around
    terminal.environment |= {"LABELLOOP_IMPORT_SIZE": "500"}  # a slow machine would bring in all that is left at once
    terminal.studio.add_tasks(terminal.project, ({"image": PICTURE} for _ in range(4000)))
    process = subprocess.Popen(
        [*PROGRAM, "prelabel", "streets"], env=terminal.environment, stdout=subprocess.PIPE, text=True
    )
    wait(lambda: sum(terminal.stored()) > 0)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    (job,) = set(re.findall(r"Job ([0-9a-f]{8})", said))
    assert f"labelloop jobs show {job} --follow" in said
    wait(held.is_set)
    assert f"Job {job} does this already" in terminal.run("prelabel", "streets", "--detach").stdout
    assert "stops after this page" in terminal.run("jobs", "cancel", job).stdout
    let_go.set()
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

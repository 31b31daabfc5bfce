"""A run of the learning loop whose trainer, worker and server are killed at moments that a seed chooses.

Everything is a process of its own: `labelloop worker` and `labelloop serve` by turns, the trainer that they start, the
test. A pipe that every trainer holds open is how the kernel says that none is left.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import pytest

from jobs.test_retrain import ENOUGH, TRUTH, Bench, network
from jobs.test_retrain import bench as bench
from labelloop.jobs.run_folder import runs_folder
from labelloop.store.artifacts import hash_file
from labelloop.store.jobs import Job
from reference.running_server import Backend

KILLS = 20
STEPS = 6
STEP_S = 0.12
LATEST_S = 1.8
"""How long after a worker has taken a run it may be killed: about as long as a run takes."""


class Victims:
    """One worker or server at a time, and its trainer."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self._bench = bench
        self._log = (folder / "worker.log").open("ab")
        self.pipe = folder / "trainers"
        os.mkfifo(self.pipe)
        self._reading = os.open(self.pipe, os.O_RDONLY | os.O_NONBLOCK)
        self._worker: subprocess.Popen[bytes] | None = None
        self._kinds = cycle((("worker",), ("serve", "--port", "0")))
        self._kind = ""

    def close(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker.wait()
        os.close(self._reading)
        self._log.close()

    def work(self, job: Job) -> None:
        """Returns when a worker has the run in hand."""
        if self._worker is None:
            outer = {key: value for key, value in os.environ.items() if not key.startswith(("LABELLOOP_", "LABEL_S"))}
            ours = {"LABELLOOP_HOME": str(self._bench.settings.home), "LABELLOOP_IMPORT_SETTLE_S": "0.3"}
            self._kind, *options = next(self._kinds)
            command = [sys.executable, "-m", "labelloop", self._kind, *options]
            self._worker = subprocess.Popen(command, env=outer | ours, stdout=self._log, stderr=self._log)
        jobs, workers = self._bench.training.jobs, self._bench.parts.store.workers
        Backend.wait(lambda: (now := jobs.get(job.id)).ended or workers.is_alive(now.owner), seconds=40)

    def kill_worker(self) -> str:
        """Its trainer must go with it. Which of the two it was."""
        assert self._worker is not None
        self._worker.send_signal(signal.SIGKILL)
        self._worker.wait()
        self._worker = None
        Backend.wait(self.no_trainer)
        return self._kind

    def kill_trainer(self) -> bool:
        """Whether there was one."""
        assert self._worker is not None
        for pid in children(self._worker.pid):
            os.kill(pid, signal.SIGKILL)
            return True
        return False

    def no_trainer(self) -> bool:
        try:
            return os.read(self._reading, 1) == b""
        except BlockingIOError:  # open for writing somewhere
            return False


def children(parent: int) -> Iterator[int]:
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if int(status.rpartition(")")[2].split()[1]) == parent and b"trainers.child" in command:
            yield int(entry.name)


class Pointer:
    """What the project's pointer is seen at, all the time."""

    def __init__(self, bench: Bench) -> None:
        self.seen: list[str | None] = []
        self._bench = bench
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def _watch(self) -> None:
        while not self._end.wait(0.02):
            version = self._bench.live()
            if self.seen[-1:] != [version]:
                self.seen.append(version)

    def close(self) -> None:
        self._end.set()
        self._thread.join()


@pytest.fixture
def victims(bench: Bench, tmp_path: Path) -> Iterator[Victims]:
    victims = Victims(bench, tmp_path)
    yield victims
    victims.close()


@pytest.fixture
def pointer(bench: Bench) -> Iterator[Pointer]:
    bench.serve(bench.bad)
    pointer = Pointer(bench)
    yield pointer
    pointer.close()


def begin(bench: Bench, victims: Victims, *, number: int) -> Job:
    """Each run has a file of its own to make."""
    better = network(bench.folder / f"better{number}.onnx", TRUTH._replace(score=0.9 - number / 1000))
    told = {"steps": STEPS, "step_s": STEP_S, "pipe": str(victims.pipe)}
    return bench.begin(better, told=told, promotion="always", min_held_out=1)


def kill_one(bench: Bench, victims: Victims, job: Job, chance: random.Random) -> str:
    """Kill the worker, the server or the trainer; which, or "" where the run was over before."""
    victims.work(job)
    if chance.random() < 0.4:
        time.sleep(chance.uniform(0, LATEST_S))
        return victims.kill_worker()
    Backend.wait(lambda: not victims.no_trainer() or bench.training.jobs.get(job.id).ended, seconds=40)
    time.sleep(chance.uniform(0, STEPS * STEP_S))
    if not victims.kill_trainer():
        return ""
    Backend.wait(lambda: bench.training.jobs.get(job.id).ended, seconds=40)
    if (now := bench.training.jobs.get(job.id)).state == "failed":  # it may have handed its model over already
        assert "SIGKILL" in now.error, now.error
        bench.training.jobs.resume(job.id)
    return "trainer"


def check(bench: Bench, job: Job, *, number: int) -> None:
    """A run that ended after kills is as one that was left in peace."""
    job, run = bench.finish(job)
    assert (job.state, run.outcome, run.candidate) == ("done", "promoted", f"base@{number + 1}"), bench.log(job)
    steps = [point.step for point in run.curve]
    assert steps == sorted(set(steps)), "it goes on from its checkpoint"
    left = sorted(path.name for path in (runs_folder(bench.settings) / job.id).iterdir())
    assert left == ["log.txt"], bench.log(job)


@pytest.mark.slow
def test_runs_that_are_killed_end_as_if_nothing_had_been(bench: Bench, victims: Victims, pointer: Pointer) -> None:
    chance = random.Random(20)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.add_tasks(5)
    killed: list[str] = []
    jobs: list[Job] = []
    while len(killed) < KILLS:
        if not jobs or bench.training.jobs.get(jobs[-1].id).ended:
            jobs.append(begin(bench, victims, number=len(jobs) + 1))
        if who := kill_one(bench, victims, jobs[-1], chance):
            killed.append(who)
    victims.work(jobs[-1])
    for number, job in enumerate(jobs, 1):
        check(bench, job, number=number)
    Backend.wait(victims.no_trainer)
    counts = Counter(killed)
    print(f"{len(jobs)} runs; killed: {dict(counts)}")
    assert min(counts["worker"], counts["serve"]) >= 2
    assert counts["trainer"] >= 4
    check_versions(bench, pointer, runs=len(jobs))


def check_versions(bench: Bench, pointer: Pointer, *, runs: int) -> None:
    """One version a run, each live once, whole, and in order."""
    registry = bench.training.registry
    expected = [f"base@{number}" for number in range(1, runs + 2)]
    versions = registry.catalogue().versions
    assert sorted(version.id for version in versions) == sorted(expected)
    for version in versions:
        path = registry.path(version)
        assert path is not None
        assert hash_file(path) == version.card.sha256
    Backend.wait(lambda: pointer.seen[-1:] == expected[-1:])
    assert pointer.seen == expected
    assert [move.target for move in registry.history(bench.project)][:runs] == expected[:0:-1]

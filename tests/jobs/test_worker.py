"""Workers as processes and in this one: killed, stopped, cancelled; and what the store remembers of it."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.desk import Desk
from jobs.worker_process import Victim, slow_imports
from labelloop.app import open_worker
from labelloop.core.errors import JobError, JobNotFound
from labelloop.jobs import worker as worker_module
from labelloop.jobs.submit import submit
from labelloop.store.jobs import Job
from labelloop.testing import FakeEngine, FakeLabelStudio
from reference.waiting import wait


def kill_until_done(desk: Desk, victim: Victim, chance: random.Random, *, kills: int, longest_s: float) -> int:
    """Kill the worker at moments that `chance` chooses; the last one may live. Returns how often it was killed."""
    job = desk.job()
    for killed in range(kills):
        victim.start()
        deadline = time.monotonic() + chance.uniform(0, longest_s)
        while time.monotonic() < deadline and not victim.ended():
            time.sleep(0.001)
        if victim.ended():
            return killed
        victim.kill()
    victim.start()
    assert victim.process is not None
    assert victim.process.wait(120) == 0
    assert desk.store.jobs.get(job.id).state == "done", desk.log(job)
    return kills


def test_a_worker_that_is_killed_twice_stores_each_prediction_once(desk: Desk) -> None:
    desk.add_tasks(60)
    desk.studio.around = slow_imports(0.1)
    kills = kill_until_done(desk, Victim(desk, seconds=0.01), random.Random(7), kills=2, longest_s=0.5)
    assert desk.versions() == [[desk.version]] * 60
    assert kills == 2


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_500_tasks_survive_many_kills(studio: FakeLabelStudio, tmp_path: Path, picture: str, seed: int) -> None:
    desk = Desk(studio, tmp_path / "home", picture, import_size=20)
    desk.add_tasks(500)
    desk.studio.around = slow_imports(0.1)
    victim = Victim(desk, seconds=0.004)
    kills = kill_until_done(desk, victim, random.Random(seed), kills=6, longest_s=0.7)
    assert desk.versions() == [[desk.version]] * 500
    # Lost with each kill: the page that was being predicted. And a picture to warm up with each start.
    assert sum(victim.predicted()) <= 500 + (kills + 1) * (20 + 1)
    assert kills >= 3


def test_a_worker_stops_when_told_and_the_next_one_goes_on(desk: Desk) -> None:
    desk.add_tasks(60)
    job = desk.job()
    with open_worker(desk.settings, load=lambda _: FakeEngine()) as first:
        thread = threading.Thread(target=first.run)
        desk.studio.around = slow_imports(0.2)
        thread.start()
        wait(lambda: desk.imports())
        first.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert desk.store.jobs.get(job.id).state == "running", "as after a crash"
    desk.studio.around = slow_imports(0)
    with open_worker(desk.settings, load=lambda _: FakeEngine()) as second:
        second.run(until_idle=True)
    assert desk.store.jobs.get(job.id).state == "done"
    assert desk.versions() == [[desk.version]] * 60


def test_a_cancelled_job_stops_after_its_page_and_can_be_resumed(desk: Desk) -> None:
    desk.add_tasks(80)
    desk.studio.around = slow_imports(0.2)
    job = desk.job()
    with open_worker(desk.settings, load=lambda _: FakeEngine()) as worker:
        thread = threading.Thread(target=worker.run)
        thread.start()
        wait(lambda: desk.progress(job).stored)
        desk.store.jobs.cancel(job.id)
        wait(lambda: desk.store.jobs.get(job.id).ended)
        assert desk.store.jobs.get(job.id).state == "cancelled"
        assert 0 < desk.progress(job).stored < 80
        desk.studio.around = slow_imports(0)
        desk.store.jobs.resume(job.id)
        wait(lambda: desk.store.jobs.get(job.id).ended)
        worker.stop()
        thread.join(20)
    assert desk.store.jobs.get(job.id).state == "done"
    assert desk.versions() == [[desk.version]] * 80


def test_a_job_that_cannot_run_fails_with_the_reason_and_the_worker_goes_on(desk: Desk) -> None:
    desk.add_tasks(3)
    hopeless = desk.job()
    desk.studio.state.projects[desk.project].label_config = "<View/>"
    other = Desk(desk.studio, desk.settings.home, desk.uri)
    other.add_tasks(4)
    possible = other.job()
    with open_worker(desk.settings, load=lambda _: FakeEngine()) as worker:
        worker.run(until_idle=True)
    assert desk.store.jobs.get(possible.id).state == "done"
    failed = desk.store.jobs.get(hopeless.id)
    assert failed.state == "failed"
    assert failed.error
    assert failed.error in desk.log(hopeless)


def test_the_same_work_is_one_job(desk: Desk) -> None:
    first, new = submit(desk.store.jobs, desk.work())
    again, newer = submit(desk.store.jobs, desk.work(limit=3))
    assert (new, newer) == (True, False)
    assert first.id == again.id, "all tasks are these three too"
    with pytest.raises(JobError, match=f"{first.id} makes predictions of .* with other options .only missing."):
        submit(desk.store.jobs, desk.work(only_missing=False))
    desk.store.jobs.cancel(first.id)
    other, new = submit(desk.store.jobs, desk.work(limit=3))
    assert new
    with pytest.raises(JobError, match="at most 3 tasks"):
        submit(desk.store.jobs, desk.work())
    assert other.id != first.id
    with pytest.raises(JobError, match="same work"):
        desk.store.jobs.resume(first.id)


def test_jobs_are_found_by_the_beginning_of_their_id(desk: Desk) -> None:
    job = desk.job()
    assert desk.store.jobs.get(job.id[:5]) == job
    for wrong in ("", "nope", "%"):
        with pytest.raises(JobNotFound, match="jobs list"):
            desk.store.jobs.get(wrong)


def test_there_is_nothing_to_try_again_when_nothing_failed(desk: Desk) -> None:
    job = desk.store.jobs.cancel(desk.job().id)
    assert job.state == "cancelled"
    with pytest.raises(JobError, match="No task"):
        desk.store.jobs.resume(job.id, failed=True)
    with pytest.raises(JobError, match="has ended"):
        desk.store.jobs.cancel(job.id)


def test_a_worker_is_dead_when_its_process_is_gone(desk: Desk) -> None:
    name = desk.store.workers.register()
    assert desk.store.workers.is_alive(name)
    code = (
        "import sys; from pathlib import Path; from labelloop.core.settings import read_settings;"
        "from labelloop.serving.models import open_store;"
        "print(open_store(read_settings(home=Path(sys.argv[1]))).workers.register())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(desk.settings.home)], capture_output=True, text=True, check=True
    )
    assert not desk.store.workers.is_alive(done.stdout.strip())
    desk.store.workers.leave(name)
    assert not desk.store.workers.is_alive(name)


def test_a_store_that_is_away_when_a_page_begins_does_not_strand_the_job(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.add_tasks(30)
    job = desk.job()
    asked, queue_of = [0], worker_module.queue_of

    def queue_or_away(job: Job) -> str:
        asked[0] += 1
        if asked[0] == 3:  # once when it is queued, then once a page
            raise sa.exc.OperationalError("SELECT", {}, Exception("away"))
        return queue_of(job)

    monkeypatch.setattr(worker_module, "queue_of", queue_or_away)
    with open_worker(desk.settings, load=lambda _: FakeEngine()) as worker:
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            wait(lambda: desk.store.jobs.get(job.id).ended)
        finally:
            worker.stop()
            thread.join(20)
    assert asked[0] > 3
    assert desk.store.jobs.get(job.id).state == "done"

"""Several workers on one job: who has which page, what becomes of those of a dead one, and none is done twice."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.desk import Desk, to_the_end
from jobs.worker_process import Victim, slow_imports
from labelloop.app import open_worker
from labelloop.core.errors import JobLost
from labelloop.jobs.preannotate import Preannotation
from labelloop.store import schema
from labelloop.store.jobs import Job
from labelloop.store.pages import Ended, Page, Pages
from labelloop.testing import FakeEngine, FakeLabelStudio
from reference.waiting import wait

MANY = 100
"""Tasks: more than one worker has in hand before it stores any."""


def alive(_worker: str) -> bool:
    return True


def pages_of(desk: Desk, job: Job) -> list[sa.RowMapping]:
    with desk.store.engine.connect() as connection:
        query = sa.select(schema.job_pages).filter_by(job_id=job.id).order_by(schema.job_pages.c.number)
        return list(connection.execute(query).mappings())


def holder(desk: Desk, job: Job, name: str = "", *, guest: bool = False) -> Pages:
    owner = name or desk.store.jobs.get(job.id).owner or ""
    return Pages(desk.store.engine, job.id, owner=owner, is_alive=desk.store.workers.is_alive, guest=guest)


def take(pages: Pages, *tasks: int) -> Page:
    page = pages.take(tasks, mark=pages.mark(), cursor=max(tasks), replaces={})
    assert page is not None
    return page


@contextmanager
def owned(desk: Desk) -> Iterator[Job]:
    """A job of a worker that lives and does nothing."""
    job = desk.job()
    owner = desk.store.workers.register()
    assert desk.store.jobs.claim(job, owner)
    yield desk.store.jobs.get(job.id)
    desk.store.workers.leave(owner)


def test_owner_and_guest_share_the_pages_and_the_owner_ends_the_job(desk: Desk) -> None:
    desk.add_tasks(MANY)
    job = desk.job()
    with desk.open(job) as owner, desk.open(job, guest=True) as guest:
        for _ in range(2):
            assert owner.advance()
            assert guest.advance()
        helper = threading.Thread(target=to_the_end, args=[guest])
        helper.start()
        to_the_end(owner)
        helper.join(20)
    assert desk.versions() == [[desk.version]] * MANY
    taken = Counter(task for page in pages_of(desk, job) for task in page["task_ids"])
    assert taken == Counter(desk.tasks), "each task is in one page"
    assert desk.progress(job).stored == MANY


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_the_owner_does_again_what_a_dead_guest_left_behind(desk: Desk, steps: int) -> None:
    desk.add_tasks(MANY)
    job = desk.job()
    with desk.open(job) as owner:
        with desk.open(job, guest=True) as guest:  # left without a word: as after a crash
            for _ in range(steps):
                assert guest.advance()
            wait(lambda: any(page["state"] == "predicted" for page in pages_of(desk, job)), every_s=0.005)
        to_the_end(owner)
    assert desk.versions() == [[desk.version]] * MANY
    assert desk.progress(job).stored == MANY


def test_the_owner_waits_for_a_guest_that_lives(desk: Desk) -> None:
    desk.add_tasks(MANY)
    job = desk.job()
    with desk.open(job) as owner, desk.open(job, guest=True) as guest:
        assert isinstance(guest, Preannotation)
        wait(lambda: any(page["state"] == "predicted" for page in pages_of(desk, job)), every_s=0.005)
        ending = threading.Thread(target=to_the_end, args=[owner])
        ending.start()
        wait(lambda: desk.progress(job).stored >= 10)
        ending.join(1.5)
        assert ending.is_alive(), "the guest's pages are not stored"
        to_the_end(guest)
        ending.join(20)
        assert not ending.is_alive()
    assert desk.versions() == [[desk.version]] * MANY


def test_one_number_is_given_out_once(desk: Desk) -> None:
    first, second, *_ = desk.add_tasks(4)
    with owned(desk) as job:
        ours, theirs = holder(desk, job), holder(desk, job, "guest", guest=True)
        before = theirs.mark()
        page = take(ours, first)
        assert theirs.take([first], mark=before, cursor=first, replaces={}) is None
        assert theirs.mark().cursor == first
        assert take(theirs, second).number == page.number + 1
        assert ours.mark().planned == 2


@pytest.mark.parametrize("state", ["taken", "predicted", "sending"])
def test_who_was_taken_for_dead_is_refused_at_the_next_write(desk: Desk, state: str) -> None:
    (task,) = desk.add_tasks(1)
    with owned(desk) as job:
        silent = holder(desk, job, "silent", guest=True)
        page = take(silent, task)
        if state != "taken":
            page = silent.predicted(page, [], ())
        if state == "sending":
            silent.sending([page], doubted=False)
        (taken,), others = holder(desk, job).take_over()
        assert (taken.number, taken.state, others) == (page.number, state, 0)
        for write in (
            lambda: silent.predicted(page, [], ()),
            lambda: silent.sending([page], doubted=False),
            lambda: silent.stored([Ended(page, stored=1, skipped=0)]),
        ):
            with pytest.raises(JobLost, match="taken over"):
                write()


def test_pages_of_the_living_are_left_to_them(desk: Desk) -> None:
    (task,) = desk.add_tasks(1)
    with owned(desk) as job:
        guest = desk.store.workers.register()
        page = take(holder(desk, job, guest, guest=True), task)
        assert holder(desk, job).take_over() == ([], 1)
        desk.store.workers.leave(guest)
        (taken,), _ = holder(desk, job).take_over()
        assert taken.number == page.number


def test_a_guest_writes_nothing_once_the_job_has_ended(desk: Desk) -> None:
    (task,) = desk.add_tasks(1)
    with owned(desk) as job:
        guest = holder(desk, job, "guest", guest=True)
        page = take(guest, task)
        assert desk.store.jobs.end(job.id, "cancelled", owner=job.owner)
        with pytest.raises(JobLost, match="has ended"):
            guest.sending([page], doubted=False)


def test_an_idle_worker_helps_and_leaves_for_a_job_that_waits(desk: Desk) -> None:
    desk.add_tasks(400)
    desk.studio.around = slow_imports(0.05)
    other = Desk(desk.studio, desk.settings.home, desk.uri)
    with owned(desk) as job, open_worker(desk.settings, load=lambda _: FakeEngine()) as worker:
        desk.store.jobs.expect(job.id, 400)
        thread = threading.Thread(target=worker.run)
        thread.start()
        wait(lambda: desk.progress(job).stored)
        other.add_tasks(5)
        urgent = other.job()
        wait(lambda: other.store.jobs.get(urgent.id).state == "done")
        assert desk.progress(job).stored < 400, "the case is not made"
        wait(lambda: desk.progress(job).stored == 400, seconds=60)
        worker.stop()
        thread.join(20)
    assert desk.versions() == [[desk.version]] * 400
    assert "helps" in desk.log(job)


def both_at_work(victim: Victim) -> bool:
    done = victim.predicted()
    return len(done) == 2 and done[0] >= 50


@pytest.mark.slow
@pytest.mark.parametrize("killed", ["nobody", "the owner", "the guest"])
def test_two_workers_share_2000_tasks_on_postgres(
    postgres_url: str,
    studio: FakeLabelStudio,
    tmp_path: Path,
    picture: str,
    killed: str,
    request: pytest.FixtureRequest,
) -> None:
    desk = Desk(studio, tmp_path / "home", picture, database_url=postgres_url, import_size=50)
    desk.add_tasks(2000)
    desk.studio.around = slow_imports(0.05)
    job = desk.job()
    request.addfinalizer(desk.store.engine.dispose)
    victims = [Victim(desk, seconds=0.01, until_idle=False) for _ in range(2)]
    try:
        for victim in victims:
            victim.start()
        wait(lambda: desk.progress(job).stored >= 300 and both_at_work(victims[0]), seconds=90)
        owner = desk.store.jobs.get(job.id).owner or ""
        for victim in victims:
            assert victim.process is not None
            is_owner = f"-{victim.process.pid}-" in owner
            if killed == ("the owner" if is_owner else "the guest"):
                victim.kill()
        wait(lambda: desk.store.jobs.get(job.id).ended, seconds=180)
    finally:
        for victim in victims:
            if not victim.ended():
                victim.kill()
    assert desk.store.jobs.get(job.id).state == "done", desk.log(job)
    assert desk.versions() == [[desk.version]] * 2000
    assert Counter(task for page in pages_of(desk, job) for task in page["task_ids"]) == Counter(desk.tasks)
    fewer, more = victims[0].predicted()
    # Predicted twice: the pages that a dead worker had read and not kept. And a picture to warm up with each start.
    assert fewer + more <= 2000 + 2 + (0 if killed == "nobody" else 100)
    assert killed != "nobody" or fewer >= 250, "one of them did nearly all of it"

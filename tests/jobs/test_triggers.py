"""When a project's next training begins: counted from events in a real SQLite store."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import sqlalchemy as sa

from labelloop.core.errors import JobError, LoopNotFound
from labelloop.core.settings import read_settings
from labelloop.core.tasks import Event
from labelloop.jobs.training import Training, loop_options
from labelloop.jobs.triggers import Triggers
from labelloop.serving.models import Store, open_store
from labelloop.store import schema
from labelloop.store.loops import LoopOptions, is_due

STUDIO = "http://127.0.0.1:8080"
PROJECT = 7
QUIET = LoopOptions(min_new=3, quiet_s=60)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return open_store(read_settings(home=tmp_path / "home"))


@pytest.fixture
def training(store: Store) -> Training:
    store.registry.save_connection(STUDIO, "token")
    return Training.over(store.engine, store.registry, store.jobs)


def annotate(store: Store, *tasks: int, action: str = "ANNOTATION_CREATED", project: int = PROJECT) -> int:
    return [store.events.record(Event(action, project, (task,), (task * 10,))) for task in tasks][-1]


def pass_time(store: Store, seconds: float) -> None:
    """Everything recorded so far happened that much earlier."""
    with store.engine.begin() as connection:
        for row in connection.execute(sa.select(schema.events.c.id, schema.events.c.received_at)).all():
            earlier = row.received_at - timedelta(seconds=seconds)
            connection.execute(sa.update(schema.events).filter_by(id=row.id).values(received_at=earlier))


def look(training: Training) -> int:
    return Triggers(training).look()


class TestCounting:
    def test_a_task_that_changes_often_is_one_task(self, store: Store, training: Training) -> None:
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        annotate(store, 1, 1, 1)
        annotate(store, 1, 2, action="ANNOTATION_UPDATED")
        annotate(store, 9, project=8)
        annotate(store, 3, action="TASKS_CREATED")
        assert training.loops.news(training.loops.get(PROJECT)).tasks == 2

    def test_a_deletion_that_names_no_task_counts(self, store: Store, training: Training) -> None:
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        store.events.record(Event("ANNOTATIONS_DELETED", PROJECT, (), (10, 11)))
        assert training.loops.news(training.loops.get(PROJECT)).tasks == 1

    def test_what_was_annotated_before_the_loop_began_is_not_new(self, store: Store, training: Training) -> None:
        annotate(store, 1, 2, 3)
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        assert training.loops.news(training.loops.get(PROJECT)).tasks == 0

    def test_switching_off_and_on_forgets_nothing(self, store: Store, training: Training) -> None:
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        annotate(store, 1, 2)
        training.loops.set(PROJECT, STUDIO, enabled=False, options=QUIET)
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        assert training.loops.news(training.loops.get(PROJECT)).tasks == 2


class TestBeginning:
    @pytest.mark.parametrize(
        ("tasks", "waited_s", "options", "enabled", "begins"),
        [
            (3, 61, QUIET, True, True),
            (2, 61, QUIET, True, False),
            (3, 5, QUIET, True, False),
            (3, 61, QUIET, False, False),
            (1, 7300, LoopOptions(min_new=3, every_h=2), True, True),
            (1, 3600, LoopOptions(min_new=3, every_h=2), True, False),
            (0, 7300, LoopOptions(min_new=3, every_h=2), True, False),
        ],
        ids=["enough", "too few", "still busy", "off", "the hour", "before the hour", "the hour and nothing new"],
    )
    def test_begins_when_it_is_due(
        self,
        store: Store,
        training: Training,
        tasks: int,
        waited_s: float,
        options: LoopOptions,
        enabled: bool,
        begins: bool,
    ) -> None:
        training.loops.set(PROJECT, STUDIO, enabled=enabled, options=options)
        if tasks:
            annotate(store, *range(1, tasks + 1))
        pass_time(store, waited_s)
        with store.engine.begin() as connection:
            connection.execute(sa.update(schema.loops).values(changed_at=schema.now() - timedelta(seconds=waited_s)))
        assert look(training) == begins
        assert (training.unfinished(PROJECT) is not None) == begins

    def test_later_changes_wait_for_the_next_run(self, store: Store, training: Training) -> None:
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        annotate(store, 1, 2, 3)
        pass_time(store, 61)
        assert look(training) == 1
        annotate(store, 4, 5, 6)
        pass_time(store, 61)
        assert look(training) == 0, "one run at a time"
        run = training.unfinished(PROJECT)
        assert run is not None
        training.jobs.end(run.id, "done", owner=None)
        training.runs.update(run.id, ended_at=schema.now())
        assert look(training) == 1
        assert look(training) == 0

    def test_two_workers_begin_one_run(self, store: Store, training: Training) -> None:
        training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
        annotate(store, 1, 2, 3)
        pass_time(store, 61)
        other = Training.over(store.engine, store.registry, store.jobs)
        assert [look(training), look(other)] == [1, 0]
        assert len(store.jobs.newest()) == 1


class TestStartTraining:
    def press(self, store: Store, training: Training, project: int | None = PROJECT) -> str:
        event = store.events.record(Event("START_TRAINING", project))
        return training.ask(project, event=event).status

    def test_begins_without_a_loop_and_without_a_pause(self, store: Store, training: Training) -> None:
        assert self.press(store, training) == "accepted"
        assert look(training) == 1
        assert not training.loops.get(PROJECT).enabled, "a press is no wish for the next time"

    def test_says_that_it_runs_already(self, store: Store, training: Training) -> None:
        self.press(store, training)
        look(training)
        assert self.press(store, training) == "running"
        assert look(training) == 0
        run = training.unfinished(PROJECT)
        assert run is not None
        training.jobs.end(run.id, "failed", owner=None)
        assert look(training) == 0, "who was told that it is running did not ask for another"
        assert self.press(store, training) == "accepted"
        assert look(training) == 1

    def test_is_declined_where_nothing_is_connected(self, store: Store) -> None:
        bare = Training.over(store.engine, store.registry, store.jobs)
        event = store.events.record(Event("START_TRAINING", PROJECT))
        asked = bare.ask(PROJECT, event=event)
        assert asked.status == "declined"
        assert "labelloop connect 7" in asked.message

    def test_is_declined_without_a_project(self, store: Store, training: Training) -> None:
        assert self.press(store, training, None) == "declined"


class TestOptions:
    @pytest.mark.parametrize(
        "changes",
        [{"min_new": 0}, {"min_held_out": 0}, {"quiet_s": -1}, {"every_h": 0}, {"promotion": "maybe"}, {"mni_new": 3}],
        ids=["nothing new", "nothing held out", "before it happened", "all the time", "no such mode", "a slip"],
    )
    def test_what_cannot_be_is_refused(self, changes: dict[str, object]) -> None:
        with pytest.raises(JobError, match="cannot run like that"):
            loop_options(None, changes)

    def test_what_is_not_named_stays(self) -> None:
        assert loop_options(LoopOptions(min_new=5, budget_s=9), {"budget_s": 30}) == LoopOptions(min_new=5, budget_s=30)


def test_the_state_says_what_is_missing(store: Store, training: Training) -> None:
    with pytest.raises(LoopNotFound, match="does not learn"):
        training.state(PROJECT)
    training.loops.set(PROJECT, STUDIO, enabled=True, options=LoopOptions())
    annotate(store, *range(1, 13))
    assert training.state(PROJECT).next == "12 of 20 new annotations."
    job, _ = training.begin(PROJECT, STUDIO, QUIET, reason="labelloop train")
    assert training.state(PROJECT).next == f"A run waits for a worker (job {job.id})."
    training.jobs.end(job.id, "failed", owner=None)
    assert f"The latest run failed: labelloop jobs resume {job.id}" in training.state(PROJECT).next


def test_a_loop_that_is_off_is_never_due(store: Store, training: Training) -> None:
    loop = training.loops.set(PROJECT, STUDIO, enabled=False, options=QUIET)
    annotate(store, 1, 2, 3)
    assert is_due(loop, training.loops.news(loop), now=schema.now() + timedelta(days=1)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"quiet_s": 1e300},
        {"quiet_s": float("nan")},
        {"every_h": 1e300},
        {"every_h": float("inf")},
        {"budget_s": float("inf")},
        {"margin": float("nan")},
        {"memory_mb": 10**40},
        {"seed": -1},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_an_option_that_no_clock_can_take_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(JobError, match=next(iter(wrong))):
        loop_options(None, wrong)


def test_a_run_that_a_person_asked_for_takes_what_is_new_into_account(store: Store, training: Training) -> None:
    training.loops.set(PROJECT, STUDIO, enabled=True, options=QUIET)
    annotate(store, 1, 2, 3)
    pass_time(store, 61)
    job, new = training.begin(PROJECT, STUDIO, QUIET, reason="labelloop train")
    assert new
    assert training.runs.find(job.id) is not None
    store.jobs.end(job.id, "done", owner=None)
    assert look(training) == 0, "the same annotations again"


def test_a_job_is_never_seen_without_its_run(store: Store, training: Training, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise RuntimeError("killed")

    monkeypatch.setattr(training.runs, "insert", crash)
    with pytest.raises(RuntimeError, match="killed"):
        training.begin(PROJECT, STUDIO, QUIET, reason="labelloop train")
    assert store.jobs.newest() == []


class TestApproving:
    def waiting(self, store: Store, training: Training) -> str:
        """A run that ended with a candidate that waits for a word."""
        job, _ = training.begin(PROJECT, STUDIO, QUIET, reason="labelloop train")
        end = schema.now()
        training.runs.update(job.id, stage="done", candidate="project-7@1", outcome="waits", ended_at=end)
        store.jobs.end(job.id, "done", owner=None)
        return job.id

    def test_is_refused_while_another_run_is_at_work_and_changes_nothing(
        self, store: Store, training: Training
    ) -> None:
        first = self.waiting(store, training)
        second, _ = training.begin(PROJECT, STUDIO, QUIET, reason="the trigger")
        with pytest.raises(JobError, match=second.id):
            training.approve(PROJECT)
        run = training.runs.find(first)
        assert run is not None
        assert (run.stage, run.outcome) == ("done", "waits")

    def test_looks_past_runs_that_made_nothing(self, store: Store, training: Training) -> None:
        first = self.waiting(store, training)
        second, _ = training.begin(PROJECT, STUDIO, QUIET, reason="the trigger")
        training.runs.update(second.id, stage="done", outcome="declined", ended_at=schema.now())
        store.jobs.end(second.id, "done", owner=None)
        assert training.approve(PROJECT).id == first

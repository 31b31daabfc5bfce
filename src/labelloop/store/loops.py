"""Learning loops as rows: which projects learn by themselves, when, and what was counted for it.

Annotations are counted by their events (store/events), which webhooks and the watcher record alike: a project is due
when enough *different tasks* have changed since the last run began, and people have paused.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.core.errors import LoopNotFound
from labelloop.store import schema
from labelloop.store.db import upsert

Promotion = Literal["auto", "always", "never", "ask"]
Annotators = Literal["latest", "ground_truth", "consensus"]

CHANGES = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED")
START = "START_TRAINING"
PRESSED = "somebody pressed Start Training"


_YEAR_S = 365 * 86_400.0
LIMITS: Mapping[str, tuple[float, float]] = {
    "min_new": (1, 10**9),
    "quiet_s": (0, _YEAR_S),
    "every_h": (1e-6, _YEAR_S / 3600),
    "budget_s": (1e-3, _YEAR_S),
    "memory_mb": (1, 10**9),
    "margin": (-1, 1),
    "min_held_out": (1, 10**9),
    "seed": (0, 2**32 - 1),
}
"""The least and the greatest value of an option. What lies outside, or is NaN, no clock or child process can take."""


class LoopOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a project learns.

    `min_new` tasks must have changed, and the last change be `quiet_s` old; with `every_h` it also begins when that
    many hours have passed since the last run and anything is new. `trainer` "auto" takes the first that can train the
    live model, else one that needs none. `budget_s` is the training's wall time. `keep_old` leaves earlier predictions
    in Label Studio, `even_if_few` lets the gate open however little is held out. What is None is as the settings say:
    whose annotations count, whether and by what `margin` the candidate must be better to go live, and the least number
    of held-out pictures. The split is a setting alone: a task that changed sides would be tested on what was learned
    from it.
    """

    min_new: int = 20
    quiet_s: float = 60.0
    every_h: float | None = None
    trainer: str = "auto"
    budget_s: float = 60.0
    memory_mb: int = 4096
    trainer_options: Mapping[str, Any] = {}
    annotators: Annotators | None = None
    promotion: Promotion | None = None
    margin: float | None = None
    min_held_out: int | None = None
    even_if_few: bool = False
    keep_old: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        wrong = []
        for name, (least, most) in LIMITS.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:  # NaN is not between anything
                wrong.append(name)
        if wrong:
            raise ValueError(f"{', '.join(wrong)} cannot be that small or large")


class Loop(msgspec.Struct, frozen=True):
    """`seen_event` is the newest event that the last run took into account; `run_at` when that run began."""

    project_id: int
    label_studio: str
    enabled: bool
    options: LoopOptions
    seen_event: int
    run_at: datetime | None
    changed_at: datetime


class News(msgspec.Struct, frozen=True):
    """What happened since the last run: how many tasks changed, when last, and whether somebody asked for training.
    `newest` is the id of the last event looked at."""

    tasks: int = 0
    last_at: datetime | None = None
    asked: bool = False
    newest: int = 0


class Loops:
    """Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def set(
        self,
        project_id: int,
        label_studio: str,
        *,
        enabled: bool,
        options: LoopOptions,
        seen_event: int | None = None,
    ) -> Loop:
        """Switch a project's loop on or off. A new loop counts what comes after `seen_event`, by default from now on:
        what was annotated before is in the first training anyway, and whoever wants it at once runs
        `labelloop train`."""
        values: dict[str, Any] = {
            "label_studio": label_studio,
            "enabled": enabled,
            "options": msgspec.to_builtins(options),
            "changed_at": schema.now(),
        }
        with self._engine.begin() as connection:
            known = connection.execute(sa.update(schema.loops).filter_by(project_id=project_id).values(**values))
            if not known.rowcount:
                values["seen_event"] = _newest(connection) if seen_event is None else seen_event
                upsert(connection, schema.loops, {"project_id": project_id}, values)
        return self.get(project_id)

    def get(self, project_id: int) -> Loop:
        """Raises LoopNotFound."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.loops).filter_by(project_id=project_id)).mappings().first()
        if row is None:
            raise LoopNotFound(
                f"Project {project_id} does not learn by itself.", hint=f"Begin: labelloop loop {project_id} on"
            )
        return _loop(row)

    def find(self, project_id: int) -> Loop | None:
        try:
            return self.get(project_id)
        except LoopNotFound:
            return None

    def all(self) -> list[Loop]:
        with self._engine.connect() as connection:
            return [_loop(row) for row in connection.execute(sa.select(schema.loops)).mappings()]

    def begun(self, project_id: int, *, seen_event: int) -> None:
        """A run has begun that takes everything up to `seen_event` into account."""
        with self._engine.begin() as connection:
            query = sa.update(schema.loops).filter_by(project_id=project_id)
            connection.execute(query.values(seen_event=seen_event, run_at=schema.now()))

    def news(self, loop: Loop) -> News:
        """What happened in the project since its last run. Who pressed Start Training while a run was at work was told
        that it is running; that begins no second one."""
        events = schema.events.c
        query = sa.select(events.id, events.action, events.task_ids, events.received_at).where(
            events.project_id == loop.project_id, events.id > loop.seen_event, events.action.in_((*CHANGES, START))
        )
        tasks: set[int] = set()
        last_at, asked, newest, unnamed = None, False, loop.seen_event, 0
        with self._engine.connect() as connection:
            for row in connection.execute(query.order_by(events.id)).all():
                newest = row.id
                if row.action == START:
                    asked = asked or not _was_running(connection, loop.project_id, row.received_at)
                    continue
                last_at = row.received_at
                tasks.update(row.task_ids)
                unnamed += not row.task_ids  # a deletion names annotations, and no task
        return News(tasks=len(tasks) + unnamed, last_at=last_at, asked=asked, newest=newest)


def is_due(loop: Loop, news: News, *, now: datetime) -> str | None:
    """Why a run should begin now, in words for the log; None when it should not."""
    options = loop.options
    if news.asked:
        return PRESSED
    if not loop.enabled or not news.tasks or news.last_at is None:
        return None
    if now - news.last_at < timedelta(seconds=options.quiet_s):
        return None
    if news.tasks >= options.min_new:
        return f"{news.tasks} tasks changed"
    since = loop.run_at or loop.changed_at
    if options.every_h is not None and now - since >= timedelta(hours=options.every_h):
        return f"{options.every_h:g} hours have passed and {news.tasks} tasks changed"
    return None


def _loop(row: Mapping[Any, Any]) -> Loop:
    return schema.as_struct(row, Loop)


def _was_running(connection: sa.Connection, project_id: int, at: datetime) -> bool:
    """Whether a run of the project had begun at a moment, and its job not ended."""
    runs, jobs = schema.runs.c, schema.jobs.c
    then = sa.or_(jobs.active_key.is_not(None), jobs.finished_at > at)
    query = sa.select(jobs.id).join(schema.runs, runs.job_id == jobs.id)
    query = query.where(runs.project_id == project_id, runs.started_at <= at, then).limit(1)
    return connection.execute(query).first() is not None


def _newest(connection: sa.Connection) -> int:
    return connection.execute(sa.select(sa.func.max(schema.events.c.id))).scalar() or 0

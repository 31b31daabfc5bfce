"""Runs of the learning loop as rows: how far each is, what it learned and how it ended. A run is a job (store/jobs) of
kind "retrain"; the row here holds what only such a job has."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.loops import LoopOptions

Stage = Literal["pull", "train", "further", "evaluate", "promote", "refresh", "order", "done"]
Outcome = Literal["promoted", "refused", "waits", "declined", "delegated"]
"""What became of a run's candidate. The last two have none: nothing was trained, or the model trains itself."""

KEPT_CURVE = 500
"""Points of the loss curve that are kept of one run; a longer one is thinned."""


class Point(msgspec.Struct, frozen=True, omit_defaults=True):
    """One report of a trainer: `seconds` since it began, and what it said."""

    seconds: float
    step: int = 0
    loss: float | None = None
    metrics: Mapping[str, float] = {}


class Run(msgspec.Struct, frozen=True):
    """`candidate` is the version that was made, `base` the one it began with ("" from nothing). `counts` says what the
    data set holds, `metrics` the candidate's and the live version's figures, `verdict` why it was promoted or not."""

    job_id: str
    project_id: int
    reason: str
    options: LoopOptions
    stage: Stage
    trainer: str
    base: str
    candidate: str
    manifest: str
    counts: Mapping[str, Any]
    curve: tuple[Point, ...]
    metrics: Mapping[str, Any]
    outcome: Outcome | None
    verdict: str
    started_at: datetime
    ended_at: datetime | None


class Runs:
    """Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def insert(
        self,
        connection: sa.Connection,
        job_id: str,
        project_id: int,
        *,
        reason: str,
        options: LoopOptions,
        base: str,
    ) -> None:
        """Begin a run at its first stage, in the transaction that creates its job."""
        row: dict[str, Any] = {"job_id": job_id, "project_id": project_id, "reason": reason, "base": base}
        row |= {"options": msgspec.to_builtins(options), "stage": "pull", "trainer": "", "candidate": ""}
        row |= {"manifest": "", "counts": {}, "curve": [], "metrics": {}, "verdict": "", "started_at": schema.now()}
        connection.execute(sa.insert(schema.runs).values(**row))

    def find(self, job_id: str) -> Run | None:
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.runs).filter_by(job_id=job_id)).mappings().first()
        return None if row is None else schema.as_struct(row, Run)

    def of_project(self, project_id: int, *, limit: int = 20) -> list[Run]:
        """The newest first."""
        query = sa.select(schema.runs).filter_by(project_id=project_id)
        query = query.order_by(schema.runs.c.started_at.desc()).limit(limit)
        with self._engine.connect() as connection:
            return [schema.as_struct(row, Run) for row in connection.execute(query).mappings()]

    def update(self, job_id: str, **values: Any) -> None:
        """Set columns; frozen values become JSON."""
        plain = {name: msgspec.to_builtins(value, builtin_types=(datetime,)) for name, value in values.items()}
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.runs).filter_by(job_id=job_id).values(**plain))


def thinned(curve: tuple[Point, ...]) -> tuple[Point, ...]:
    """Every second point once there are too many, so that a long run keeps its whole shape."""
    return curve if len(curve) <= KEPT_CURVE else (*curve[:-1:2], curve[-1])

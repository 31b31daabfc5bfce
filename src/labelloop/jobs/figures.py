"""How far jobs are, in figures for people: the command line, the JSON API and the status page show the same."""

from __future__ import annotations

import time

import msgspec
import sqlalchemy as sa

from labelloop.store.jobs import Job
from labelloop.store.pages import pace, progress

RECENT_S = 60.0
"""The span that tasks per second are measured over: short enough to follow a Label Studio that became slow."""


class Figures(msgspec.Struct, frozen=True):
    """Counts of tasks; `done` is the sum of `stored`, `failed` and `skipped` (see store/pages). `total` None: not known
    yet. `tasks_per_s` and `eta_s` None: nothing to tell them from yet, or the job does not run."""

    stored: int
    failed: int
    skipped: int
    done: int
    total: int | None
    tasks_per_s: float | None
    eta_s: float | None


def figures_of(engine: sa.Engine, job: Job) -> Figures:
    """Read from what workers have written, so that it is the same wherever the job runs."""
    now = progress(engine, job.id)
    rate = _rate(engine, job)
    left = max(0, job.total - now.done) if job.total is not None else None
    eta_s = round(left / rate, 1) if rate and left is not None and not job.ended else None
    shown = round(rate, 2) if rate is not None else None
    return Figures(now.stored, now.failed, now.skipped, now.done, job.total, shown, eta_s)


def _rate(engine: sa.Engine, job: Job) -> float | None:
    """Tasks per second: of the last minute while it runs, on the whole when it has ended."""
    if job.state == "running":
        return pace(engine, job.id, since_s=time.time() - RECENT_S)
    if job.state == "done" and job.run == 1 and job.started_at and job.finished_at:  # else it rested in between
        seconds = (job.finished_at - job.started_at).total_seconds()
        done = progress(engine, job.id).done
        return done / seconds if done and seconds > 0 else None
    return None

"""How far jobs are, in figures for people: the command line, the JSON API and the status page show the same."""

from __future__ import annotations

import time
from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from labelloop.store.films import FilmProgress, films_in_work
from labelloop.store.jobs import Job
from labelloop.store.pages import pace, progress

RECENT_S = 60.0
"""The span that tasks per second are measured over: short enough to follow a Label Studio that became slow."""


class FilmFigures(msgspec.Struct, frozen=True):
    """How far a job is in one of the films that it is at: `frame` of `frames_count`. None: not known."""

    task_id: int
    frame: int
    frames_count: int
    frames_per_s: float | None
    eta_s: float | None


class Figures(msgspec.Struct, frozen=True):
    """Counts of tasks; `done` is the sum of `stored`, `failed` and `skipped` (see store/pages). `total` None: not known
    yet. `tasks_per_s` and `eta_s` None: nothing to tell them from yet, or the job does not run. `films` are those in
    work; then `eta_s` counts on the films that wait being as long as they are."""

    stored: int
    failed: int
    skipped: int
    done: int
    total: int | None
    tasks_per_s: float | None
    eta_s: float | None
    films: tuple[FilmFigures, ...] = ()

    @property
    def reached(self) -> float:
        """Tasks that are done, with what is done of the films in work."""
        return self.done + sum(min(film.frame / max(film.frames_count, 1), 1.0) for film in self.films)


def figures_of(engine: sa.Engine, job: Job) -> Figures:
    """Read from what workers have written, so that it is the same wherever the job runs."""
    now = progress(engine, job.id)
    films = [] if job.ended else films_in_work(engine, job.id, since_s=time.time() - RECENT_S)
    rate = _film_rate(films) or _rate(engine, job)
    shown = round(rate, 2 if rate >= 0.1 else 5) if rate is not None else None
    found = Figures(now.stored, now.failed, now.skipped, now.done, job.total, shown, None, tuple(map(_film, films)))
    if not rate or job.total is None or job.ended:
        return found
    return msgspec.structs.replace(found, eta_s=round(max(0.0, job.total - found.reached) / rate, 1))


def _film_rate(films: Sequence[FilmProgress]) -> float | None:
    """Tasks per second, from how fast the films in work go on."""
    rates = [film.frames_per_s / max(film.frames_count, 1) for film in films if film.frames_per_s]
    return sum(rates) if rates else None


def _film(film: FilmProgress) -> FilmFigures:
    rate = film.frames_per_s
    eta_s = round((film.frames_count - film.frame) / rate, 1) if rate else None
    return FilmFigures(film.task_id, film.frame, film.frames_count, round(rate, 1) if rate else None, eta_s)


def _rate(engine: sa.Engine, job: Job) -> float | None:
    """Tasks per second: of the last minute while it runs, on the whole when it has ended."""
    if job.state == "running":
        return pace(engine, job.id, since_s=time.time() - RECENT_S)
    if job.state == "done" and job.run == 1 and job.started_at and job.finished_at:  # else it rested in between
        seconds = (job.finished_at - job.started_at).total_seconds()
        done = progress(engine, job.id).done
        return done / seconds if done and seconds > 0 else None
    return None

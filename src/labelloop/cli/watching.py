"""A job on a terminal: a bar with tasks per second, failures and the time left; and how it ended."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta

import sqlalchemy as sa
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from labelloop.jobs.figures import FilmFigures, figures_of
from labelloop.store.jobs import Job, Jobs
from labelloop.store.pages import failures

LOOK_S = 0.25
_SHOWN = 10
_PATIENCE_S = 3.0
"""How often it is looked whether a job that nobody runs, or somebody who was killed, has a worker to hope for."""


def watch(jobs: Jobs, engine: sa.Engine, job_id: str, console: Console, *, ensure_worker: Callable[[], None]) -> Job:
    """Show a job until it ends; returns it. `ensure_worker` is called while nobody who lives runs it."""
    bar = Progress(
        SpinnerColumn(),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("[red]{task.fields[failed]}[/]"),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    with bar:
        shown = bar.add_task("", total=None, rate="", failed="")
        return _follow(jobs, engine, job_id, bar, shown, console, ensure_worker)


def _follow(
    jobs: Jobs,
    engine: sa.Engine,
    job_id: str,
    bar: Progress,
    shown: TaskID,
    console: Console,
    ensure_worker: Callable[[], None],
) -> Job:
    idle_since = -_PATIENCE_S
    lines = jobs.lines(job_id)
    line = lines[-1].id if lines else 0
    while True:
        job = jobs.get(job_id)
        now = figures_of(engine, job)
        for entry in jobs.lines(job_id, after=line):
            line = entry.id
            if entry.level != "info":
                console.print(f"[yellow]{escape(entry.text)}[/]")
        rate = f"{now.tasks_per_s:.1f} tasks/s" if now.tasks_per_s and not now.films else ""
        failed = f"{now.failed} failed" if now.failed else ""
        held = job.owner is not None and jobs.is_alive(job.owner)
        doing = _doing(job, held=held) or ", ".join(film_line(film) for film in now.films)
        bar.update(shown, completed=now.reached, total=job.total, rate=rate, failed=failed, description=doing)
        if job.ended:
            return job
        if not held and time.monotonic() - idle_since > _PATIENCE_S:
            ensure_worker()
            idle_since = time.monotonic()
        time.sleep(LOOK_S)


def _doing(job: Job, *, held: bool) -> str:
    if job.cancelling:
        return "stops after this page"
    return "" if held else "waits for a worker"


def film_line(film: FilmFigures) -> str:
    """How far a job is in a film."""
    rate = f", {film.frames_per_s:.0f} frames/s" if film.frames_per_s else ""
    left = f", {timedelta(seconds=round(film.eta_s))} left" if film.eta_s is not None else ""
    return f"task {film.task_id}: frame {film.frame:,} of {film.frames_count:,}{rate}{left}"


def summarise(job: Job, engine: sa.Engine, console: Console) -> None:
    """How a job stands: counts, and why tasks failed."""
    now = figures_of(engine, job)
    colour = {"done": "green", "failed": "red", "cancelled": "yellow"}.get(job.state, "cyan")
    of = f" of {job.total}" if job.total and job.total != now.done else ""
    did = f"{now.stored}{of} predictions of {job.version} stored" if job.version else f"{job.kind} with {job.model}"
    parts = [f"{did} in project {job.project_id}"]
    parts += [f"{now.failed} tasks failed"] * bool(now.failed)
    parts += [f"{now.skipped} were deleted or predicted by others meanwhile"] * bool(now.skipped)
    console.print(f"[{colour}]{job.state}[/] {escape(', '.join(parts))}.")
    for film in now.films:
        console.print(f"  {film_line(film)}", markup=False)
    if job.error:
        console.print(f"[red]{escape(job.error)}[/]")
    if not now.failed:
        return
    found = failures(engine, job.id)
    for code, count in Counter(failure.code for failure in found).most_common():
        console.print(f"  {count} x {code}", markup=False)
    for failure in found[:_SHOWN]:
        console.print(f"    task {failure.task_id}: {failure.message}", markup=False)
    if len(found) > _SHOWN:
        console.print(f"    … and {len(found) - _SHOWN} more: labelloop jobs show {job.id} --failed")
    console.print(f"  → labelloop jobs resume {job.id} --failed", markup=False)

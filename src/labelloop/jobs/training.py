"""Asking for training: the command line, the JSON API, the Start Training button and the triggers all come here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, Literal, NamedTuple

import msgspec
import sqlalchemy as sa

from labelloop.core.decoding import convert
from labelloop.core.errors import JobError, LabelloopError
from labelloop.store.jobs import Job, Jobs, Work
from labelloop.store.lineage import Lineages
from labelloop.store.loops import Loop, LoopOptions, Loops, News
from labelloop.store.registry import ModelVersion, Registry
from labelloop.store.runs import Run, Runs

KIND = "retrain"

COMPARED = "compared_with"
"""Where the counts of a run keep which version was live when its candidate was compared, "" for none."""


class Request(msgspec.Struct, frozen=True):
    """What became of a press on Start Training; the message is for the person who pressed."""

    status: Literal["accepted", "running", "declined"]
    message: str
    job: str = ""


class LoopState(msgspec.Struct, frozen=True):
    """Where a project's loop is. `next` says in words what happens next; `run` is its latest run, with its job."""

    project_id: int
    enabled: bool
    options: LoopOptions
    news: News
    next: str
    run: Run | None = None
    job: Job | None = None


class Training(NamedTuple):
    """The rows that training is about. `default` is what serves projects that no model is assigned to, `address` the
    Label Studio that the settings name."""

    registry: Registry
    jobs: Jobs
    loops: Loops
    runs: Runs
    lineages: Lineages
    default: str | None = None
    address: str = ""

    @classmethod
    def over(
        cls, engine: sa.Engine, registry: Registry, jobs: Jobs, *, default: str | None = None, address: str = ""
    ) -> Training:
        return cls(registry, jobs, Loops(engine), Runs(engine), Lineages(engine), default, address)

    def live(self, project_id: int) -> ModelVersion | None:
        """What serves a project now."""
        return self.registry.catalogue().of_project(project_id, default=self.default)

    def begin(self, project_id: int, label_studio: str, options: LoopOptions, *, reason: str) -> tuple[Job, bool]:
        """Queue a run, and True; or the run of this project that has not ended yet, and False: what changed since it
        read the annotations counts for the next one. What changed before it begins is in it, whoever asked."""
        loop = self.loops.find(project_id)
        news = self.loops.news(loop) if loop is not None else None
        live = self.live(project_id)
        base = live.id if live is not None else ""
        # the version stays empty: one run per project, whatever model it begins with
        job, new = self.jobs.create(
            Work(label_studio, project_id, base, "", kind=KIND),
            beside=lambda connection, job_id: self.runs.insert(
                connection, job_id, project_id, reason=reason, options=options, base=base
            ),
        )
        if new and news is not None:
            self.loops.begun(project_id, seen_event=news.newest)
        return job, new

    def ask(self, project_id: int | None, *, event: int) -> Request:
        """Somebody pressed Start Training in Label Studio; it is recorded as `event`, and `jobs/triggers` begins within
        seconds. Here we only say what will come of it."""
        if project_id is None:
            return Request("declined", "The request names no project.")
        running = self.unfinished(project_id)
        if running is not None:
            return Request("running", f"Training is running already: job {running.id}.", running.id)
        address = self.address_of(project_id)
        if address is None:
            return Request("declined", f"Connect the project first: labelloop connect {project_id} --url … --token …")
        if self.loops.find(project_id) is None:
            self.loops.set(project_id, address, enabled=False, options=LoopOptions(), seen_event=event - 1)
        return Request("accepted", "Training begins.")

    def approve(self, project_id: int) -> Job:
        """Put the newest candidate live although, or because, the gate left it to a person. Raises JobError when
        nothing waits, and while another run is at work."""
        running = self.unfinished(project_id)
        if running is not None:
            raise JobError(
                f"A run of project {project_id} is at work: job {running.id}.",
                hint=f"Wait for it, or: labelloop jobs cancel {running.id}",
            )
        nothing = ("declined", "delegated")
        made = (run for run in self.runs.of_project(project_id) if run.outcome not in nothing)
        run = next(made, None)
        if run is not None and run.candidate and run.outcome in ("waits", "refused"):
            # whatever is live by now: a person chose this one
            counts = {name: value for name, value in run.counts.items() if name != COMPARED}
            self.runs.update(run.job_id, stage="promote", counts=counts, ended_at=None)
            try:
                return self.jobs.resume(run.job_id)
            except JobError:  # a run began in this moment
                self.runs.update(run.job_id, stage=run.stage, counts=run.counts, ended_at=run.ended_at)
                raise
        raise JobError(f"No new version of project {project_id} waits.", hint=f"See: labelloop loop {project_id}")

    def unfinished(self, project_id: int) -> Job | None:
        """The run of a project that waits or works now."""
        address = self.address_of(project_id)
        for run in self.runs.of_project(project_id, limit=3):
            if run.ended_at is None:
                job = self._job(run)
                if job is not None and not job.ended and address in (None, job.label_studio):
                    return job
        return None

    def address_of(self, project_id: int) -> str | None:
        """Which Label Studio a project belongs to: as its loop says, else the settings, else the one that was connected
        last."""
        loop = self.loops.find(project_id)
        if loop is not None and loop.label_studio:
            return loop.label_studio
        return self.address or next((url for url, _ in self.registry.connections()), None)

    def state(self, project_id: int) -> LoopState:
        """Raises LoopNotFound."""
        loop = self.loops.get(project_id)
        news = self.loops.news(loop)
        run = next(iter(self.runs.of_project(project_id, limit=1)), None)
        job = self._job(run) if run is not None else None
        return LoopState(project_id, loop.enabled, loop.options, news, self._next(loop, news, run, job), run, job)

    def _job(self, run: Run) -> Job | None:
        try:
            return self.jobs.get(run.job_id)
        except LabelloopError:
            return None

    def _next(self, loop: Loop, news: News, run: Run | None, job: Job | None) -> str:
        if job is not None and not job.ended and run is not None:
            return f"A run {describe_stage(run) if job.owner else 'waits for a worker'} (job {job.id})."
        if not loop.enabled:
            return f"Off. Switch it on: labelloop loop {loop.project_id} on"
        options = loop.options
        if news.tasks >= options.min_new:
            return f"{news.tasks} of {options.min_new} tasks changed; it begins after {options.quiet_s:g} quiet s."
        found = f"{news.tasks} of {options.min_new} new annotations."
        if job is not None and job.state == "failed":  # what it had read is no news any more
            found += f" The latest run failed: labelloop jobs resume {job.id}, or labelloop train {loop.project_id}."
        if options.every_h is None:
            return found
        due = (loop.run_at or loop.changed_at) + timedelta(hours=options.every_h)
        return f"{found} With any, it also begins at {due:%Y-%m-%d %H:%M} UTC."


def loop_options(known: LoopOptions | None, changes: Mapping[str, Any]) -> LoopOptions:
    """`known`, or the defaults, with `changes`. Raises JobError that says which one cannot be."""
    values = msgspec.to_builtins(known or LoopOptions()) | dict(changes)
    try:
        return convert(values, LoopOptions)
    except (msgspec.ValidationError, ValueError) as error:
        raise JobError(f"The loop cannot run like that: {error}.", hint="See: labelloop loop --help") from error


def summary(run: Run) -> list[str]:
    """What a run did, a line each, for people."""
    lines = []
    counts = run.counts
    if counts:
        shown = [f"{counts.get('train', 0)} {counts.get('reads', 'pictures')} to train on"]
        shown += [f"{counts.get('val', 0)} held out"]
        answers = f"{counts['choices']} choices" if "choices" in counts else f"{counts.get('boxes', 0)} boxes"
        lines.append(", ".join([*shown, answers]))
    if run.trainer:
        made = f": {run.candidate}" if run.candidate else ""
        lines.append(f"trained by {run.trainer} from {run.base or 'nothing'}{made}")
    for name, figures in run.metrics.items():
        if isinstance(figures, Mapping):
            lines.append(f"{name}: {', '.join(_in_words(figures))}")
    if run.verdict:
        lines.append(run.verdict)
    return lines


FIGURES: Mapping[str, str] = {
    "ap50": "AP50",
    "ap": "AP",
    "accuracy": "accuracy",
    "macro_f1": "macro-F1",
    "precision": "precision as drawn",
    "recall": "recall",
    "ece": "calibration error",
}
"""What is said of a version in one line; what could not be measured is left out."""


def _in_words(figures: Mapping[str, Any]) -> Iterator[str]:
    for key, name in FIGURES.items():
        value = figures.get(key)
        if value is not None:
            yield f"{name} {value:.3f}"
    for key, what in (("seconds_per_picture", "picture"), ("seconds_per_item", "item")):
        if figures.get(key):
            yield f"{1000 * figures[key]:.0f} ms a {what}"
    if figures.get("failed"):
        yield f"{figures['failed']} without an answer"


def describe_stage(run: Run) -> str:
    """What a run does now, for a status line."""
    doing = {
        "pull": "reads annotations",
        "train": f"trains with {run.trainer or '…'}",
        "further": f"trains with {run.trainer}",
        "evaluate": "compares on held-out pictures",
        "promote": "puts the new version live",
        "refresh": "predicts the tasks that nobody has touched",
        "order": "puts the most uncertain first",
        "done": "is done",
    }[run.stage]
    if run.stage in ("train", "further") and run.curve:
        last = run.curve[-1]
        doing += f", {last.seconds:.0f} of {run.options.budget_s:.0f} s"
        doing += f", loss {last.loss:.3g}" if last.loss is not None else ""
    return doing

"""`labelloop loop` and `labelloop train`: a project that learns from its corrections."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from labelloop.jobs.training import LoopState, Training
    from labelloop.serving.models import Store
    from labelloop.store.loops import LoopOptions
    from labelloop.store.runs import Run

CURVE_WIDTH = 40
_BARS = "▁▂▃▄▅▆▇█"


class Wanted(StrEnum):
    on = "on"
    off = "off"
    status = "status"
    promote = "promote"


_MIN_NEW = typer.Option(None, min=1, help="Train when this many tasks have changed (default: 20) …")
_QUIET = typer.Option(None, "--quiet", min=0, help="… and nothing changed for this many seconds (default: 60).")
_EVERY = typer.Option(None, "--every", help="Also train every so many hours, if anything is new.")
_TRAINER = typer.Option(None, help="auto, head, full, scratch, command, …; see docs/learning.md (default: auto).")
_WITH = typer.Option([], "--with", help="NAME=VALUE for the trainer; JSON or text. May be repeated.")
_BUDGET = typer.Option(None, "--budget", min=1, help="Seconds that a training may take (default: 60).")
_PROMOTION = typer.Option(
    None, help="auto: the better one goes live; always; never; ask: `labelloop loop PROJECT promote` (default: auto)."
)
_MARGIN = typer.Option(None, help="How much better the new version must be, in AP50 (default: by setting).")
_MIN_HELD_OUT = typer.Option(
    None, min=1, help="Held-out pictures without which nothing goes live (default: by setting)."
)
_ANNOTATORS = typer.Option(None, help="latest, ground_truth or consensus, where several people annotated a task.")
_KEEP_OLD = typer.Option(None, "--keep-old/--remove-old", help="What becomes of earlier predictions (default: keep).")
_URL = typer.Option(None, help="Address of Label Studio, with its sub-path.  [env: LABEL_STUDIO_URL]")
_TOKEN = typer.Option(None, help="Personal access token or legacy token.  [env: LABEL_STUDIO_API_KEY]")


def loop(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    wanted: Wanted = typer.Argument(Wanted.status, help="on, off, status, or promote what waits for your word."),
    min_new: int = _MIN_NEW,
    quiet: float = _QUIET,
    every: float = _EVERY,
    trainer: str = _TRAINER,
    trainer_options: list[str] = _WITH,
    budget: float = _BUDGET,
    promotion: str = _PROMOTION,
    margin: float = _MARGIN,
    min_held_out: int = _MIN_HELD_OUT,
    annotators: str = _ANNOTATORS,
    keep_old: bool = _KEEP_OLD,
    url: str = _URL,
    token: str = _TOKEN,
    as_json: bool = typer.Option(False, "--json", help="Print the state as JSON."),
) -> None:
    """Let PROJECT learn from its corrections by itself, or see where it is."""
    from labelloop.cli.report import console

    _, training, number, address = _open(project, url, token)
    changes = {
        "min_new": min_new,
        "quiet_s": quiet,
        "every_h": every,
        "trainer": trainer,
        "trainer_options": pairs(trainer_options) or None,
        "budget_s": budget,
        "promotion": promotion,
        "margin": margin,
        "min_held_out": min_held_out,
        "annotators": annotators,
        "keep_old": keep_old,
    }
    if wanted in (Wanted.on, Wanted.off):
        known = training.loops.find(number)
        options = changed(known.options if known else None, changes)
        training.loops.set(number, address, enabled=wanted is Wanted.on, options=options)
    elif wanted is Wanted.promote:
        job = training.approve(number)
        typer.echo(f"{job.model or 'The first model'} makes room: job {job.id} puts the new version live.")
        return
    state = training.state(number)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(state)).decode())
        return
    print_state(state, console())


def train(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    trainer: str = _TRAINER,
    trainer_options: list[str] = _WITH,
    budget: float = _BUDGET,
    promotion: str = _PROMOTION,
    margin: float = _MARGIN,
    min_held_out: int = _MIN_HELD_OUT,
    annotators: str = _ANNOTATORS,
    keep_old: bool = _KEEP_OLD,
    url: str = _URL,
    token: str = _TOKEN,
    detach: bool = typer.Option(False, "--detach", "-d", help="Start it and return at once."),
) -> None:
    """Train PROJECT's next model now, and put it live if it is better. Ctrl-C leaves it running."""
    from labelloop.cli.prelabel import ensure_worker
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings

    store, training, number, address = _open(project, url, token)
    known = training.loops.find(number)
    changes = {"trainer": trainer, "budget_s": budget, "promotion": promotion, "margin": margin}
    changes |= {"trainer_options": pairs(trainer_options) or None}
    changes |= {"min_held_out": min_held_out, "annotators": annotators, "keep_old": keep_old}
    options = changed(known.options if known else None, changes)
    if known is None:
        training.loops.set(number, address, enabled=False, options=options)
    job, new = training.begin(number, address, options, reason="labelloop train")
    out = console()
    settings = read_settings(label_studio_url=url, label_studio_token=token)
    out.print(f"Job {job.id} {'is queued' if new else 'trains this project already'}.", markup=False)
    if detach:
        ensure_worker(settings, store)
        out.print(f"See: labelloop loop {number}", markup=False)
        return
    follow(training, job.id, out, lambda: ensure_worker(settings, store))


def _open(project: str, url: str | None, token: str | None) -> tuple[Store, Training, int, str]:
    from labelloop.cli.connect import label_studio
    from labelloop.core.settings import read_settings
    from labelloop.jobs.submit import known_project
    from labelloop.jobs.training import Training
    from labelloop.labelstudio.client import Client
    from labelloop.serving.models import open_store

    settings = read_settings(label_studio_url=url, label_studio_token=token)
    store = open_store(settings)
    address, key = label_studio(settings, store.registry)
    with Client(address, key) as client:
        found = known_project(client, store.registry, project)
        address = client.base_url
    store.registry.save_connection(address, key)  # whoever runs the training needs it
    return store, Training.over(store.engine, store.registry, store.jobs), found.id, address


def pairs(words: list[str]) -> dict[str, Any]:
    """What NAME=VALUE says; a value that is JSON is taken as that. Raises BadParameter."""
    import json

    found: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not (name and equals):
            raise typer.BadParameter(f"{word!r} is not NAME=VALUE.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def changed(options: LoopOptions | None, changes: dict[str, Any]) -> LoopOptions:
    """`options` (or the defaults) with what was given on the command line. Raises JobError with what is wrong."""
    from labelloop.jobs.training import loop_options

    return loop_options(options, {name: value for name, value in changes.items() if value is not None})


def print_state(state: LoopState, out: Console) -> None:
    """Where the loop is, what the latest run made, and why it was or was not promoted."""
    switch = "[green]on[/]" if state.enabled else "[yellow]off[/]"
    out.print(f"The loop of project {state.project_id} is {switch}. {state.next}", markup=True)
    if state.run is not None:
        print_run(state.run, state.job.error if state.job is not None else "", out)


def print_run(run: Run, error: str, out: Console) -> None:
    from labelloop.jobs.training import summary

    out.print(f"\nRun {run.job_id}, {run.started_at:%Y-%m-%d %H:%M}, because {run.reason}.", markup=False)
    for line in summary(run):
        out.print(f"  {line}", markup=False)
    losses = [point.loss for point in run.curve if point.loss is not None]
    if losses:
        out.print(f"  loss {sparkline(losses)} {losses[0]:.3g} → {losses[-1]:.3g}", markup=False)
    if error:
        out.print(f"  [red]{error}[/]" if "[" not in error else error, markup="[" not in error)


def sparkline(values: list[float]) -> str:
    """The shape of a curve in one line of text."""
    step = max(1, len(values) // CURVE_WIDTH)
    shown = values[::step]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(int((value - low) / span * len(_BARS)), len(_BARS) - 1)] for value in shown)


def follow(training: Training, job_id: str, out: Console, ensure: Callable[[], object]) -> None:
    """Show a run until it ends or Ctrl-C; exit status 1 when it failed."""
    import time

    from labelloop.jobs.training import describe_stage

    try:
        with out.status("waits for a worker") as shown:
            asked = -10.0
            while True:
                job, run = training.jobs.get(job_id), training.runs.find(job_id)
                if job.ended:
                    break
                if job.owner is None and time.monotonic() - asked > 3:
                    ensure()
                    asked = time.monotonic()
                if run is not None:
                    shown.update(describe_stage(run) if job.owner else "waits for a worker")
                time.sleep(0.2)
    except KeyboardInterrupt:
        out.print(f"\nJob {job_id} goes on in the background: labelloop jobs logs {job_id}", markup=False)
        return
    if run is not None:
        print_run(run, job.error, out)
    if job.state != "done":
        raise typer.Exit(1)

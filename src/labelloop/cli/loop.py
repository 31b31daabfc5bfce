"""`labelloop loop` and `labelloop train`: a project that learns from its corrections."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    import subprocess

    from rich.console import Console

    from labelloop.jobs.training import Training
    from labelloop.serving.models import Store
    from labelloop.store.loops import LoopOptions


class Wanted(StrEnum):
    on = "on"
    off = "off"
    status = "status"
    promote = "promote"


_MIN_NEW = typer.Option(None, min=1, help="Train when this many tasks have changed (default: 20) …")
_QUIET = typer.Option(None, "--quiet", min=0, help="… and nothing changed for this many seconds (default: 60).")
_EVERY = typer.Option(None, "--every", help="Also train every so many hours, if anything is new; 0: no more.")
_TRAINER = typer.Option(None, help="auto, head, full, scratch, command, …; see docs/learning.md (default: auto).")
_WITH = typer.Option([], "--with", help="NAME=VALUE for the trainer; JSON or text. May be repeated.")
_BUDGET = typer.Option(None, "--budget", min=1, help="Seconds that a training may take (default: 60).")
_MEMORY = typer.Option(None, "--memory", min=1, help="Megabytes that a training may take (default: 4096).")
_PROMOTION = typer.Option(
    None, help="auto: the better one goes live; always; never; ask: `labelloop loop PROJECT promote` (default: auto)."
)
_ALWAYS = typer.Option(False, "--always", help="As --promotion always: it goes live however it did.")
_NEVER = typer.Option(False, "--never", help="As --promotion never.")
_ASK = typer.Option(False, "--ask", help="As --promotion ask.")
_MARGIN = typer.Option(None, help="How much better the new version must be, in AP50 (default: by setting).")
_MIN_HELD_OUT = typer.Option(
    None, min=1, help="Held-out pictures without which nothing goes live (default: by setting)."
)
_EVEN_IF_FEW = typer.Option(
    None, "--even-if-few/--only-if-enough", help="Let the better one go live however little is held out (default: no)."
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
    memory: int = _MEMORY,
    promotion: str = _PROMOTION,
    always: bool = _ALWAYS,
    never: bool = _NEVER,
    ask: bool = _ASK,
    margin: float = _MARGIN,
    min_held_out: int = _MIN_HELD_OUT,
    even_if_few: bool = _EVEN_IF_FEW,
    annotators: str = _ANNOTATORS,
    keep_old: bool = _KEEP_OLD,
    url: str = _URL,
    token: str = _TOKEN,
    as_json: bool = typer.Option(False, "--json", help="Print the state as JSON."),
) -> None:
    """Let PROJECT learn from its corrections by itself, or see where it is."""
    from labelloop.cli.loop_report import print_state
    from labelloop.cli.prelabel import ensure_worker
    from labelloop.cli.report import console
    from labelloop.core.errors import JobError
    from labelloop.core.settings import read_settings

    changes = {
        "min_new": min_new,
        "quiet_s": quiet,
        "every_h": every,
        "trainer": trainer,
        "trainer_options": pairs(trainer_options) or None,
        "budget_s": budget,
        "memory_mb": memory,
        "promotion": told(promotion, always=always, never=never, ask=ask),
        "margin": margin,
        "min_held_out": min_held_out,
        "even_if_few": even_if_few,
        "annotators": annotators,
        "keep_old": keep_old,
    }
    switches = wanted in (Wanted.on, Wanted.off)
    if not switches and any(value is not None for value in changes.values()):
        raise JobError("Nothing was changed.", hint=f"Options go with on or off: labelloop loop {project} on …")
    store, training, number, address = _open(project, url, token, away=wanted in (Wanted.off, Wanted.status))
    if switches:
        known = training.loops.find(number)
        options = changed(known.options if known else None, changes)
        training.loops.set(number, address, enabled=wanted is Wanted.on, options=options)
    elif wanted is Wanted.promote:
        job = training.approve(number)
        typer.echo(f"{job.model or 'The first model'} makes room: job {job.id} puts the new version live.")
        ensure_worker(read_settings(label_studio_url=url, label_studio_token=token), store)
        return
    state = training.state(number)
    if as_json:
        import msgspec

        typer.echo(msgspec.json.format(msgspec.json.encode(state)).decode())
        return
    print_state(state, console(), works=store.workers.any_alive())


def train(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    trainer: str = _TRAINER,
    trainer_options: list[str] = _WITH,
    budget: float = _BUDGET,
    memory: int = _MEMORY,
    promotion: str = _PROMOTION,
    always: bool = _ALWAYS,
    never: bool = _NEVER,
    ask: bool = _ASK,
    margin: float = _MARGIN,
    min_held_out: int = _MIN_HELD_OUT,
    even_if_few: bool = _EVEN_IF_FEW,
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
    from labelloop.store.loops import LoopOptions

    store, training, number, address = _open(project, url, token)
    known = training.loops.find(number)
    changes = {"trainer": trainer, "budget_s": budget, "margin": margin, "even_if_few": even_if_few}
    changes |= {"promotion": told(promotion, always=always, never=never, ask=ask), "memory_mb": memory}
    changes |= {"trainer_options": pairs(trainer_options) or None}
    changes |= {"min_held_out": min_held_out, "annotators": annotators, "keep_old": keep_old}
    options = changed(known.options if known else None, changes)
    if known is None:  # what is said of this run is no wish for later ones
        training.loops.set(number, address, enabled=False, options=LoopOptions())
    job, new = training.begin(number, address, options, reason="labelloop train")
    out = console()
    settings = read_settings(label_studio_url=url, label_studio_token=token)
    out.print(f"Job {job.id} {'is queued' if new else 'trains this project already'}.", markup=False)
    if detach:
        ensure_worker(settings, store)
        out.print(f"See: labelloop loop {number}", markup=False)
        return
    follow(training, job.id, out, lambda started: ensure_worker(settings, store, started))


def _open(project: str, url: str | None, token: str | None, *, away: bool = False) -> tuple[Store, Training, int, str]:
    """The rows, the project's id, and the address of its Label Studio. With `away` a project whose id is known to have
    a loop is not asked about: Label Studio may be down."""
    from labelloop.cli.connect import label_studio
    from labelloop.core.settings import read_settings
    from labelloop.jobs.submit import known_project
    from labelloop.jobs.training import Training
    from labelloop.labelstudio.client import Client
    from labelloop.serving.models import open_store
    from labelloop.store.registry import parse_number

    settings = read_settings(label_studio_url=url, label_studio_token=token)
    store = open_store(settings)
    training = Training.over(store.engine, store.registry, store.jobs)
    number = parse_number(project)
    known = training.loops.find(number) if away and number is not None and url is None else None
    if known is not None:
        return store, training, known.project_id, known.label_studio
    address, key = label_studio(settings, store.registry)
    with Client(address, key) as client:
        found = known_project(client, store.registry, project)
        address = client.base_url
    store.registry.save_connection(address, key)  # whoever runs the training needs it
    return store, training, found.id, address


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


def told(promotion: str | None, **flags: bool) -> str | None:
    """What was said of promotion, by its option or by a flag of its own. Raises BadParameter for two answers."""
    said = {name for name, given in flags.items() if given} | ({promotion} if promotion else set())
    if len(said) > 1:
        raise typer.BadParameter(f"One of them: {', '.join(sorted(said))}.", param_hint="--promotion")
    return next(iter(said), None)


def changed(options: LoopOptions | None, changes: dict[str, Any]) -> LoopOptions:
    """`options` (or the defaults) with what was given on the command line. Raises JobError with what is wrong."""
    from labelloop.jobs.training import loop_options

    given = {name: value for name, value in changes.items() if value is not None}
    if given.get("every_h") == 0:
        given["every_h"] = None
    return loop_options(options, given)


def follow(
    training: Training,
    job_id: str,
    out: Console,
    ensure: Callable[[subprocess.Popen[bytes] | None], subprocess.Popen[bytes] | None],
) -> None:
    """Show a run until it ends or Ctrl-C; exit status 1 when it failed. `ensure` starts a worker unless one lives, or
    the one that it is given is about to."""
    import time

    from labelloop.cli.loop_report import print_run
    from labelloop.jobs.training import describe_stage

    started: subprocess.Popen[bytes] | None = None
    try:
        with out.status("waits for a worker") as shown:
            asked = -10.0
            while True:
                job, run = training.jobs.get(job_id), training.runs.find(job_id)
                if job.ended:
                    break
                held = job.owner is not None and training.jobs.is_alive(job.owner)  # or its worker was killed
                if not held and time.monotonic() - asked > 3:
                    started = ensure(started)
                    asked = time.monotonic()
                if run is not None:
                    shown.update(describe_stage(run) if held else "waits for a worker")
                time.sleep(0.2)
    except KeyboardInterrupt:
        out.print(f"\nJob {job_id} goes on in the background: labelloop jobs logs {job_id}", markup=False)
        return
    if run is not None:
        print_run(run, job.error, out)
    if job.state != "done":
        raise typer.Exit(1)

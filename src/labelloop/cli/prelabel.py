"""`labelloop prelabel`: predictions for a whole project, in the background."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from labelloop.core.settings import Settings
    from labelloop.serving.models import Store
    from labelloop.store.jobs import Job


def prelabel(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    model: str = typer.Option(
        None, help="NAME, NAME@VERSION, an ONNX file, or 'ocr'.  [default: the model that serves the project]"
    ),
    only_missing: bool = typer.Option(
        True,
        "--only-missing/--all",
        help="Tasks without a prediction of this version, or all: then earlier predictions of it are replaced.",
    ),
    filters: list[str] = typer.Option(
        [], "--filter", help="Only tasks where, for instance, total_annotations=0 or data.city~Oslo; may be repeated."
    ),
    limit: int = typer.Option(None, min=1, help="At most this many tasks."),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path.  [env: LABEL_STUDIO_URL]"),
    token: str = typer.Option(None, help="Personal access token or legacy token.  [env: LABEL_STUDIO_API_KEY]"),
    foreground: bool = typer.Option(False, "--foreground", help="Run it in this process instead of a worker."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Start it and return at once."),
) -> None:
    """Pre-annotate PROJECT. Ctrl-C leaves the job running; it survives crashes and a Label Studio that is away."""
    from labelloop.cli.connect import label_studio
    from labelloop.cli.report import console
    from labelloop.core.logs import configure_logs
    from labelloop.core.settings import read_settings
    from labelloop.jobs.submit import submit, work_of
    from labelloop.labelstudio.client import Client
    from labelloop.labelstudio.filters import parse_filters
    from labelloop.serving.models import default_model, open_store
    from labelloop.store.jobs import Options

    settings = read_settings(label_studio_url=url, label_studio_token=token)
    # what the worker says goes to its log; here it would tear the progress bar apart
    configure_logs(level=settings.log_level if foreground else "error", form=settings.log_format)
    store = open_store(settings)
    options = Options(only_missing=only_missing, filters=parse_filters(filters), limit=limit)
    address, key = label_studio(settings, store.registry)
    with Client(address, key) as client:
        spec = default_model(store.registry, model, settings) if model else None
        work = work_of(client, settings, store.registry, project, spec, options)
    store.registry.save_connection(address, key)  # the worker needs it, and may be another process
    out = console()
    job, new = submit(store.jobs, work)
    if not new:
        out.print(f"Job {job.id} does this already.", markup=False)
    if foreground:
        run_here(settings, store, job, out)
    elif detach:
        ensure_worker(settings, store)
        out.print(f"Job {job.id} is {job.state}. See: labelloop jobs show {job.id}", markup=False)
    else:
        attach(settings, store, job, out)


def ensure_worker(
    settings: Settings, store: Store, started: subprocess.Popen[bytes] | None = None
) -> subprocess.Popen[bytes] | None:
    """Start one in the background unless one lives, or the one that was `started` is about to."""
    from labelloop.cli.worker import start_in_background

    if store.workers.any_alive() or (started is not None and started.poll() is None):
        return started
    return start_in_background(settings)


def attach(settings: Settings, store: Store, job: Job, out: Console) -> None:
    """Show a job until it ends or Ctrl-C. The exit status is 0 when all is done, 1 when tasks or the job failed."""
    from labelloop.cli.loop import follow
    from labelloop.cli.watching import watch
    from labelloop.jobs.training import KIND, Training

    if job.kind == KIND:
        training = Training.over(store.engine, store.registry, store.jobs)
        follow(training, job.id, out, lambda started: ensure_worker(settings, store, started))
        return
    out.print(f"Job {job.id}. Ctrl-C leaves it running.", markup=False)
    started: subprocess.Popen[bytes] | None = None

    def ensure() -> None:
        nonlocal started
        started = ensure_worker(settings, store, started)

    try:
        ended = watch(store.jobs, store.engine, job.id, out, ensure_worker=ensure)
    except KeyboardInterrupt:
        out.print(f"\nJob {job.id} goes on in the background.", markup=False)
        out.print(f"  look again: labelloop jobs show {job.id} --follow", markup=False)
        out.print(f"  end it:     labelloop jobs cancel {job.id}", markup=False)
        return
    finish(ended, store, out)


def run_here(settings: Settings, store: Store, job: Job, out: Console) -> None:
    """Run jobs in this process until none is left; Ctrl-C stops."""
    import threading

    from labelloop.app import open_worker
    from labelloop.cli.watching import watch
    from labelloop.cli.worker import prepare_process

    prepare_process(settings)
    with open_worker(settings) as worker:
        thread = threading.Thread(target=worker.run, name="worker", daemon=True)
        thread.start()
        try:
            ended = watch(store.jobs, store.engine, job.id, out, ensure_worker=lambda: None)
        except KeyboardInterrupt:
            out.print(f"\nStopped. Go on with: labelloop jobs resume {job.id}", markup=False)
            raise typer.Exit(130) from None
        finally:
            worker.stop()
            thread.join()
    finish(ended, store, out)


def finish(job: Job, store: Store, out: Console) -> None:
    """Say how it ended, in words and as the exit status."""
    from labelloop.cli.watching import summarise
    from labelloop.jobs.shown import not_shown
    from labelloop.store.pages import progress

    summarise(job, store.engine, out)
    if job.kind == "prelabel" and (note := not_shown(store.registry, job)):
        out.print(note, markup=False)
    if job.state != "done" or progress(store.engine, job.id).failed:
        raise typer.Exit(1)

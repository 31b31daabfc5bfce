"""`labelloop jobs`: list, show, cancel, resume, logs."""

from __future__ import annotations

import typer

app = typer.Typer(help="See and steer background jobs.", no_args_is_help=True)

_JOB = typer.Argument(help="Id of the job, or the beginning of it.")


@app.command("list")
def list_jobs(limit: int = typer.Option(20, min=1, help="At most this many, newest first.")) -> None:
    """Jobs, newest first."""
    from rich.console import Console
    from rich.table import Table

    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store
    from labelloop.store.pages import progress

    store = open_store(read_settings())
    found = store.jobs.newest(limit)
    if not found:
        typer.echo("No jobs yet. Start one: labelloop prelabel PROJECT")
        return
    table = Table()
    for name in ("Job", "State", "Project", "Version", "Stored", "Failed", "Of", "Created"):
        table.add_column(name, no_wrap=name != "Version")
    for job in found:
        now = progress(store.engine, job.id)
        row = (job.id, job.state, job.project_id, job.version or job.kind, now.stored, now.failed, job.total or "?")
        table.add_row(*map(str, row), f"{job.created_at:%m-%d %H:%M}")
    Console().print(table)


@app.command()
def show(
    job: str = _JOB,
    follow: bool = typer.Option(False, "--follow", "-f", help="Stay until it ends; Ctrl-C leaves it running."),
    failed: bool = typer.Option(False, "--failed", help="Print every failed task: id, code and reason, with tabs."),
) -> None:
    """How a job stands."""
    from labelloop.cli.loop_report import print_run
    from labelloop.cli.prelabel import attach
    from labelloop.cli.report import console
    from labelloop.cli.watching import summarise
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store
    from labelloop.store.pages import failures
    from labelloop.store.runs import Runs

    settings = read_settings()
    store = open_store(settings)
    found = store.jobs.get(job)
    run = Runs(store.engine).find(found.id)
    if failed:
        for failure in failures(store.engine, found.id):
            typer.echo(f"{failure.task_id}\t{failure.code}\t{failure.message}")
    elif follow and not found.ended:
        attach(settings, store, found, console())
    elif run is not None:
        typer.echo(found.state)
        print_run(run, found.error, console())
    else:
        summarise(found, store.engine, console())


@app.command()
def cancel(job: str = _JOB) -> None:
    """Stop a job; what is stored stays."""
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store

    found = open_store(read_settings()).jobs.cancel(job)
    typer.echo(f"{found.id}: {'stops after this page' if found.cancelling else found.state}")


@app.command()
def resume(
    job: str = _JOB,
    failed: bool = typer.Option(False, "--failed", help="Only the tasks that failed."),
    detach: bool = typer.Option(False, "--detach", "-d", help="Start it and return at once."),
) -> None:
    """Go on with a job that was cancelled, failed or cut off; with --failed, try its failed tasks again."""
    from labelloop.cli.prelabel import attach, ensure_worker
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store

    settings = read_settings()
    store = open_store(settings)
    found = store.jobs.resume(job, failed=failed)
    if detach:
        ensure_worker(settings, store)
        typer.echo(f"{found.id}: {found.state}")
    else:
        attach(settings, store, found, console())


@app.command()
def logs(job: str = _JOB) -> None:
    """What happened: outages, crashes, what Label Studio refused."""
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store

    store = open_store(read_settings())
    for line in store.jobs.lines(store.jobs.get(job).id):
        typer.echo(f"{line.at:%Y-%m-%d %H:%M:%S} {line.level:7} {line.text}")

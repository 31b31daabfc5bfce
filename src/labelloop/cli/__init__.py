"""Floor 9: doors for people. Each command imports what it needs when it runs, so that --help is quick."""

from __future__ import annotations

import sys

import typer

from labelloop.cli.connect import connect
from labelloop.cli.dataset import app as dataset_app
from labelloop.cli.demo import demo
from labelloop.cli.doctor import doctor
from labelloop.cli.hosting import WithCommand
from labelloop.cli.init import init
from labelloop.cli.jobs import app as jobs_app
from labelloop.cli.loop import loop, train
from labelloop.cli.models import app as models_app
from labelloop.cli.order import order
from labelloop.cli.prelabel import prelabel
from labelloop.cli.quality import quality
from labelloop.cli.runtimes import app as runtimes_app
from labelloop.cli.serve import serve
from labelloop.cli.simulate import simulate
from labelloop.cli.start import start
from labelloop.cli.video import app as video_app
from labelloop.cli.watch import watch
from labelloop.cli.worker import worker
from labelloop.core.errors import LabelloopError

app = typer.Typer(
    name="labelloop",
    help="The learning loop for Label Studio: connect any model, pre-annotate, learn from corrections.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        from labelloop import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    del version  # typer calls _version
    from labelloop.core.logs import configure_logs

    configure_logs(level="warning")  # `serve` does it again as its settings say


app.command()(serve)
app.command(cls=WithCommand)(start)
app.command()(init)
app.command("create", hidden=True)(init)
app.command()(connect)
app.command()(doctor)
app.command()(demo)
app.command()(prelabel)
app.command()(order)
app.command()(watch)
app.command()(loop)
app.command()(train)
app.command()(quality)
app.command()(worker)
app.command()(simulate)
app.add_typer(dataset_app, name="dataset")
app.add_typer(jobs_app, name="jobs")
app.add_typer(models_app, name="models")
app.add_typer(runtimes_app, name="runtimes")
app.add_typer(video_app, name="video")


def main() -> None:
    """Entry point: our own errors end with their message and hint, not with a traceback."""
    try:
        app()
    except LabelloopError as error:
        typer.secho(error.message, fg="red", err=True)
        if error.hint:
            typer.echo(error.hint, err=True)
        sys.exit(1)

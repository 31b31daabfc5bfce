"""`labelloop runtimes`: interpreters of their own for programs whose pins would poison ours."""

from __future__ import annotations

from pathlib import Path

import typer

app = typer.Typer(help="Make and remove isolated interpreters (Label Studio's, OpenMMLab's).", no_args_is_help=True)


@app.command("list")
def list_runtimes() -> None:
    """What can be made, and what is there."""
    from rich.console import Console
    from rich.table import Table

    from labelloop.core.settings import read_settings
    from labelloop.runtimes import venvs

    table = Table("Name", "State", "Pins", "For", "Folder")
    for runtime in venvs.list_runtimes(read_settings().home):
        pins = ", ".join(runtime.spec.requirements)
        table.add_row(runtime.name, runtime.state, pins, runtime.spec.purpose, str(runtime.path))
    Console().print(table)


@app.command()
def create(
    name: str = typer.Argument(help="Name of the runtime, see `labelloop runtimes list`."),
    fresh: bool = typer.Option(False, "--fresh", help="Make it anew even if it is there."),
    find_links: Path = typer.Option(None, help="Folder of wheels that pip looks into first."),
) -> None:
    """Make a runtime; does nothing when it is there."""
    from labelloop.core.settings import read_settings
    from labelloop.runtimes import venvs

    runtime = venvs.create(read_settings().home, name, progress=typer.echo, fresh=fresh, find_links=find_links)
    typer.echo(f"{name} is {runtime.state} in {runtime.path}")


@app.command()
def check(name: str = typer.Argument(help="Name of the runtime.")) -> None:
    """Ask the runtime's interpreter whether all is there; exit status 1 when not."""
    from labelloop.core.settings import read_settings
    from labelloop.runtimes import venvs

    runtime = venvs.check(read_settings().home, name)
    typer.echo(f"{name} is {runtime.state} in {runtime.path}")
    for remark in venvs.remarks(runtime) if runtime.state == "ready" else ():
        typer.echo(remark)
    if runtime.state != "ready":
        typer.echo(f"Make it with: labelloop runtimes create {name}", err=True)
        raise typer.Exit(1)


@app.command()
def remove(name: str = typer.Argument(help="Name of the runtime.")) -> None:
    """Delete a runtime."""
    from labelloop.core.settings import read_settings
    from labelloop.runtimes import venvs

    removed = venvs.remove(read_settings().home, name)
    typer.echo(f"{name} was removed" if removed else f"{name} was not there")

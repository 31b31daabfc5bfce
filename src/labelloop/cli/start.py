"""`labelloop start`: an existing backend, unchanged, behind labelloop."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from labelloop.core.settings import Settings


WITHOUT_CONFIG = ("AssertionError", "AttributeError", "IndexError", "KeyError", "StopIteration")
"""What models raise that look into a label config which is not there."""


def start(
    directory: str = typer.Argument(
        metavar="DIR", help="Folder of the backend (with _wsgi.py or model.py), or a file."
    ),
    port: int = typer.Option(None, "--port", "-p", help="Port; 0 takes a free one (default: 9090)."),
    host: str = typer.Option(None, help="Address to listen on (default: 127.0.0.1)."),
    options: list[str] = typer.Option(
        [],
        "--with",
        "--kwargs",
        help="NAME=VALUE … that the model is built with; NAMES in capitals become environment.",
    ),
    model_dir: Path = typer.Option(None, help="Folder that the model keeps files in (its MODEL_DIR)."),
    python: str = typer.Option(None, help="Interpreter that has what the model imports, 3.8 or newer (default: ours)."),
    check: bool = typer.Option(False, "--check", help="Build the model, say what it is, and end."),
    debug: bool = typer.Option(False, "--debug", "-d", help="The same as --log-level debug."),
    log_level: str = typer.Option(None, help="debug, info, warning or error (default: info)."),
    basic_auth_user: str = typer.Option(None, help="User name that callers must send."),
    basic_auth_pass: str = typer.Option(
        None, help="Password that callers must send. Visible in the process list; LABELLOOP_BASIC_AUTH_PASS is not."
    ),
    root_dir: Path = typer.Option(None, help="Folder that DIR is in (default: the working directory)."),
) -> None:
    """Run a backend written for the official SDK, with or without that package."""
    from labelloop.cli.hosting import hosted_card, label_studio_of, parse_options
    from labelloop.cli.serve import run
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import add_model, open_registry

    settings = read_settings(
        host=host,
        port=port,
        basic_auth_user=basic_auth_user,
        basic_auth_pass=basic_auth_pass,
        log_level="debug" if debug else log_level.lower() if log_level else None,
        **label_studio_of(parse_options(options)),
    )
    source = str(root_dir / directory) if root_dir else directory
    card = hosted_card(source, engine="sdk", name=None, options=options, python=python, model_dir=model_dir)
    version = add_model(open_registry(settings), None, card, settings)
    if check:
        _check(settings, version.id)
        return
    run(settings, model=version.id)


def _check(settings: Settings, spec: str) -> None:
    from labelloop.app import open_desk
    from labelloop.engines.isolated import Raised
    from labelloop.serving.models import load_engine, open_store

    store = open_store(settings)
    with open_desk(settings, store) as desk:
        engine: Any = load_engine(store.registry, settings, store.registry.catalogue().find(spec), desk)
        try:
            about = engine.about
            generation = "1.0" if about["first_generation"] else "2"
            package = f"label_studio_ml {about['package']}" if about["package"] else "labelloop's own names"
            typer.echo(f"{spec}: {about['model_class']}, generation {generation}, on {package}")
            try:
                engine.introduce("", "")
                typer.echo("It was built without a label config.")
            except Raised as error:
                if error.kind not in WITHOUT_CONFIG:
                    raise
                typer.echo(f"It cannot be built without a label config, as some cannot: {error}")
        finally:
            engine.close()

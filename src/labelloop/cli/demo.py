"""`labelloop demo`: see it work before you bring anything of your own."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path

import typer


class Who(StrEnum):
    simulated = "simulated"
    you = "you"


def demo(
    model: Path = typer.Option(None, help="ONNX detector to show (default: reads text, with built-in models)."),
    images: Path = typer.Option(None, help="Folder of your pictures (default: draws receipts and signs)."),
    labels: str = typer.Option(None, help="Class names of the model: a text, JSON or YAML file, or 'coco'."),
    port: int = typer.Option(None, "--port", "-p", help="Port of labelloop (default: 9090, or a free one)."),
    label_studio_port: int = typer.Option(None, help="Port of Label Studio (default: 8080, or a free one)."),
    fresh: bool = typer.Option(False, "--fresh/--keep", help="Forget what was done in earlier demos."),
    annotator: Who = typer.Option(
        Who.simulated, help="Who draws the first boxes in the project that learns: a simulated annotator, or you."
    ),
    check: bool = typer.Option(
        False, "--check", help="Do it on free ports in a temporary folder, verify what Label Studio has, and end."
    ),
) -> None:
    """Start a real Label Studio with pictures that labelloop has pre-annotated."""
    from labelloop.core.settings import read_settings
    from labelloop.demo import run

    home = read_settings().home
    options = run.Options(
        home=home,
        folder=home / "demo",
        port=port,
        label_studio_port=label_studio_port,
        model=model,
        images=images,
        labels=labels,
        annotator=annotator.value,
    )
    if not check:
        run.run(options, fresh=fresh, tell=typer.echo)
    elif not run.check(options, tell=typer.echo):
        raise typer.Exit(1)

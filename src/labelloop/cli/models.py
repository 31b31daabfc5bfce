"""`labelloop models`: add, list, show, remove, use, rollback, history."""

from __future__ import annotations

from pathlib import Path

import typer

from labelloop.cli.hosting import WithCommand, add_openmmlab, hosted_card, is_code

app = typer.Typer(help="Add models and say which project uses which.", no_args_is_help=True)


@app.command(cls=WithCommand)
def add(
    source: str = typer.Argument(
        None,
        metavar="[FILE]",
        help="ONNX, .npz (text), a folder of transformers; or code: FILE.py:Class, an SDK backend's folder.",
    ),
    name: str = typer.Option(None, help="Name in the registry (default: the file's name)."),
    labels: str = typer.Option(None, help="Class names: a text, JSON or YAML file, or 'coco'."),
    task: str = typer.Option(None, help="detect, classify, text or ocr (default: the card's, else what the file is)."),
    engine: str = typer.Option(None, help="Engine; needed only without a file, for instance ocr."),
    card: Path = typer.Option(None, help="Model card (YAML) (default: the .yaml beside the file)."),
    remote: str = typer.Option(None, help="A model on Triton or KServe: http://HOST:8000/v2/models/NAME"),
    options: list[str] = typer.Option([], "--with", "--kwargs", help="NAME=VALUE … that code is built with."),
    python: str = typer.Option(None, help="Interpreter for code, 3.8 or newer (default: ours)."),
    config: Path = typer.Option(None, help="Config of an OpenMMLab detector (--engine mmdet)."),
    checkpoint: Path = typer.Option(None, help="Its weights (.pth)."),
    runtime: str = typer.Option("openmmlab", help="Runtime that has OpenMMLab, unless --python names an interpreter."),
    trust: bool = typer.Option(False, "--trust", help="Load a checkpoint that holds more than weights, which runs it."),
) -> None:
    """Add a model file, or code, as the next version of NAME; the same twice is one version."""
    import msgspec

    from labelloop.core.errors import ModelError
    from labelloop.core.settings import read_settings
    from labelloop.engines.labels import read_labels
    from labelloop.engines.model_folder import is_model_folder
    from labelloop.serving.models import add_model, model_name, open_registry, read_card

    engine = "remote" if remote else "mmdet" if config or checkpoint else engine
    if engine == "mmdet":
        names = read_labels(labels) if labels else ()
        added = add_openmmlab(
            read_settings(), config, checkpoint, name=name, runtime=runtime, python=python, trust=trust, labels=names
        )
        typer.echo(f"{added.id}: {added.card.family}, {added.card.task}, {len(added.card.labels)} classes")
        return
    if source is None and engine is None:
        raise ModelError("There is no file to add.", hint="Give an ONNX file, FILE.py:Class, or --engine ocr.")
    settings = read_settings()
    if source is not None and is_code(source) and not is_model_folder(Path(source)):
        hosted = hosted_card(source, engine=engine, name=name, options=options, python=python, model_dir=None)
        version = add_model(open_registry(settings), None, hosted, settings)
        typer.echo(f"{version.id}: {version.card.engine}, {version.card.task}, {len(version.card.labels)} classes")
        return
    file = Path(source) if source is not None else None
    beside = card or (file.with_suffix(".yaml") if file else Path())
    if card and not card.is_file():
        raise ModelError(f"There is no model card {card}.")
    own_name = model_name(remote.rstrip("/").partition("/models/")[2].partition("/")[0]) if remote else engine
    found = read_card(beside, name=name or (model_name(file.stem) if file else own_name))
    given = {
        "name": name,
        "remote": remote,
        "task": task or (None if file or remote else engine),
        "engine": engine,
        "labels": read_labels(labels) if labels else None,
    }
    found = msgspec.structs.replace(found, **{key: value for key, value in given.items() if value is not None})
    version = add_model(open_registry(settings), file, found, settings)
    typer.echo(f"{version.id}: {version.card.family or version.card.engine}, {len(version.card.labels)} classes")


@app.command("list")
def list_models() -> None:
    """Models and versions, and the projects that use them."""
    from rich.console import Console
    from rich.table import Table

    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_registry

    catalogue = open_registry(read_settings()).catalogue()
    if not catalogue.versions:
        typer.echo("No models yet. Add one: labelloop models add FILE.onnx --name NAME")
        return
    table = Table("Model", "Engine", "Classes", "Added", "Projects")
    users = {project: catalogue.of_project(project) for project in catalogue.bindings}
    for version in catalogue.versions:
        card, labels = version.card, ", ".join(version.card.labels[:4])
        projects = [str(project) for project, used in users.items() if used and used.id == version.id]
        table.add_row(
            version.id,
            f"{card.engine} {card.family or ''}",
            f"{len(card.labels)}: {labels}{', …' if len(card.labels) > 4 else ''}",
            f"{version.created_at:%Y-%m-%d %H:%M}",
            ", ".join(projects),
        )
    Console().print(table)


@app.command()
def show(model: str = typer.Argument(help="NAME or NAME@VERSION")) -> None:
    """The model card of a version, as YAML; above it where a trained version comes from."""
    import msgspec

    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store
    from labelloop.store.lineage import Lineages

    store = open_store(read_settings())
    version = store.registry.catalogue().find(model)
    lineage = Lineages(store.engine).of(version.name, version.number)
    live = (
        [move for move in store.registry.history(lineage.project_id or 0) if move.target == version.id][::-1]
        if lineage
        else []
    )
    since = [f"live for project {move.project_id} since {move.at:%Y-%m-%d %H:%M:%S} UTC, by {move.by}" for move in live]
    for line in [version.id, *(lineage.summary if lineage else []), *since]:
        typer.echo(f"# {line}")
    typer.echo(msgspec.yaml.encode(version.card).decode(), nl=False)


@app.command()
def remove(model: str = typer.Argument(help="NAME (all versions) or NAME@VERSION")) -> None:
    """Remove a model that no project uses, with its files."""
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_registry

    for version in open_registry(read_settings()).remove(model):
        typer.echo(f"removed {version.id}")


@app.command()
def use(
    project: int = typer.Argument(help="Project id in Label Studio"),
    model: str = typer.Argument(help="NAME (follows the newest version), NAME@VERSION, or none"),
) -> None:
    """Let a model serve a project; running servers follow within two seconds."""
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_registry

    version = open_registry(read_settings()).bind(project, model, by=person())
    typer.echo(f"project {project} uses {version.id if version else 'no model'}")


@app.command()
def rollback(project: int = typer.Argument(help="Project id in Label Studio")) -> None:
    """Put back what served a project before; again, and it goes further back. Running servers follow within two
    seconds."""
    from labelloop.core.settings import read_settings
    from labelloop.jobs.shown import show_serving
    from labelloop.serving.models import open_store
    from labelloop.store.loops import Loops

    settings = read_settings()
    store = open_store(settings)
    move = store.registry.rollback(project, by=person())
    typer.echo(f"project {project} uses {move.target} again, instead of {move.source}")
    if settings.label_studio_url or store.registry.connections():
        typer.echo(show_serving(settings, store.registry, Loops(store.engine), project))


@app.command()
def history(project: int = typer.Argument(help="Project id in Label Studio")) -> None:
    """Which models a project used, newest first, and why they changed."""
    from rich.console import Console
    from rich.table import Table

    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_registry

    moves = open_registry(read_settings()).history(project)
    if not moves:
        typer.echo(f"Nothing changed yet in what project {project} uses.")
        return
    table = Table("At (UTC)", "From", "To", "By", "Why")
    for move in moves:
        table.add_row(f"{move.at:%Y-%m-%d %H:%M:%S}", move.source or "", move.target, move.by, move.reason)
    Console().print(table)


def person() -> str:
    """Who runs this command, for the history; empty where the system does not know."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a container whose user has no name
        return ""

"""`labelloop dataset`: what people annotated, frozen, as files that any trainer reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from labelloop.core.settings import Settings
    from labelloop.jobs.folder import Folder
    from labelloop.learning.manifest import Item, Manifest
    from labelloop.store.registry import Registry

app = typer.Typer(help="Data sets out of annotations.", no_args_is_help=True)

EXAMPLES = 3
"""Tasks named for each reason why some are left out."""


class Format(StrEnum):
    coco = "coco"
    yolo = "yolo"


class Annotators(StrEnum):
    ground_truth = "ground_truth"
    latest = "latest"
    consensus = "consensus"


@app.callback()
def _group() -> None:
    """Data sets out of annotations."""  # with one command below it, typer would otherwise leave out its name


@app.command()
def export(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    out: Path = typer.Option(..., "--out", "-o", help="Folder to write; new or empty."),
    form: Format = typer.Option(Format.coco, "--format", help="coco: what our trainers read. yolo: a YOLO folder."),
    val_share: float = typer.Option(None, help="Share of the tasks that is held out.  [default: 0.25]"),
    salt: str = typer.Option(None, help="Another text deals the tasks to train and val anew."),
    annotators: Annotators = typer.Option(
        None, help="Whose word counts where several people annotated a task.  [default: ground_truth]"
    ),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path.  [env: LABEL_STUDIO_URL]"),
    token: str = typer.Option(None, help="Personal access token or legacy token.  [env: LABEL_STUDIO_API_KEY]"),
) -> None:
    """Write what was annotated in PROJECT: pictures, boxes, a split that never moves a task, and what was left out."""
    from labelloop.cli.connect import label_studio
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings
    from labelloop.formats.coco import DatasetError
    from labelloop.jobs.pull import pull
    from labelloop.jobs.submit import known_project
    from labelloop.labelstudio.client import Client
    from labelloop.learning.manifest import options_of
    from labelloop.serving.models import open_registry

    settings = read_settings(
        label_studio_url=url, label_studio_token=token, val_share=val_share, split_salt=salt, annotators=annotators
    )
    registry, screen = open_registry(settings), console()
    address, key = label_studio(settings, registry)
    with Client(address, key) as client:
        found = known_project(client, registry, project)
        with screen.status("Reading annotations"):
            manifest = pull(client, found, options_of(settings))
    if not manifest.items:
        skipped = f" {len(manifest.left_out)} tasks were only skipped." if manifest.left_out else ""
        raise DatasetError(f"Nothing is annotated in project {found.id} ({found.title}) yet.{skipped}")
    registry.save_connection(address, key)  # its pictures are fetched from the same Label Studio
    complete = _write(manifest, out, form, settings, registry, screen)
    for line in described(complete):
        screen.print(line, markup=False)
    screen.print(f"Written to {out}", markup=False)


def _write(
    manifest: Manifest, out: Path, form: Format, settings: Settings, registry: Registry, screen: Console
) -> Manifest:
    from tempfile import TemporaryDirectory

    from labelloop.jobs.folder import write_yolo

    if form == Format.coco:
        return _fetch(manifest, out, settings, registry, screen).manifest
    out.parent.mkdir(parents=True, exist_ok=True)
    # beside it: pictures can be linked then, and need no second place on the disk
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as beside:
        folder = _fetch(manifest, Path(beside) / "coco", settings, registry, screen)
        write_yolo(folder, out)
    return folder.manifest


def _fetch(manifest: Manifest, out: Path, settings: Settings, registry: Registry, screen: Console) -> Folder:
    from rich.progress import Progress

    from labelloop.app import open_media
    from labelloop.jobs.folder import write_folder

    with open_media(settings, registry) as media, Progress(console=screen, transient=True) as bar:
        task = bar.add_task("Fetching pictures", total=len(manifest.items))
        return write_folder(
            manifest,
            out,
            media.fetch,
            max_pixels=settings.media_max_pixels,
            workers=settings.media_workers,
            progress=lambda done, _total: bar.update(task, completed=done),
        )


def described(manifest: Manifest) -> Iterator[str]:
    """What is in a data set and what is not, in lines for people."""
    for side in ("train", "val"):
        yield _counts(side, manifest.on(side), manifest)
    for reason, count in sorted(Counter(left.reason for left in manifest.left_out).items()):
        some = [left for left in manifest.left_out if left.reason == reason][:EXAMPLES]
        tasks = ", ".join(str(left.task_id) for left in some) + (", …" if count > len(some) else "")
        yield f"left out: {count} {reason} (task {tasks}): {some[0].detail}"
    for dropped in manifest.dropped:
        yield f"dropped: {dropped.regions} regions, {dropped.reason} {dropped.label}".rstrip()
    yield f"manifest {manifest.digest}"


def _counts(side: str, items: tuple[Item, ...], manifest: Manifest) -> str:
    given = Counter(label for item in items for label in (*item.said, *(one.label for one in item.drawn)))
    empty = sum(not item.drawn and not item.said for item in items)
    labels = ", ".join(f"{label} {given[label]:,}" for label in manifest.labels)
    return f"{side:5} {len(items):,} {manifest.reads} ({empty:,} empty), {given.total():,} {manifest.learns}: {labels}"

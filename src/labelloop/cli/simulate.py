"""`labelloop simulate`: the loop played on labelled pictures, to see whether it pays."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from labelloop.core.errors import SimulationError

if TYPE_CHECKING:
    from rich.console import Console

    from labelloop.core.cards import ModelCard
    from labelloop.core.settings import Settings
    from labelloop.core.tasks import MediaRef
    from labelloop.learning.manifest import Manifest
    from labelloop.learning.simulate import At, Simulation
    from labelloop.learning.simulation import Row

PICTURES = "pictures"
CURVE = "curve"
USUAL_S = 60.0
NO_HURRY_S = 3600.0
"""Where steps are counted, seconds only end a training that hangs."""


def simulate(
    dataset: Path = typer.Argument(metavar="DATASET.json", help="Labelled pictures, a COCO detection file."),
    images: Path = typer.Option(..., "--images", help="Folder that the file's names are relative to."),
    start: str = typer.Option(
        ..., "--start", help="NAME, NAME@VERSION or an ONNX file that every training begins with; none: from nothing."
    ),
    strategy: str = typer.Option(
        "uncertainty,random",
        help="How pictures are chosen: uncertainty (what projects get), random, least_confidence, margin, entropy; "
        "each also with an aggregation, such as entropy:sum.",
    ),
    seeds: int = typer.Option(5, help="How often all is repeated."),
    budget: str = typer.Option("20,40,80", help="Numbers of labelled pictures at which a model is trained."),
    held_out: Path = typer.Option(None, "--held-out", help="COCO file to measure with.  [default: a share of DATASET]"),
    held_out_images: Path = typer.Option(None, "--held-out-images", help="Its folder.  [default: --images]"),
    val_share: float = typer.Option(0.2, help="Share of DATASET that is held out where there is no --held-out."),
    trainer: str = typer.Option(None, help="What trains.  [default: head; scratch with --start none]"),
    train_seconds: float = typer.Option(None, help="Time for each training.  [default: 60]"),
    train_steps: int = typer.Option(None, min=1, help="Steps instead, so that a busy machine gives the same result."),
    full: bool = typer.Option(True, "--full/--no-full", help="Train on everything too, as the ceiling."),
    times: str = typer.Option(
        "", help="Seconds a person needs for an action, where yours differ: accept=1,move=4,delete=2,add=7,picture=3."
    ),
    out: Path = typer.Option(Path("simulation"), "--out", "-o", help="Folder for curve.png, curve.svg, curve.csv."),
    resume: bool = typer.Option(False, "--resume", help="Go on in this folder, perhaps with more seeds or budgets."),
) -> None:
    """Play the annotator on DATASET.json, and draw what a model learns from the first pictures, and the next."""
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings
    from labelloop.engines.base import cpu_threads
    from labelloop.learning.annotator import parse_times
    from labelloop.learning.coco_figures import require as require_measures
    from labelloop.learning.curve import write_csv
    from labelloop.learning.curve_figure import require
    from labelloop.learning.rounds import Pictures
    from labelloop.learning.simulate import Machine, Simulation
    from labelloop.learning.simulation import Plan, begin
    from labelloop.learning.trainers.base import device_for

    settings, screen = read_settings(), console()
    require()
    require_measures()
    base = None if start.lower() == "none" else _model(start, settings)
    manifest = _manifest(dataset, images, held_out, held_out_images or images, val_share)
    plan = Plan(
        data=_digest(dataset, held_out, f"{val_share:g}" if held_out is None else ""),
        start="none" if base is None else _digest(base[0]),
        strategies=_parts(strategy),
        seeds=seeds,
        budgets=_numbers(budget),
        trainer=trainer or ("scratch" if base is None else "head"),
        train_s=_seconds(train_seconds, train_steps),
        full=full,
        options={} if train_steps is None else {"max_steps": train_steps},
        threshold=settings.score_threshold,
        times=parse_times(times),
    )
    machine = Machine(settings.threads or cpu_threads(), device_for(settings.device))
    # what cannot be played is said before a folder is begun
    asked = Pictures(manifest, images, settings.media_max_pixels)
    Simulation(plan, asked, out, start=base, machine=machine).check()
    _open_folder(out, resume)
    begin(out, plan)
    stored = _stored(manifest, out / PICTURES, settings)
    pictures = Pictures(stored, out / PICTURES / "images", settings.media_max_pixels)
    with _bar(screen) as tell:
        played = Simulation(plan, pictures, out, start=base, machine=machine, tell=tell)
        _say_what(played, stored, screen)
        try:
            for row in played.run():
                _say_row(row, screen)
                write_csv(out / f"{CURVE}.csv", played.rows())
        except KeyboardInterrupt:
            screen.print("\nStopped. Go on with the same command and --resume.", markup=False)
            raise typer.Exit(130) from None
    _report(played.rows(), out, dataset, screen)


# --- what was asked for -----------------------------------------------------------------------------


def _model(start: str, settings: Settings) -> tuple[Path, ModelCard]:
    """The file and the complete card of a model that is a file, or in the registry."""
    from labelloop.core import plugins
    from labelloop.core.errors import ModelError
    from labelloop.serving.models import model_name, open_registry, read_card

    path = Path(start)
    if path.is_file():
        card = read_card(path.with_suffix(".yaml"), name=model_name(path.stem))
        return path, plugins.load("labelloop.engines", card.engine).describe(path, card)
    if path.suffix == ".onnx" or "/" in start:
        raise ModelError(f"There is no file {start}.", hint="Give an ONNX file, a model that you added, or none.")
    registry = open_registry(settings)
    version = registry.catalogue().find(start)
    found = registry.path(version)
    if found is None:
        raise ModelError(f"{version.id} has no file to train from.", hint="Start from an ONNX detector, or from none.")
    return found, version.card


def _manifest(dataset: Path, images: Path, held_out: Path | None, held_out_images: Path, val_share: float) -> Manifest:
    from labelloop.formats import coco
    from labelloop.learning.labelled import Source, manifest_of
    from labelloop.learning.manifest import Options

    for folder in (images, held_out_images):
        if not folder.is_dir():
            raise SimulationError(f"There is no folder {folder}.", hint="Say with --images where the pictures are.")
    if not 0 < val_share < 1:
        raise SimulationError(f"{val_share:g} is no share.", hint="Hold out between 0 and 1: --val-share 0.2")
    other = None if held_out is None else Source(coco.read(held_out), held_out_images)
    return manifest_of(Source(coco.read(dataset), images), held_out=other, options=Options(val_share=val_share))


def _parts(text: str) -> tuple[str, ...]:
    return tuple(part for part in (part.strip() for part in text.split(",")) if part)


def _numbers(text: str) -> tuple[int, ...]:
    parts = _parts(text)
    strange = [part for part in parts if not part.isdecimal()]
    if strange:
        raise SimulationError(f"{strange[0]!r} is no number of pictures.", hint="Write --budget 20,40,80")
    return tuple(map(int, parts))


def _seconds(seconds: float | None, steps: int | None) -> float:
    if seconds is not None:
        return seconds
    return USUAL_S if steps is None else NO_HURRY_S


def _digest(*parts: Path | str | None) -> str:
    """Of the contents of files, and of words."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.read_bytes() if isinstance(part, Path) else (part or "").encode()).digest())
    return digest.hexdigest()


def _open_folder(out: Path, resume: bool) -> None:
    from labelloop.learning.simulation import PLAN

    if out.is_file():
        raise SimulationError(f"{out} is a file.", hint="Name a folder with -o.")
    if resume and not (out / PLAN).is_file():
        raise SimulationError(f"{out} holds no simulation to go on with.", hint="Begin one: leave --resume out.")
    if not resume and out.is_dir() and any(out.iterdir()):
        raise SimulationError(f"{out} is not empty.", hint="Go on there with --resume, or name another folder with -o.")
    out.mkdir(parents=True, exist_ok=True)


def _stored(manifest: Manifest, target: Path, settings: Settings) -> Manifest:
    """The manifest of the pictures in `target`, upright and checked; they are put there unless they are there."""
    from labelloop.jobs.folder import read_folder, write_folder
    from labelloop.learning.labelled import without_turned

    if target.is_dir():
        folder = read_folder(target)
    else:
        folder = write_folder(manifest, target, _fetch, max_pixels=settings.media_max_pixels)
    return without_turned(folder.manifest, manifest)


def _fetch(ref: MediaRef) -> bytes:
    from labelloop.core.errors import MediaNotFound

    try:
        return Path(ref.uri).read_bytes()
    except OSError as error:
        raise MediaNotFound(f"{ref.uri} cannot be read: {error.strerror or error}.") from error


# --- what is said -----------------------------------------------------------------------------------


def _say_what(played: Simulation, manifest: Manifest, screen: Console) -> None:
    pool, held_out = manifest.on("train"), manifest.on("val")
    boxes = sum(len(item.drawn) for item in held_out)
    screen.print(f"{len(pool)} pictures to choose from; {len(held_out)} with {boxes} boxes held out.", markup=False)
    for one in manifest.left_out[:5]:
        screen.print(f"  left out: picture {one.task_id}: {one.detail}", markup=False)
    if len(manifest.left_out) > 5:
        screen.print(f"  left out: {len(manifest.left_out) - 5} more", markup=False)
    for dropped in manifest.dropped:
        screen.print(f"  dropped: {dropped.regions} boxes of {dropped.label} ({dropped.reason})", markup=False)
    screen.print(f"{played.missing} trainings to do, {len(played.rows())} rows are there.", markup=False)


def _say_row(row: Row, screen: Console) -> None:
    screen.print(
        f"{row.strategy}, seed {row.seed}, {row.pictures} pictures: AP50 {row.ap50:.3f}, AP {row.ap:.3f}; "
        f"{row.edits_per_picture:.1f} edits per picture",
        markup=False,
    )


def _report(rows: Sequence[Row], out: Path, dataset: Path, screen: Console) -> None:
    from rich.table import Table

    from labelloop.learning.curve import points, strategies_of, verdicts, write_csv
    from labelloop.learning.curve_figure import draw
    from labelloop.learning.simulation import FULL

    write_csv(out / f"{CURVE}.csv", rows)
    draw(rows, out / CURVE, title=f"Learning curve on {dataset.absolute().parent.name}/{dataset.name}")
    table = Table("strategy", "pictures", "boxes", "hours", "AP50", "AP", "edits", box=None)
    for name in (*strategies_of(rows), FULL):
        for point in points(rows, name):
            table.add_row(
                name,
                str(point.pictures),
                f"{point.boxes:.0f}",
                f"{point.seconds / 3600:.2f}",
                *(f"{value.mean:.3f} ± {value.deviation:.3f}" for value in (point.ap50, point.ap)),
                f"{point.edits_per_picture.mean:.1f} ± {point.edits_per_picture.deviation:.1f}",
            )
    screen.print(table)
    for sentence in verdicts(rows):
        screen.print(sentence, markup=False)
    screen.print(
        "Edits are per picture of the last batch, hours estimates from assumed times per action.", markup=False
    )
    screen.print(f"See {out / CURVE}.png, .svg, .csv", markup=False)


@contextmanager
def _bar(screen: Console) -> Iterator[Callable[[At], None]]:
    """A bar with the time that is left on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=screen,
        transient=True,
        disable=not screen.is_terminal,
        speed_estimate_period=3600,
    ) as progress:
        shown = progress.add_task("", total=None)

        def tell(at: At) -> None:
            what = f"{at.doing}: {at.strategy}, seed {at.seed}, {at.pictures} pictures"
            progress.update(shown, description=what, completed=at.done, total=at.of)

        yield tell

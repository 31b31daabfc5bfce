"""`labelloop video …`: films from frames, every frame from key frames, few key frames from many."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import typer

from labelloop.core.errors import FilmError

if TYPE_CHECKING:
    from labelloop.core.regions import Box, Size

app = typer.Typer(name="video", help="Films: make them, and read what people drew on them.", no_args_is_help=True)


class Format(StrEnum):
    labelstudio = "labelstudio"
    csv = "csv"
    mot = "mot"
    coco = "coco"
    yolo = "yolo"


class Turning(StrEnum):
    linear = "linear"
    shortest = "shortest"


_BEHIND = {Format.labelstudio: ".frames.json", Format.csv: ".frames.csv"}
"""What is put behind the export's name; other formats are folders called EXPORT-FORMAT."""

EXPORT = typer.Argument(exists=True, dir_okay=False, help="Label Studio's export, format JSON.")
ROTATION = typer.Option(Turning.linear, help="How a box turns: linear as the export does, shortest as the editor.")
FORCE = typer.Option(False, "--force", help="Overwrite what is there.")
SIZE = typer.Option(None, help="Size of the films in pixels, such as 1280x720: exports do not say it.")


@app.command()
def make(
    folder: Path = typer.Argument(metavar="DIR", help="Folder of pictures."),
    out: Path = typer.Option(
        None, "--out", "-o", help="An .mp4 file, or a folder. Default: beside DIR, named after it."
    ),
    fps: str = typer.Option("25", help="Frames per second: 25, 29.97, 30000/1001."),
    pattern: str = typer.Option(None, help="Which files are pictures, such as '*.jpg'. Default: by their suffix."),
    recursive: bool = typer.Option(False, "--recursive", "-r", help="Also a film of each folder below DIR."),
    force: bool = FORCE,
    verify: bool = typer.Option(False, "--verify", help="Read every frame back and compare it with its picture."),
) -> None:
    """Make an H.264 film of the pictures in DIR, in natural order, and a table of its frames."""
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings
    from labelloop.media.filming import make_film, parse_fps, plan_films, verify_film

    rate, pixels, screen = parse_fps(fps), read_settings().media_max_pixels, console()
    plans = plan_films(folder, out=out, pattern=pattern, recursive=recursive)
    _refuse_to_overwrite([path for plan in plans for path in (plan.film, plan.index)], force)
    left_out = 0
    for plan in plans:
        with _bar(plan.film.name) as tell:
            made = make_film(plan, fps=rate, max_pixels=pixels, tell=tell)
            lowest = verify_film(made, max_pixels=pixels, tell=tell) if verify else None
        size = f"{made.size.width} x {made.size.height}"
        screen.print(f"{plan.film}: {len(made.pictures)} frames, {size}, {float(rate):g} fps", markup=False)
        if lowest is not None:
            screen.print(f"  verified: every frame is its picture, at least {lowest:.0f} dB alike", markup=False)
        for path, why in made.left_out:
            typer.echo(f"  left out: {path.name}: {why}", err=True)
        left_out += len(made.left_out)
    if left_out:
        raise typer.Exit(1)


@app.command()
def interpolate(
    export: Path = EXPORT,
    out: Path = typer.Option(None, "--out", "-o", help="File or folder to write. Default: beside EXPORT."),
    format: Format = typer.Option(Format.labelstudio, help="What to write."),
    rotation: Turning = ROTATION,
    images: Path = typer.Option(
        None, exists=True, help="The film, or a folder of films or frames: frames become the data set's pictures."
    ),
    size: str = SIZE,
    force: bool = FORCE,
) -> None:
    """Put a box and a label on every frame between the key frames of EXPORT."""
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings
    from labelloop.jobs.film_convert import convert_export, interpolate_export
    from labelloop.labelstudio.video import read_export

    tasks = read_export(export.read_bytes())
    place = out or export.with_name(f"{export.stem}{_BEHIND.get(format, '-' + format)}")
    target = _writable(place, force, file=format in _BEHIND)
    if format is Format.labelstudio:
        written = interpolate_export(tasks, target, rotation=rotation.value)
    else:
        written = convert_export(
            tasks,
            target,
            cast("Literal['csv', 'mot', 'coco', 'yolo']", format.value),
            rotation=rotation.value,
            images=images,
            size=_size(size),
            max_pixels=read_settings().media_max_pixels,
        )
    pictures = f" on {written.frames} frames" if written.frames else ""
    console().print(f"{target}: {written.boxes} boxes{pictures}", markup=False)
    _tell(written.notes)
    _end(written.problems)


@app.command()
def reduce(
    export: Path = EXPORT,
    out: Path = typer.Option(None, "--out", "-o", help="File to write. Default: EXPORT.reduced.json."),
    iou: float = typer.Option(0.9, min=0, max=1, help="At least this much each box overlaps the one it stands for."),
    rotation: Turning = ROTATION,
    size: str = SIZE,
    force: bool = FORCE,
) -> None:
    """Keep as few key frames of EXPORT as say the same, so that people can correct its tracks."""
    from labelloop.cli.report import console
    from labelloop.jobs.film_convert import reduce_export
    from labelloop.labelstudio.video import read_export

    tasks = read_export(export.read_bytes())
    target = _writable(out or export.with_name(f"{export.stem}.reduced.json"), force, file=True)
    done = reduce_export(tasks, target, min_iou=iou, rotation=rotation.value, size=_size(size))
    before, after = sum(keys for keys, _ in done.tracks), sum(found.keyframes for _, found in done.tracks)
    frames = sum(found.frames for _, found in done.tracks)
    line = f"{target}: {len(done.tracks)} tracks, {before} key frames became {after}"
    if frames:
        mean = sum(found.mean_iou * found.frames for _, found in done.tracks) / frames
        lowest = min(found.min_iou for _, found in done.tracks if found.frames)
        line += f"; IoU {mean:.3f} on average, {lowest:.3f} at least"
    console().print(line, markup=False)
    _end(done.problems)


@app.command()
def evaluate(
    gt: Path = typer.Option(..., "--gt", exists=True, dir_okay=False, help="Ground truth, MOTChallenge text."),
    pred: list[Path] = typer.Option(..., "--pred", exists=True, dir_okay=False, help="Tracks; may be repeated."),
) -> None:
    """HOTA, IDF1 and MOTA of tracks against ground truth."""
    from rich.table import Table

    from labelloop.cli.report import console
    from labelloop.jobs.film_evaluate import evaluate as measure

    columns = ("HOTA", "DetA", "AssA", "IDF1", "MOTA", "MOTP", "switches", "misses", "false")
    table = Table("tracks", *columns, box=None)
    for path in pred:
        found = measure(gt, path)
        percents = (found.hota, found.deta, found.assa, found.idf1, found.mota, found.motp)
        counts = (found.switches, found.misses, found.false_positives)
        table.add_row(path.name, *(f"{value:.2f}" for value in percents), *map(str, counts))
    console().print(table)


@app.command()
def follow(
    film: Path = typer.Argument(exists=True, dir_okay=False, help="The film."),
    box: str = typer.Option(..., help="What to follow: LEFT,TOP,RIGHT,BOTTOM in pixels of the upright frame."),
    frame: int = typer.Option(1, min=1, help="The frame that the box is on, from 1."),
    label: str = typer.Option(None, help="What it is."),
    frame_rate: float = typer.Option(None, min=0.1, help="The label config's frameRate. Default: the film's."),
    from_name: str = typer.Option("box", help="Name of the <VideoRectangle>."),
    to_name: str = typer.Option("video", help="Name of the <Video>."),
    seconds: float = typer.Option(600.0, min=1, help="End the search after this time, wherever it is."),
) -> None:
    """Follow what is in a box forwards and backwards until it is lost; prints a result for Label Studio."""
    import json
    import time

    from labelloop.core.regions import KeyFrame, Track
    from labelloop.labelstudio.percent import Canvas
    from labelloop.labelstudio.video import draw_track
    from labelloop.media.film import describe
    from labelloop.serving.follow import follow as followed

    shown = describe(film)
    rate = frame_rate or shown.fps
    drawn = Track((KeyFrame(frame, _box(box, shown.size)),), shown.frames_count, shown.duration_s)
    if (frame - 0.5) / rate > shown.duration_s:
        raise FilmError(f"The film has no frame {frame}.", hint=f"It lasts {shown.duration_s:.2f} s.")
    until_s = time.monotonic() + seconds
    track = followed(shown, drawn, frame_rate=rate, until_s=until_s, go_on=lambda: None)
    value = draw_track(track, Canvas.of(shown.size)) or {}
    labels = {"labels": [label]} if label else {}
    item = {"from_name": from_name, "to_name": to_name, "type": "videorectangle", "origin": "prediction"}
    typer.echo(json.dumps([{**item, "value": value | labels}]))


def _box(text: str, size: Size) -> Box:
    from labelloop.core.regions import Box

    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        left = top = right = bottom = 0.0
    if not (0 <= left < right <= size.width and 0 <= top < bottom <= size.height):
        hint = f"Write LEFT,TOP,RIGHT,BOTTOM in pixels; a frame has {size.width} x {size.height}."
        raise FilmError(f"{text!r} is no box in this film.", hint=hint)
    return Box((left, top, right, bottom))


def _size(text: str | None) -> Size | None:
    from labelloop.core.regions import Size

    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise FilmError(f"{text!r} is no size.", hint="Write width and height in pixels: --size 1280x720")
    return Size(int(width), int(height))


def _refuse_to_overwrite(paths: list[Path], force: bool) -> None:
    there = [path for path in paths if path.exists()]
    if there and not force:
        more = f" and {len(there) - 1} more" if len(there) > 1 else ""
        raise FilmError(f"{there[0]}{more} exists already.", hint="Name another place with -o, or add --force.")


def _writable(target: Path, force: bool, *, file: bool) -> Path:
    """`target`, if it can be written."""
    _refuse_to_overwrite([target], force)
    if not target.absolute().parent.is_dir():
        raise FilmError(f"There is no folder {target.absolute().parent}.", hint="Make it, or name another with -o.")
    if target.exists() and target.is_dir() == file:
        raise FilmError(f"{target} is a {'folder' if file else 'file'}.", hint="Name another place with -o.")
    return target


def _tell(lines: tuple[str, ...]) -> None:
    for line in lines:
        typer.echo(line, err=True)


def _end(problems: tuple[str, ...]) -> None:
    _tell(problems)
    if problems:
        raise typer.Exit(1)


@contextmanager
def _bar(name: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar on a terminal, nothing elsewhere."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from labelloop.cli.report import console

    screen = console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        shown = progress.add_task(name, total=None)
        yield lambda what, done, of: progress.update(shown, description=f"{what} {name}", completed=done, total=of)

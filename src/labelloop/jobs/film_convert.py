"""An export with key frames -> one with every frame, in the format that is asked for; or one with fewer key frames."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from labelloop.core.errors import FilmError
from labelloop.core.regions import Size, Track
from labelloop.formats import coco
from labelloop.jobs.film_dataset import as_coco, write_coco, write_pictures, write_yolo
from labelloop.jobs.film_export import Written, write_csv, write_mot
from labelloop.jobs.film_tracks import FilmTask, film_tasks, find_film, rewrite
from labelloop.labelstudio.video import PERCENT
from labelloop.media.frames import Frames, open_frames
from labelloop.video.interpolate import Rotation, interpolate
from labelloop.video.keyframes import Fidelity, fidelity, reduce

MARKS = ("annotations.json", "data.yaml")
"""What every data set of ours has."""

Tasks = Sequence[Mapping[str, Any]]
Format = Literal["csv", "mot", "coco", "yolo"]


class Reduction(msgspec.Struct, frozen=True):
    """What became of each track, and what cannot be read."""

    tracks: tuple[tuple[int, Fidelity], ...]
    """Key frames before, and how the reduced track compares."""
    problems: tuple[str, ...]


def interpolate_export(tasks: Tasks, target: Path, *, rotation: Rotation = "linear") -> Written:
    """Write the export with every frame as a key frame, as Label Studio's own `interpolate_key_frames=true` does."""
    boxes = 0

    def dense(track: Track) -> Track:
        nonlocal boxes
        found = interpolate(track, rotation=rotation)
        boxes += len(found.keyframes)
        return found

    found, problems = rewrite(tasks, dense)
    write_json(target, found)
    return Written(boxes, problems=tuple(problems))


def reduce_export(
    tasks: Tasks, target: Path, *, min_iou: float, rotation: Rotation = "linear", size: Size | None = None
) -> Reduction:
    """Write the export with the fewest key frames per track. Without the films' size boxes that are turned are compared
    as if the film were square."""
    done: list[tuple[int, Fidelity]] = []

    def sparse(track: Track) -> Track:
        found = reduce(track, min_iou=min_iou, rotation=rotation)
        done.append((len(track.keyframes), fidelity(track, found, rotation=rotation)))
        return found

    found, problems = rewrite(tasks, sparse, size=size or PERCENT)
    write_json(target, found)
    return Reduction(tuple(done), tuple(problems))


def write_json(target: Path, tasks: Tasks) -> None:
    target.write_bytes(msgspec.json.format(msgspec.json.encode(tasks), indent=2))


def convert_export(
    tasks: Tasks,
    target: Path,
    format: Format,
    *,
    rotation: Rotation = "linear",
    images: Path | None = None,
    size: Size | None = None,
    max_pixels: int,
) -> Written:
    """Write the boxes on every frame in another tool's format. With `images`, a film or a folder of films or frames,
    the frames on which something is seen become the pictures of a COCO or YOLO data set.

    Raises FilmError and MediaError.
    """
    films: dict[str, Frames] = {}
    alone = len(film_tasks(tasks, size_of=lambda _: None)[0]) == 1

    def size_of(task: FilmTask) -> Size | None:
        if images is None:
            return size
        films[task.name] = _open(task, images, alone=alone, max_pixels=max_pixels)
        return films[task.name].size

    found, problems = film_tasks(tasks, size_of=size_of)
    if not found:
        raise FilmError(
            "No task of the export has a track.", hint="Only annotations with VideoRectangle regions are read."
        )
    if format == "csv":
        written = write_csv(target, found, rotation=rotation)
    elif format == "mot":
        written = write_mot(target, found, rotation=rotation)
    elif images is not None:
        written = _with_pictures(target, found, films, format, rotation)
    else:
        written = _without_pictures(target, found, format, rotation)
    return msgspec.structs.replace(written, problems=tuple(problems))


def _open(task: FilmTask, images: Path, *, alone: bool, max_pixels: int) -> Frames:
    path = find_film(task, images, alone=alone)
    if path is None:
        name = task.files[-1] if task.files else task.name
        raise FilmError(
            f"The film {name} of task {task.task_id} is not in {images}.",
            hint="Name the folder with the films of this export, or export one task and name its film.",
        )
    return open_frames(path, max_pixels=max_pixels)


def _without_pictures(target: Path, tasks: Sequence[FilmTask], format: Format, rotation: Rotation) -> Written:
    if format == "yolo":
        raise FilmError("A YOLO data set consists of pictures.", hint="Name the film, or its folder, with --images.")
    dataset = as_coco(tasks, rotation=rotation)
    write_coco(target, dataset)
    return Written(len(dataset.annotations), len(dataset.images))


def _with_pictures(
    target: Path, tasks: Sequence[FilmTask], films: Mapping[str, Frames], format: Format, rotation: Rotation
) -> Written:
    """The folder appears when it is complete. One that is there goes, if it is a data set: --force and a slip of the
    pen must not cost anybody's home."""
    if target.exists() and any(target.iterdir()) and not any((target / name).exists() for name in MARKS):
        raise FilmError(f"{target} is no data set and stays.", hint="Name a new folder with -o.")
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    pictures = partial / ("images" if format == "coco" else "frames")
    try:
        dataset, written = write_pictures(pictures, tasks, films, rotation=rotation)
        _finish(partial, dataset, format, pictures)
        shutil.rmtree(target, ignore_errors=True)
        partial.replace(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _finish(folder: Path, dataset: coco.Dataset, format: Format, pictures: Path) -> None:
    if format == "coco":
        write_coco(folder, dataset)
    else:
        write_yolo(folder, dataset, pictures=pictures)

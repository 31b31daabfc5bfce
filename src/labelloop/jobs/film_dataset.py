"""Tracks of an export -> COCO and YOLO data sets, with the frames as pictures if wanted."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path

from labelloop.formats import coco, yolo
from labelloop.jobs.film_export import Written, labels_of, size_of
from labelloop.jobs.film_tracks import FilmTask, placed
from labelloop.media.frames import Frames, save_frames
from labelloop.video.interpolate import Rotation


def as_coco(tasks: Sequence[FilmTask], *, rotation: Rotation = "linear") -> coco.Dataset:
    """A picture per frame on which something is seen, called `FILM/FILM_000123.jpg`."""
    labels = labels_of(tasks)
    numbers, names = count(1), count(1)
    images: list[coco.Image] = []
    instances: list[coco.Instance] = []
    for task in tasks:
        of_frame: dict[int, int] = {}
        for one in placed(task, rotation=rotation):
            if one.frame not in of_frame:
                of_frame[one.frame] = next(numbers)
                images.append(
                    coco.Image(of_frame[one.frame], frame_name(task, one.frame), *size_of(task), task_id=task.task_id)
                )
            found = coco.instance_of(
                one.box, id=next(names), image_id=of_frame[one.frame], category_id=labels.index(one.label) + 1
            )
            if found is not None:
                instances.append(found)
    categories = tuple(coco.Category(number, label) for number, label in enumerate(labels, start=1))
    return coco.Dataset(tuple(sorted(images, key=lambda image: image.file_name)), tuple(instances), categories)


def frame_name(task: FilmTask, frame: int) -> str:
    return f"{task.name}/{task.name}_{frame:06d}.jpg"


def write_pictures(
    folder: Path, tasks: Sequence[FilmTask], films: Mapping[str, Frames], *, rotation: Rotation = "linear"
) -> tuple[coco.Dataset, Written]:
    """The frames on which something is seen as JPEGs in `folder`, and the data set about those that there are."""
    notes: list[str] = []
    saved: set[str] = set()
    dataset = as_coco(tasks, rotation=rotation)
    for task in tasks:
        frames = films[task.name]
        wanted = sorted({one.frame for one in placed(task, rotation=rotation)})
        in_film = {frame: film_frame(task, frame, frames.frames_count) for frame in wanted}
        if frames.frames_count != task.frames_count:
            notes.append(
                f"{task.name}: Label Studio counted {task.frames_count} frames and the film has {frames.frames_count}; "
                "frames are matched by time."
            )
        _save(folder, task, frames, in_film)
        saved |= {name for frame in wanted if (folder / (name := frame_name(task, frame))).exists()}
    images = tuple(image for image in dataset.images if image.file_name in saved)
    kept = {image.id for image in images}
    instances = tuple(instance for instance in dataset.annotations if instance.image_id in kept)
    return coco.Dataset(images, instances, dataset.categories), Written(len(instances), len(images), tuple(notes))


def film_frame(task: FilmTask, frame: int, frames_count: int) -> int:
    """The frame of the film that Label Studio showed as `frame`. It counts with the frame rate of the label config,
    whatever the film's own is: where the two counts differ, the middle of the frame's time decides."""
    if task.frames_count == frames_count or not task.frames_count:
        return frame
    return min(int((frame - 0.5) / task.frames_count * frames_count) + 1, frames_count)


def _save(folder: Path, task: FilmTask, frames: Frames, in_film: Mapping[int, int]) -> None:
    targets: dict[int, Path] = {}
    again: dict[int, list[int]] = {}
    for frame, number in in_film.items():
        if number in targets:
            again.setdefault(number, []).append(frame)
        else:
            targets[number] = folder / frame_name(task, frame)
    save_frames(frames, targets)
    for number, others in again.items():  # Label Studio counted more frames than there are
        for frame in others:
            (folder / frame_name(task, frame)).write_bytes(targets[number].read_bytes())


def write_coco(folder: Path, dataset: coco.Dataset) -> None:
    """`annotations.json` in `folder`, where pictures lie in `images/`."""
    folder.mkdir(parents=True, exist_ok=True)
    coco.write(folder / "annotations.json", dataset)


def write_yolo(folder: Path, dataset: coco.Dataset, *, pictures: Path) -> None:
    """A YOLO folder; `pictures` is emptied into it. All of it is "train": frames of one film are too alike to be split
    among each other."""
    yolo.write(folder, {"train": dataset}, images=pictures)
    shutil.rmtree(pictures)

"""YOLO folders: `images/SPLIT/`, `labels/SPLIT/NAME.txt` with a line "class cx cy w h" per box, and `data.yaml`.

All numbers are fractions of the upright picture, classes count from 0. An empty picture has an empty file: without one
trainers differ in whether they read the picture at all.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import yaml

from labelloop.formats.coco import Dataset, DatasetError, Image, Instance


def write(folder: Path, splits: Mapping[str, Dataset], *, images: Path) -> None:
    """Write `splits` ("train", "val"), which share their categories, into `folder`; pictures come from the folder
    `images` as hard links where the disk allows. Groups (`iscrowd`) are left out: the format has no word for them.

    Raises DatasetError when two pictures would share one label file.
    """
    categories = [category.name for category in next(iter(splits.values())).categories]
    for split, dataset in splits.items():
        rows = {category.id: number for number, category in enumerate(dataset.categories)}
        _check_names(dataset)
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
        for image in dataset.images:
            link_or_copy(images / image.file_name, folder / "images" / split / image.file_name)
        instances = dataset.by_image()
        for image in dataset.images:
            name = PurePosixPath(image.file_name).with_suffix(".txt")
            lines = [_line(instance, image, rows) for instance in instances[image.id] if not instance.iscrowd]
            path = folder / "labels" / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("".join(lines))
    content = {"path": ".", **{split: f"images/{split}" for split in splits}, "names": dict(enumerate(categories))}
    (folder / "data.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link, or a copy where there can be none (another disk, a file system without links)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(source, target)


def _line(instance: Instance, image: Image, rows: Mapping[int, int]) -> str:
    left, top, width, height = instance.bbox
    center = ((left + width / 2) / image.width, (top + height / 2) / image.height)
    numbers = (*center, width / image.width, height / image.height)
    return f"{rows[instance.category_id]} {' '.join(f'{number:.6f}' for number in numbers)}\n"


def _check_names(dataset: Dataset) -> None:
    seen: dict[PurePosixPath, str] = {}
    for image in dataset.images:
        other = seen.setdefault(PurePosixPath(image.file_name).with_suffix(""), image.file_name)
        if other != image.file_name:
            raise DatasetError(
                f"{other} and {image.file_name} would share one label file.", hint="Rename one of the pictures."
            )

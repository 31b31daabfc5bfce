"""COCO detection JSON: pictures, categories, and boxes with their outlines.

The format of the COCO data set (cocodataset.org, "Data format"): `bbox` is left, top, width, height in pixels,
`segmentation` a list of polygons or a run-length encoded mask, `iscrowd` 1 for a region that stands for a whole group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from labelloop.core.errors import LabelloopError
from labelloop.core.outlines import bounding_box, corners, outline_area
from labelloop.core.regions import Box, Mask, Polygon, Region, Ring, Shape, Size


class DatasetError(LabelloopError):
    """A file of labels cannot be read, or contradicts itself."""

    code = "dataset"


class Category(msgspec.Struct, frozen=True, omit_defaults=True):
    """A class. Trainers expect ids from 1 on, in order."""

    id: int
    name: str
    supercategory: str = ""


class Image(msgspec.Struct, frozen=True, omit_defaults=True):
    """A picture; `file_name` is relative to a folder that the file does not name, sides are in upright pixels.
    `task_id` is ours: the task in Label Studio."""

    id: int
    file_name: str
    width: int
    height: int
    task_id: int | None = None

    @property
    def size(self) -> Size:
        return Size(self.width, self.height)


class Rle(msgspec.Struct, frozen=True):
    """A mask as run lengths down the columns, beginning with background: numbers, or COCO's compressed text. `size` is
    height, width. Travels through untouched."""

    size: tuple[int, int]
    counts: tuple[int, ...] | str


class Instance(msgspec.Struct, frozen=True, omit_defaults=True):
    """One labelled thing (COCO says "annotation"). `bbox` is left, top, width, height; `area` in square pixels, of the
    outline where there is one."""

    id: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    area: float | None = None
    segmentation: tuple[tuple[float, ...], ...] | Rle = ()
    iscrowd: int = 0

    @property
    def xyxy(self) -> tuple[float, float, float, float]:
        left, top, width, height = self.bbox
        return left, top, left + width, top + height


class Dataset(msgspec.Struct, frozen=True):
    """A whole file."""

    images: tuple[Image, ...]
    annotations: tuple[Instance, ...]
    categories: tuple[Category, ...]

    @property
    def names(self) -> Mapping[int, str]:
        """Category id -> name."""
        return {category.id: category.name for category in self.categories}

    def by_image(self) -> dict[int, list[Instance]]:
        """Image id -> its instances, in file order; an empty list for a picture without any."""
        found: dict[int, list[Instance]] = {image.id: [] for image in self.images}
        for instance in self.annotations:
            found[instance.image_id].append(instance)
        return found


_decoder = msgspec.json.Decoder(Dataset, strict=False)


def read(path: Path) -> Dataset:
    """Read and check a file. Raises DatasetError: not COCO JSON, ids used twice, or references that lead nowhere."""
    try:
        dataset = _decoder.decode(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        hint = 'It must be one JSON object with "images", "annotations" and "categories".'
        raise DatasetError(f"{path} is no COCO detection file: {error}.", hint=hint) from error
    _check(dataset, path)
    return dataset


def write(path: Path, dataset: Dataset) -> None:
    """Write a file; the same data set gives the same bytes. `iscrowd`, `area` and `segmentation` are always there,
    because readers in the wild look them up without asking."""
    plain: dict[str, Any] = msgspec.to_builtins(dataset)
    for row in plain["annotations"]:
        row.setdefault("iscrowd", 0)
        row.setdefault("segmentation", [])
        row.setdefault("area", row["bbox"][2] * row["bbox"][3])
    path.write_bytes(msgspec.json.encode(plain))


def instance_of(
    shape: Box | Polygon | Mask, *, id: int, image_id: int, category_id: int, crowd: bool = False
) -> Instance | None:
    """A box, upright or turned, a polygon or a mask as an instance; None for what has no extent. All but upright boxes
    have their outlines as segmentation; a mask one for each part, holes filled, because polygons of COCO have none."""
    box = bounding_box(shape)
    if box is None:
        return None
    left, top, right, bottom = box.xyxy
    outlines = _outlines(shape)
    width, height = _rounded((right - left, bottom - top))
    if width <= 0 or height <= 0:
        return None
    return Instance(
        id=id,
        image_id=image_id,
        category_id=category_id,
        bbox=(*_rounded((left, top)), width, height),
        area=round(sum(map(outline_area, outlines)) if outlines else width * height, 3),
        segmentation=tuple(_rounded(number for point in outline for number in point) for outline in outlines),
        iscrowd=int(crowd),
    )


def _outlines(shape: Box | Polygon | Mask) -> list[Ring]:
    if isinstance(shape, Mask):
        return [part[0] for part in shape.parts if len(part[0]) > 2]
    if isinstance(shape, Polygon):
        return [shape.points]
    return [corners(shape)] if shape.angle_deg else []


def region_of(instance: Instance, names: Mapping[int, str]) -> Region:
    """An instance as a Region: a Polygon when it has exactly one outline, else its Box."""
    shape: Shape = Box(instance.xyxy)
    if isinstance(instance.segmentation, tuple) and len(instance.segmentation) == 1:
        flat = instance.segmentation[0]
        points = tuple(zip(flat[::2], flat[1::2], strict=False))
        shape = Polygon(points) if len(points) > 2 else shape
    return Region(shape, label=names[instance.category_id])


def _rounded(numbers: Iterable[float]) -> tuple[Any, ...]:
    return tuple(round(number, 3) for number in numbers)


def _check(dataset: Dataset, path: Path) -> None:
    for what, ids in (
        ("image", [image.id for image in dataset.images]),
        ("category", [category.id for category in dataset.categories]),
        ("annotation", [instance.id for instance in dataset.annotations]),
    ):
        if len(set(ids)) < len(ids):
            twice = Counter(ids).most_common(1)[0][0]
            raise DatasetError(f"{path} uses the {what} id {twice} twice.", hint="Give each its own number.")
    images, categories = {image.id for image in dataset.images}, dataset.names.keys()
    for instance in dataset.annotations:
        if instance.image_id not in images or instance.category_id not in categories:
            raise DatasetError(
                f"The annotation {instance.id} in {path} names image {instance.image_id} and category "
                f"{instance.category_id}, and one of them is not there.",
                hint="Export it again, or remove the annotation.",
            )

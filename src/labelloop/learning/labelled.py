"""A labelled COCO file as a manifest: what has been labelled already can be frozen, split and played like a project."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from labelloop.core.regions import MediaKey
from labelloop.formats import coco
from labelloop.formats.coco import DatasetError
from labelloop.learning.manifest import Drawn, Dropped, Item, LeftOut, Manifest, Options, Side, rounded, side_of

PICTURE = MediaKey("image")


class Source(NamedTuple):
    """A COCO file and the folder that its `file_name`s are relative to."""

    dataset: coco.Dataset
    images: Path


def manifest_of(pool: Source, *, held_out: Source | None = None, options: Options) -> Manifest:
    """Everything that is labelled in `pool`, and what is held out: the other file, or the share that `options` say.

    A picture's `task_id` is its id in its own file. It is held out by its task in Label Studio, where the file knows
    it, as the project's own data set would hold it out. Boxes that stand for groups, and those outside their picture,
    are dropped, with a count. Raises DatasetError for a held-out file with classes that nobody could learn.
    """
    labels = tuple(category.name for category in pool.dataset.categories)
    dropped: Counter[tuple[str, str]] = Counter()
    if held_out is None:
        items = list(_items(pool, options, None, dropped))
    else:
        _check_classes(held_out, labels)
        items = [*_items(pool, options, "train", dropped), *_items(held_out, options, "val", dropped)]
    return Manifest(
        project_id=0,
        labels=labels,
        options=options,
        items=tuple(sorted(items, key=lambda item: (item.side, item.task_id))),
        dropped=tuple(sorted(Dropped(reason, label, count) for (reason, label), count in dropped.items())),
    )


def without_turned(stored: Manifest, asked: Manifest) -> Manifest:
    """`stored`, whose pictures were fetched, without those that came out as high as `asked` says they are wide.

    They carry an orientation, and nobody knows whether their boxes were drawn before or after turning.
    """
    stated = {(item.side, item.task_id): item.size for item in asked.items}
    turned = [item for item in stored.items if _turned(item, stated[item.side, item.task_id])]
    why = "the file gives width and height of the picture as stored, and people see it turned"
    return msgspec.structs.replace(
        stored,
        items=tuple(item for item in stored.items if item not in turned) if turned else stored.items,
        left_out=tuple(sorted([*stored.left_out, *(LeftOut(item.task_id, "turned", why) for item in turned)])),
    )


def _items(source: Source, options: Options, side: Side | None, dropped: Counter[tuple[str, str]]) -> Iterator[Item]:
    instances, names = source.dataset.by_image(), source.dataset.names
    for image in source.dataset.images:
        task_id = image.id if image.task_id is None else image.task_id
        yield Item(
            task_id=image.id,
            media=PICTURE,
            uri=str(source.images / image.file_name),
            side=side or side_of(task_id, options=options),
            annotation_ids=(),
            drawn=tuple(sorted(_drawn(image, instances[image.id], names, dropped))),
            size=image.size,
        )


def _drawn(
    image: coco.Image, instances: Sequence[coco.Instance], names: Mapping[int, str], dropped: Counter[tuple[str, str]]
) -> Iterator[Drawn]:
    for one in instances:
        label = names[one.category_id]
        left, top, right, bottom = one.xyxy
        inside = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))
        xyxy = rounded(inside)
        if one.iscrowd:
            dropped["group", label] += 1
        elif xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3]:
            yield Drawn(label, xyxy)
        else:
            dropped["no-area", label] += 1


def _turned(item: Item, stated: tuple[int, int] | None) -> bool:
    return stated is not None and item.size != stated and item.size == (stated[1], stated[0])


def _check_classes(held_out: Source, labels: Sequence[str]) -> None:
    strange = [category.name for category in held_out.dataset.categories if category.name not in labels]
    if strange:
        raise DatasetError(
            f"The held-out file has the classes {', '.join(strange)}, which the data set does not have.",
            hint="Both files must name their classes alike.",
        )

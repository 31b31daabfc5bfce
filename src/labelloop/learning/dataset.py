"""Annotations -> a frozen manifest. Pure: `jobs/pull` brings the annotations, `jobs/folder` the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from labelloop.core.outlines import outline_area, outline_of
from labelloop.core.regions import Box, MediaKey, Polygon, Region, Size, Whole
from labelloop.core.tasks import Annotation, MediaRef
from labelloop.labelstudio.clip import clip
from labelloop.labelstudio.vocabulary import Vocabulary
from labelloop.learning.consensus import consensus
from labelloop.learning.manifest import (
    Annotators,
    Drawn,
    Dropped,
    Item,
    LeftOut,
    Manifest,
    Options,
    around,
    rounded,
    side_of,
)

_EARLIEST = datetime.min.replace(tzinfo=UTC)

Why = tuple[str, str]
"""Reason and label of a region that is dropped."""


class Annotated(msgspec.Struct, frozen=True):
    """A task that people worked on: its pictures as the label config shows them, and all its annotations."""

    task_id: int
    refs: tuple[MediaRef, ...]
    annotations: tuple[Annotation, ...]


def freeze(tasks: Iterable[Annotated], *, project_id: int, vocabulary: Vocabulary, options: Options) -> Manifest:
    """The data set of a project. Reads `tasks` once, in any order.

    Pictures on which nothing was drawn stay, as negatives. Left out are tasks that were only skipped, and those without
    a picture; dropped, with a count, are regions that no box can be made of, and those whose label the config does not
    have any more.
    """
    items: list[Item] = []
    left_out: list[LeftOut] = []
    dropped: Counter[Why] = Counter()
    for task in tasks:
        annotations = chosen(task.annotations, how=options.annotators)
        if not task.annotations:
            left_out.append(LeftOut(task.task_id, "unlabelled", "nobody annotated it"))
        elif not annotations:
            left_out.append(LeftOut(task.task_id, "skipped", "everybody passed it on"))
        elif not all(ref.uri for ref in task.refs) or not task.refs:
            left_out.append(LeftOut(task.task_id, "no-picture", "the task lacks a picture that the label config shows"))
        else:
            items += _items(task, annotations, vocabulary, options, dropped)
    return Manifest(
        project_id=project_id,
        labels=vocabulary.labels,
        options=options,
        items=tuple(sorted(items, key=lambda item: (item.task_id, item.media))),
        left_out=tuple(sorted(left_out)),
        dropped=tuple(sorted(Dropped(reason, label, count) for (reason, label), count in dropped.items())),
    )


def chosen(annotations: Sequence[Annotation], *, how: Annotators) -> list[Annotation]:
    """The annotations that count; none where all were skipped.

    `latest` is the one that was saved last. `ground_truth` is the one marked so, the latest of several, and the latest
    of all where none is. `consensus` is the latest of each person, to be joined, unless one is marked as ground truth:
    that settles it.
    """
    valid = sorted((a for a in annotations if not a.skipped), key=lambda a: (a.updated_at or _EARLIEST, a.id))
    marked = [annotation for annotation in valid if annotation.ground_truth]
    if how != "latest" and marked:
        return marked[-1:]
    if how == "consensus":
        newest = {annotation.author_id or -annotation.id: annotation for annotation in valid}
        return sorted(newest.values(), key=lambda annotation: annotation.id)
    return valid[-1:]


def _items(
    task: Annotated, annotations: Sequence[Annotation], vocabulary: Vocabulary, options: Options, dropped: Counter[Why]
) -> Iterator[Item]:
    pictures = {ref.key for ref in task.refs}
    for annotation in annotations:
        strays = [region for region in _placeable(annotation) if region.media not in pictures]
        dropped.update(_reason(region, vocabulary) or ("other-picture", region.label or "") for region in strays)
    for ref in task.refs:
        size = next((annotation.sizes[ref.key] for annotation in annotations if ref.key in annotation.sizes), None)
        votes = [_drawn(annotation, ref.key, vocabulary, dropped) for annotation in annotations]
        if len(votes) > 1:
            drawn, alone = consensus(votes)
            dropped.update(("no-majority", one.label) for one in alone)
        else:
            drawn = sorted(votes[0])
        yield Item(
            task_id=task.task_id,
            media=ref.key,
            uri=ref.uri,
            side=side_of(task.task_id, options=options),
            annotation_ids=tuple(annotation.id for annotation in annotations),
            drawn=tuple(drawn),
            ground_truth=any(annotation.ground_truth for annotation in annotations),
            size=size,
        )


def _drawn(annotation: Annotation, key: MediaKey, vocabulary: Vocabulary, dropped: Counter[Why]) -> list[Drawn]:
    """What an annotation says about one picture."""
    found: list[Drawn] = []
    for region in _placeable(annotation):
        if region.media != key:
            continue
        why = _reason(region, vocabulary)
        one = None if why else _placed(region, vocabulary.known, annotation.sizes.get(key))
        if one is not None:
            found.append(one)
        else:
            dropped[why or ("no-area", region.label or "")] += 1
    return found


def _placeable(annotation: Annotation) -> Iterator[Region]:
    """All but what is said about the picture as a whole, which no detector is asked for."""
    return (region for region in annotation.regions if not isinstance(region.shape, Whole))


def _reason(region: Region, vocabulary: Vocabulary) -> Why | None:
    """Why no box can be learned from a region, if so."""
    if not isinstance(region.shape, Box | Polygon):
        return "no-box", region.label or type(region.shape).__name__.lower()
    if region.label is None:
        return "no-label", ""
    return None if region.label in vocabulary.known else ("unknown-label", region.label)


def _placed(region: Region, known: Mapping[str, str], size: Size | None) -> Drawn | None:
    """A region on its picture; None where nothing of it lies inside, or it has no area."""
    label, shape = known[region.label or ""], region.shape
    if isinstance(shape, Box) and not shape.angle_deg:
        left, top, right, bottom = shape.xyxy
        if size is not None:
            left, right = max(left, 0.0), min(right, float(size.width))
            top, bottom = max(top, 0.0), min(bottom, float(size.height))
        xyxy = rounded((left, top, right, bottom))
        return Drawn(label, xyxy) if xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3] else None
    outline = outline_of(shape)
    if size is not None:
        outline = clip(outline, size)
    return around(label, tuple(outline)) if len(outline) > 2 and outline_area(outline) > 0 else None

"""Annotations -> a frozen manifest. Pure: `jobs/pull` brings the annotations, `jobs/folder` the pictures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime

import msgspec

from labelloop.core.outlines import outline_area, outline_of
from labelloop.core.regions import Box, Mask, MediaKey, Polygon, Region, Size, Whole
from labelloop.core.tasks import Annotation, MediaRef, TextRef
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
from labelloop.media.text import plain_text

_EARLIEST = datetime.min.replace(tzinfo=UTC)

Why = tuple[str, str]
"""Reason and label of a region that is dropped."""


class Annotated(msgspec.Struct, frozen=True):
    """A task that people worked on: its pictures or texts as the label config shows them, and all its annotations."""

    task_id: int
    refs: tuple[MediaRef, ...]
    annotations: tuple[Annotation, ...]


def freeze(tasks: Iterable[Annotated], *, project_id: int, vocabulary: Vocabulary, options: Options) -> Manifest:
    """The data set of a project: what `vocabulary` says can be learned there. Reads `tasks` once, in any order.

    Pictures on which nothing was drawn stay, as negatives. Left out are tasks that were only skipped, and those without
    a picture; dropped, with a count, are regions that no box can be made of, and those whose label the config does not
    have any more.
    """
    items: list[Item] = []
    left_out: list[LeftOut] = []
    dropped: Counter[Why] = Counter()
    of_task = _chosen_items if vocabulary.learns == "choices" else _items
    thing = _thing(vocabulary)
    for task in tasks:
        annotations = chosen(task.annotations, how=options.annotators)
        if not task.annotations:
            left_out.append(LeftOut(task.task_id, "unlabelled", "nobody annotated it"))
        elif not annotations:
            left_out.append(LeftOut(task.task_id, "skipped", "everybody passed it on"))
        elif not all(ref.uri for ref in task.refs) or not task.refs:
            why = f"the task lacks a {thing} that the label config shows"
            left_out.append(LeftOut(task.task_id, f"no-{thing}", why))
        else:
            found = list(of_task(task, annotations, vocabulary, options, dropped))
            left_out += [] if found else [LeftOut(task.task_id, "no-choice", "nobody has chosen anything")]
            items += found
    return Manifest(
        project_id=project_id,
        labels=vocabulary.labels,
        options=options,
        items=tuple(sorted(items, key=lambda item: (item.task_id, item.media))),
        left_out=tuple(sorted(left_out)),
        dropped=tuple(sorted(Dropped(reason, label, count) for (reason, label), count in dropped.items())),
        learns=vocabulary.learns,
        reads="texts" if thing == "text" else "pictures",
        several=vocabulary.several,
    )


def _thing(vocabulary: Vocabulary) -> str:
    return "text" if vocabulary.fields and vocabulary.fields[0].shows_texts else "picture"


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


def _chosen_items(
    task: Annotated, annotations: Sequence[Annotation], vocabulary: Vocabulary, options: Options, dropped: Counter[Why]
) -> Iterator[Item]:
    """What was chosen for each picture or text. Of choices that exclude each other none is no answer; of several that
    may be true, none is one."""
    for ref in task.refs:
        votes = [_said(annotation, ref.key, vocabulary, dropped) for annotation in annotations]
        said = tuple(label for label in vocabulary.labels if 2 * sum(label in vote for vote in votes) > len(votes))
        minority = {label for vote in votes for label in vote} - {*said}
        dropped.update(("no-majority", label) for label in minority)
        if not vocabulary.several and len(said) != 1:
            continue
        item = Item(
            task_id=task.task_id,
            media=ref.key,
            uri=ref.uri,
            side=side_of(task.task_id, options=options),
            annotation_ids=tuple(annotation.id for annotation in annotations),
            drawn=(),
            ground_truth=any(annotation.ground_truth for annotation in annotations),
            said=said,
        )
        yield _with_text(item, ref) if isinstance(ref, TextRef) else item


def _with_text(item: Item, ref: TextRef) -> Item:
    """A text that stands in its task is known at once, as people read it."""
    if ref.by_url:
        return msgspec.structs.replace(item, markup=ref.markup)
    text = plain_text(ref.uri) if ref.markup else ref.uri
    # JSON may bring halves of surrogate pairs, which no file can hold
    return msgspec.structs.replace(item, uri="", text=text.encode(errors="replace").decode())


def _said(annotation: Annotation, key: MediaKey, vocabulary: Vocabulary, dropped: Counter[Why]) -> set[str]:
    """The labels that one annotation chose for one picture or text."""
    found = set[str]()
    for region in annotation.regions:
        if not isinstance(region.shape, Whole) or region.media != key or region.label is None:
            continue
        label = vocabulary.known.get(region.label)
        if label is None:
            dropped["unknown-label", region.label] += 1
        else:
            found.add(label)
    return found


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
    if not isinstance(region.shape, Box | Polygon | Mask):
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
    outlines = [part[0] for part in shape.parts] if isinstance(shape, Mask) else [outline_of(shape)]
    if size is not None:
        outlines = [clip(outline, size) for outline in outlines]
    areas = {outline: outline_area(outline) for outline in outlines if len(outline) > 2}
    kept = sorted((outline for outline, area in areas.items() if area > 0), key=lambda one: (-areas[one], one))
    return around(label, *kept) if kept else None

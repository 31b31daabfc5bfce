"""What `labelloop quality` answers: the schema of its JSON, and the arithmetic from counts to figures."""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from labelloop.core.outlines import bounding_box
from labelloop.learning.matching import overlaps
from labelloop.learning.mistakes import Suspicion
from labelloop.learning.pool import score_of
from labelloop.learning.quality import Counts, Quality


class Regions(msgspec.Struct, frozen=True):
    """Regions of one class, or of all. `predicted` = `accepted` + `changed` + `wrong`; `relabelled` are some of the
    `changed`. `wrong` ones a person deleted, `missed` ones a person added. `acceptance_rate` = accepted / predicted,
    `edit_iou` is the mean IoU of changed regions with what people made of them; both in [0, 1], null without any."""

    predicted: int
    accepted: int
    changed: int
    relabelled: int
    wrong: int
    missed: int
    acceptance_rate: float | None
    edit_iou: float | None


class ClassQuality(msgspec.Struct, frozen=True):
    """One class: the model's for what it predicted, the person's for what it missed."""

    label: str
    regions: Regions


class VersionQuality(msgspec.Struct, frozen=True):
    """One version. `pictures` counts submissions that began with its prediction, `untouched` those left as they were.

    `edits_per_picture` = (changed + wrong + missed) / pictures is what people did; `edits_from_nothing_per_picture` =
    (accepted + changed + missed) / pictures is what drawing each region would have taken; `edits_saved_per_picture` is
    the difference, (accepted - wrong) / pictures. With an empty `version` its predictions were deleted since: then what
    was wrong is not known (`wrong_known` false), and acceptance and saving are upper bounds.
    """

    version: str
    wrong_known: bool
    pictures: int
    untouched: int
    edits_per_picture: float
    edits_from_nothing_per_picture: float
    edits_saved_per_picture: float
    regions: Regions
    classes: tuple[ClassQuality, ...]


class Mistake(msgspec.Struct, frozen=True):
    """One likely label mistake. The model sees `model_label` with `confidence` at `box_xyxy` (pixels of the upright
    picture; null for the item as a whole) on page `page` of the task's `field`; the person said `person_label`, which
    is null for "overlooked", with an overlap of `iou`. `weight` in [0, 1] orders them (learning/mistakes). `overruled`:
    the annotation began with this model's prediction, so the person saw it and said otherwise."""

    task: int
    annotation: int
    kind: Literal["overlooked", "swapped", "misplaced"]
    weight: float
    model_label: str
    confidence: float
    person_label: str | None
    iou: float | None
    box_xyxy: tuple[float, float, float, float] | None
    field: str
    page: int
    overruled: bool


class Mistakes(msgspec.Struct, frozen=True):
    """Where `judge` contradicts people with a confidence of at least `sure`. `compared` annotations were held against
    its predictions, `without_prediction` could not be. `found` contradictions it could not have caused itself,
    `overruled` more that people saw and decided against; `listed` are the best of the first, or of both if asked for,
    most likely first."""

    judge: str
    sure: float
    compared: int
    without_prediction: int
    found: int
    overruled: int
    listed: tuple[Mistake, ...]


class Tab(msgspec.Struct, frozen=True):
    """The tab of the Data Manager with the tasks of `Mistakes.listed`."""

    id: int
    title: str
    url: str
    tasks: int


class Report(msgspec.Struct, frozen=True):
    """`annotations` were submitted, after `since` if given: `began_with_prediction` and `began_with_nothing`, and
    `not_looked_at`, which Label Studio made from predictions and no person touched; those count for nothing.
    `versions` are in the order of their numbers. `mistakes` is null when they were not asked for or when nothing can
    judge; `tab` is null when none was asked for or there is nothing to show."""

    project: int
    title: str
    since: str | None
    annotations: int
    began_with_prediction: int
    began_with_nothing: int
    not_looked_at: int
    versions: tuple[VersionQuality, ...]
    mistakes: Mistakes | None = None
    tab: Tab | None = None


def version_quality(found: Quality) -> VersionQuality:
    """One row of the report."""
    total = found.total
    return VersionQuality(
        version=found.version,
        wrong_known=bool(found.version),
        pictures=found.pictures,
        untouched=found.untouched,
        edits_per_picture=total.edits / found.pictures,
        edits_from_nothing_per_picture=total.edits_from_nothing / found.pictures,
        edits_saved_per_picture=found.edits_saved_per_picture,
        regions=_regions(total),
        classes=tuple(ClassQuality(label, _regions(counts)) for label, counts in found.classes.items()),
    )


def _regions(counts: Counts) -> Regions:
    return Regions(
        predicted=counts.predicted,
        accepted=counts.accepted,
        changed=counts.changed,
        relabelled=counts.relabelled,
        wrong=counts.deleted,
        missed=counts.added,
        acceptance_rate=counts.acceptance,
        edit_iou=counts.edit_iou,
    )


def mistake(found: Suspicion, *, task: int, annotation: int, overruled: bool) -> Mistake:
    """One line of the list."""
    box, media = bounding_box(found.model.shape), found.model.media
    return Mistake(
        task=task,
        annotation=annotation,
        kind=found.kind,
        weight=found.weight,
        model_label=found.model.label or "",
        confidence=score_of(found.model),
        person_label=None if found.person is None else found.person.label or "",
        iou=None if found.person is None else float(overlaps([found.model], [found.person])[0, 0]),
        box_xyxy=box.xyxy if box else None,
        field=media.field,
        page=media.page,
        overruled=overruled,
    )


def in_order_of_numbers(version: str) -> tuple[object, ...]:
    """Sorts "cars@10" behind "cars@9", and what has no name last."""
    parts = re.split(r"(\d+)", version)
    return (not version, *((int(part), "") if part.isdecimal() else (-1, part) for part in parts))

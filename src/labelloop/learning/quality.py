"""What people made of predictions: accepted, changed, deleted, added; per version and class.

Label Studio copies the regions of the shown prediction into the annotation with their ids, and the annotation names
that prediction as its parent. So what happened to each region is known and need not be guessed by overlap: a box that
was deleted and drawn again counts as both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import msgspec

from labelloop.core.regions import Raw, Region
from labelloop.learning.edits import iou_of, same_shape, same_text, with_tracks

What = Literal["accepted", "changed", "deleted", "added"]


class Review(msgspec.Struct, frozen=True):
    """A submitted annotation and the prediction it began with, both in the project's labels (`wire.decode_regions`).

    `predicted` is None and `version` empty where Label Studio does not know the prediction any more: deleting a
    version's predictions clears `parent_prediction`. `origins` says by region id what the editor noted: "prediction",
    "prediction-changed" or "manual". Leave out skipped annotations, and those that began with no prediction at all
    (`began_with_prediction`).
    """

    annotated: tuple[Region, ...]
    predicted: tuple[Region, ...] | None = None
    version: str = ""
    origins: Mapping[str, str] = {}

    @property
    def began_with_prediction(self) -> bool:
        return self.predicted is not None or any(origin.startswith("prediction") for origin in self.origins.values())


class Fate(msgspec.Struct, frozen=True):
    """What became of one region. `label` is the model's, of an added region the person's. `iou` in [0, 1] is
    `edits.iou_of`. `relabelled`: the class changed."""

    what: What
    label: str
    iou: float | None = None
    relabelled: bool = False


class Counts(msgspec.Struct, frozen=True):
    """How many regions of one class, or of all, had which fate. `relabelled` are some of the `changed`; `iou_sum` is
    over the `measured` changed ones whose IoU is known."""

    accepted: int = 0
    changed: int = 0
    deleted: int = 0
    added: int = 0
    relabelled: int = 0
    iou_sum: float = 0.0
    measured: int = 0

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Counts(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def predicted(self) -> int:
        """Regions that the model drew; each was accepted, changed or deleted."""
        return self.accepted + self.changed + self.deleted

    @property
    def acceptance(self) -> float | None:
        """Share of predicted regions in [0, 1] that people left as they were; None without any."""
        return self.accepted / self.predicted if self.predicted else None

    @property
    def edit_iou(self) -> float | None:
        """Mean IoU in [0, 1] of changed regions with what people made of them; None without any."""
        return self.iou_sum / self.measured if self.measured else None

    @property
    def edits(self) -> int:
        """Things people did: each change, deletion and addition is one."""
        return self.changed + self.deleted + self.added

    @property
    def edits_from_nothing(self) -> int:
        """Things people would have done without a prediction: draw each region of the annotation."""
        return self.accepted + self.changed + self.added


class Quality(msgspec.Struct, frozen=True):
    """One version's work as people left it. `untouched` of the `pictures` were submitted without an edit.

    With an empty `version` (see `Review`) deletions are not known, so acceptance and what was saved are upper bounds.
    """

    version: str
    pictures: int
    untouched: int
    classes: Mapping[str, Counts]

    @property
    def total(self) -> Counts:
        return sum(self.classes.values(), start=Counts())

    @property
    def edits_saved_per_picture(self) -> float:
        """Edits from nothing less the edits made, per picture: (accepted - deleted) / pictures. A correction counts as
        much as a drawing, so this is what the model saved at least; below 0 it cost more than it gave."""
        return (self.total.edits_from_nothing - self.total.edits) / self.pictures


class Tally:
    """Quality, review by review: for callers that stream and look at more than this."""

    def __init__(self) -> None:
        self._pictures: dict[str, int] = {}
        self._untouched: dict[str, int] = {}
        self._classes: dict[str, dict[str, Counts]] = {}

    def add(self, review: Review) -> bool:
        """False where the review began with no prediction, and so says nothing about one."""
        if not review.began_with_prediction:
            return False
        version, found = review.version, fates(review)
        counts = self._classes.setdefault(version, {})
        for fate in found:
            counts[fate.label] = counts.get(fate.label, Counts()) + _count(fate)
        self._pictures[version] = self._pictures.get(version, 0) + 1
        self._untouched[version] = self._untouched.get(version, 0) + all(fate.what == "accepted" for fate in found)
        return True

    def result(self) -> list[Quality]:
        """One Quality per version, by name."""
        return [
            Quality(version, self._pictures[version], self._untouched[version], dict(sorted(counts.items())))
            for version, counts in sorted(self._classes.items())
        ]


def quality(reviews: Iterable[Review]) -> list[Quality]:
    """One Quality per version, by name; reviews that began with nothing are left out. Reads `reviews` once."""
    tally = Tally()
    for review in reviews:
        tally.add(review)
    return tally.result()


def fates(review: Review) -> list[Fate]:
    """What became of each region of the prediction, and which ones people added.

    Several labels on one region are compared together and counted under the first. Where the prediction is gone, or
    its regions have no ids (not ours), the editor's `origins` say what they can: nothing about deletions, no IoU.
    """
    person = _by_id(with_tracks(review.annotated))
    if review.predicted is None or any(_id(region) is None for region in review.predicted):
        return [_noted(regions, review.origins.get(name, "manual")) for name, regions in person.items()]
    model = _by_id(with_tracks(review.predicted))
    kept = [_compare(regions, person[name]) if name in person else _deleted(regions) for name, regions in model.items()]
    return kept + [_noted(regions, "manual") for name, regions in person.items() if name not in model]


def _noted(regions: Sequence[Region], origin: str) -> Fate:
    what: Mapping[str, What] = {"prediction": "accepted", "prediction-changed": "changed"}
    return Fate(what.get(origin, "added"), _label(regions))


def _deleted(regions: Sequence[Region]) -> Fate:
    return Fate("deleted", _label(regions))


def _compare(model: Sequence[Region], person: Sequence[Region]) -> Fate:
    relabelled = {region.label for region in model} != {region.label for region in person}
    ours, theirs = model[0], person[0]
    if not relabelled and same_text(ours, theirs) and same_shape(ours.shape, theirs.shape):
        return Fate("accepted", _label(model), iou=1.0)
    return Fate("changed", _label(model), iou=iou_of(ours, theirs), relabelled=relabelled)


def _count(fate: Fate) -> Counts:
    measured = fate.what == "changed" and fate.iou is not None
    return Counts(
        **{fate.what: 1},
        relabelled=int(fate.relabelled),
        iou_sum=fate.iou if measured and fate.iou is not None else 0.0,
        measured=int(measured),
    )


def _by_id(regions: Sequence[Region]) -> dict[str, list[Region]]:
    """Regions by id, in order; one without an id is alone under a name that no id has."""
    found: dict[str, list[Region]] = {}
    for number, region in enumerate(regions):
        found.setdefault(_id(region) or f"\0{number}", []).append(region)
    return found


def _id(region: Region) -> str | None:
    if isinstance(region.shape, Raw):
        value = region.shape.result.get("id")
        return value if isinstance(value, str) else None
    return region.id


def _label(regions: Sequence[Region]) -> str:
    return regions[0].label or ""

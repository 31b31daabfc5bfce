"""Where a confident model contradicts a person: annotations that are worth a second look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np

from labelloop.core.regions import Region
from labelloop.learning.matching import SAME_THING_IOU, comparable, overlaps, same_label
from labelloop.learning.pool import Floats, score_of

SURE = 0.9
"""Score from which a model's word is held against a person's. Sure models are wrong too: use a good version."""
PLACED_IOU = 0.5
"""Overlap from which two boxes are at one place, as in AP50."""


class Suspicion(msgspec.Struct, frozen=True):
    """One disagreement. `weight` in [0, 1] orders them, 1 = most likely a mistake of the person. `person` is the region
    that is doubted, None where one seems to be missing."""

    kind: Literal["overlooked", "swapped", "misplaced"]
    weight: float
    model: Region
    person: Region | None = None


def suspicions(annotated: Sequence[Region], predicted: Sequence[Region], *, sure: float = SURE) -> list[Suspicion]:
    """Disagreements of an annotation with a prediction that did not know it, most suspicious first.

    The three kinds of ObjectLab (Tkachenko, Thyagarajan and Mueller 2023, arXiv 2309.00832), with plainer weights for a
    model with score p >= `sure`: "overlooked", nothing was annotated there, p; "swapped", another label was annotated
    at the same place and no prediction confirms that one, p * IoU; "misplaced", the label is right and the IoU below
    0.5, p * (1 - IoU). A region without a score is held against nobody. Labels are the project's on both sides. The
    annotation must not be a copy of this prediction, or of one of the same training data: a model does not contradict
    what it was taught.
    """
    persons, models = comparable(annotated), comparable(predicted)
    place, same = overlaps(models, persons), same_label(models, persons)
    right = np.where(same, place, 0.0)
    confirmed = (right >= PLACED_IOU).any(axis=0)
    wrong = np.where(same | confirmed, 0.0, place)
    found = [
        suspicion
        for model, right_here, wrong_here in zip(models, right, wrong, strict=True)
        if _is_sure(model, sure) and (suspicion := _suspicion(model, persons, right_here, wrong_here)) is not None
    ]
    return sorted(found, key=lambda suspicion: -suspicion.weight)


def _is_sure(model: Region, sure: float) -> bool:
    return model.score is not None and score_of(model) >= sure


def _suspicion(model: Region, persons: Sequence[Region], right: Floats, wrong: Floats) -> Suspicion | None:
    """What a sure region says against `persons` [m], given its IoU [m] with those of its label and with open others."""
    score, placed, swapped = score_of(model), float(right.max(initial=0)), float(wrong.max(initial=0))
    if placed >= PLACED_IOU:
        return None
    if swapped >= PLACED_IOU:
        return Suspicion("swapped", score * swapped, model, persons[int(wrong.argmax())])
    if placed >= SAME_THING_IOU:
        return Suspicion("misplaced", score * (1.0 - placed), model, persons[int(right.argmax())])
    return Suspicion("overlooked", score, model)

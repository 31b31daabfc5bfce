"""A person who corrects what a model drew, played: what there is to do, and an estimate of how long it takes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec

from labelloop.core.errors import SimulationError
from labelloop.core.regions import Region
from labelloop.learning.matching import comparable, pairs

ACCEPT_IOU = 0.7
"""A box of the right class that overlaps the person's by this much is left as it is. Two people who draw the same thing
seldom agree better than 0.8 to 0.9."""

MOVE_IOU = 0.5
"""From this overlap on its corners are pulled; below, deleting it and drawing it anew is quicker."""


class Times(msgspec.Struct, frozen=True):
    """Seconds that a person needs for each action: **assumptions**, to be replaced by what your people need.

    `add` is published: 7 s for a box by extreme clicking (Papadopoulos et al., Extreme clicking for efficient object
    annotation, ICCV 2017; 35 s, they say, the way ImageNet's boxes were drawn). The others are our guesses: a glance at
    a box that is right, pulling a box by two corners, selecting and deleting one, and for each `picture` opening it,
    looking whether anything is missing, and submitting.
    """

    accept: float = 1.0
    move: float = 4.0
    delete: float = 2.0
    add: float = 7.0
    picture: float = 3.0


class Actions(msgspec.Struct, frozen=True):
    """What people did on some pictures: boxes that they left, moved, deleted and drew."""

    pictures: int = 0
    accepted: int = 0
    moved: int = 0
    deleted: int = 0
    added: int = 0

    def __add__(self, other: Actions) -> Actions:
        mine, theirs = msgspec.structs.astuple(self), msgspec.structs.astuple(other)
        return Actions(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def edits(self) -> int:
        """As in `quality.Counts`: each move, deletion and addition is one."""
        return self.moved + self.deleted + self.added

    @property
    def boxes(self) -> int:
        """Boxes that were there in the end."""
        return self.accepted + self.moved + self.added

    def seconds(self, times: Times) -> float:
        """An estimate: counts times `times`."""
        spent = (
            (self.accepted, times.accept),
            (self.moved, times.move),
            (self.deleted, times.delete),
            (self.added, times.add),
            (self.pictures, times.picture),
        )
        return sum(count * each for count, each in spent)


def correct(drawn: Sequence[Region], truth: Sequence[Region]) -> Actions:
    """What a person does on one picture who was shown `drawn` and wants `truth`, both in the project's labels.

    A box of the same class is accepted from ACCEPT_IOU on and moved from MOVE_IOU on, one to one, the best first
    (`matching.pairs`). Every other box that was drawn is deleted, and what is then missing is drawn: a box with a wrong
    label costs both, which is the most that it can cost.
    """
    ours, theirs = comparable(drawn), comparable(truth)
    kept = [iou for _, _, iou in pairs(ours, theirs) if iou >= MOVE_IOU]
    accepted = sum(iou >= ACCEPT_IOU for iou in kept)
    return Actions(
        pictures=1,
        accepted=accepted,
        moved=len(kept) - accepted,
        deleted=len(ours) - len(kept),
        added=len(theirs) - len(kept),
    )


def parse_times(text: str) -> Times:
    """ "add=25,move=6": the seconds that are named, the others as they are. Raises SimulationError."""
    known = Times.__struct_fields__
    given: dict[str, float] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, number = (piece.strip() for piece in part.partition("="))
        try:
            seconds = float(number)
        except ValueError:
            seconds = math.nan
        if name not in known or not 0 <= seconds < math.inf:
            raise SimulationError(
                f"{part!r} is no time of an action.",
                hint=f"Write seconds like add=7,move=4. There are: {', '.join(known)}.",
            )
        given[name] = seconds
    return Times(**given)

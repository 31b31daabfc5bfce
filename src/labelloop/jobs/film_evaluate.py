"""MOTChallenge files against each other."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from labelloop.formats import mot
from labelloop.video.measures import Boxes, Scores, score


def evaluate(true: Path, predicted: Path) -> Scores:
    """Scores of predicted tracks against ground truth. True boxes whose flag is 0 are not counted; classes are not
    looked at, because results do not name them. Raises MotError."""
    return score(
        _boxes(true, (row for row in mot.read(true) if row.confidence)), _boxes(predicted, mot.read(predicted))
    )


def _boxes(path: Path, rows: Iterable[mot.Row]) -> Boxes:
    found: dict[int, list[tuple[int, tuple[float, float, float, float]]]] = {}
    seen: set[tuple[int, int]] = set()
    for row in rows:
        if (row.frame, row.id) in seen:
            raise mot.MotError(f"{path} has the id {row.id} twice on frame {row.frame}.")
        seen.add((row.frame, row.id))
        found.setdefault(row.frame, []).append((row.id, row.xyxy))
    return found

"""Learning curves out of the rows of a simulation: means and spread over seeds, a table, sentences."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import msgspec

from labelloop.learning.simulation import FULL, Row
from labelloop.learning.trainers.base import replace_file

CONTROL = "random"
"""What the other strategies are compared with."""

COLUMNS = (*Row.__struct_fields__, "edits_per_picture")


class Spread(NamedTuple):
    """Mean and standard deviation (of a sample, 0 for a single value) over `seeds` seeds."""

    mean: float
    deviation: float
    seeds: int


class Point(NamedTuple):
    """What one strategy has reached after `pictures`, over seeds. `seconds` and `boxes` are means."""

    pictures: int
    boxes: float
    seconds: float
    ap: Spread
    ap50: Spread
    edits_per_picture: Spread
    seconds_per_picture: Spread


def spread(values: Sequence[float]) -> Spread:
    return Spread(fmean(values), stdev(values) if len(values) > 1 else 0.0, len(values))


def strategies_of(rows: Sequence[Row]) -> list[str]:
    """Those that choose, in the order of the rows."""
    return list(dict.fromkeys(row.strategy for row in rows if row.strategy != FULL))


def points(rows: Sequence[Row], strategy: str) -> list[Point]:
    """The curve of one strategy, smallest budget first."""
    sizes = sorted({row.pictures for row in rows if row.strategy == strategy})
    return [_point([row for row in rows if row.strategy == strategy and row.pictures == size]) for size in sizes]


def differences(rows: Sequence[Row], strategy: str, *, control: str = CONTROL) -> list[float]:
    """By how much AP50 of `strategy` lies above that of `control`: for each seed the mean over the budgets after the
    first, which both share. Only budgets that both have been played to count."""
    both = {name: {(r.seed, r.pictures): r.ap50 for r in rows if r.strategy == name} for name in (strategy, control)}
    shared = sorted(both[strategy].keys() & both[control].keys())
    first = min((size for _, size in shared), default=0)
    by_seed: dict[int, list[float]] = {}
    for seed, size in shared:
        if size > first:
            by_seed.setdefault(seed, []).append(both[strategy][seed, size] - both[control][seed, size])
    return [fmean(values) for values in by_seed.values()]


def verdicts(rows: Sequence[Row]) -> Iterator[str]:
    """A sentence for each strategy about what it gains over choosing by chance."""
    names = strategies_of(rows)
    for name in names if CONTROL in names else ():
        gains = differences(rows, name) if name != CONTROL else []
        if len(gains) > 1:
            mean, deviation, seeds = spread(gains)
            better = sum(gain > 0 for gain in gains)
            yield (
                f"{name} against {CONTROL}: AP50 {mean:+.3f} ± {deviation:.3f} on average over the budgets after the "
                f"first, better with {better} of {seeds} seeds: {_word(gains)}."
            )


def _word(gains: Sequence[float]) -> str:
    """Cautious on purpose: all seeds must agree. With five seeds that happens by chance once in 16 times."""
    if all(gain > 0 for gain in gains):
        return "better with every seed"
    return "worse with every seed" if all(gain < 0 for gain in gains) else "a tie, as far as these seeds can tell"


def write_csv(path: Path, rows: Sequence[Row]) -> None:
    """All rows, in one step: who reads the file meanwhile sees the old or the new one."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows([*_rounded(msgspec.structs.astuple(row)), round(row.edits_per_picture, 3)] for row in rows)
    replace_file(path, _writer(text.getvalue()))


def _writer(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        path.write_text(text)

    return write


def _rounded(values: Sequence[object]) -> Iterator[object]:
    return (round(value, 4) if isinstance(value, float) else value for value in values)


def _point(rows: Sequence[Row]) -> Point:
    return Point(
        pictures=rows[0].pictures,
        boxes=fmean(row.boxes for row in rows),
        seconds=fmean(row.seconds for row in rows),
        ap=spread([row.ap for row in rows]),
        ap50=spread([row.ap50 for row in rows]),
        edits_per_picture=spread([row.edits_per_picture for row in rows]),
        seconds_per_picture=spread([row.seconds_per_picture for row in rows]),
    )

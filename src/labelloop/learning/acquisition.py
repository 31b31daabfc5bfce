"""Acquisition functions: how much a person is needed on a picture, in [0, 1], from what a detector says about it.

A detector gives one score p per region and no scores of the other classes, so a region is a binary question, "is this
a <label>?", answered with p for yes and 1 - p for no. The formulas of the literature (Settles, Active Learning
Literature Survey, 2009, section 3.1) become:

    least_confidence  1 - P(y1)                1 - p, with y1 = the label that is drawn
    margin            (1 - (P(y1) - P(y2)))^2  (1 - |2p - 1|)^2, squared as Brust, Kaeding and Denzler do (VISAPP 2019)
    entropy           -sum P(y) log2 P(y)      -p log2 p - (1 - p) log2(1 - p): the binary entropy per class that Wu,
                                               Chen and Huang sum (CVPR 2022, arXiv 2204.07965)

Least confidence of the *likelier answer* would be 1 - max(p, 1 - p), which orders regions exactly as margin and entropy
do: for two answers the three are one (Settles again). Taken over the drawn label it is a strategy of its own: a box
just above the threshold is the least certain one, where for margin and entropy that is a box at 0.5. Margin and entropy
order single regions alike and differ once regions are put together: entropy is broad (0.72 at p = 0.8), the squared
margin narrow (0.16), so that a few doubtful boxes weigh more than many almost sure ones. Of 50 pictures with one or two
doubtful boxes among 1,000 (tests/learning/test_select.py, five seeds) the first 50 hold, by max, top-3, mean and sum:
margin 50, 49-50, 47-50 and 50; entropy 50, 38-40, 30-33 and 16-19. Hence margin is the default.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import LabelloopError
from labelloop.core.regions import Region
from labelloop.learning.pool import Floats, Pool, score_of

RegionUncertainty = Callable[[Floats], Floats]
Aggregation = Literal["max", "mean", "sum", "top-k"]


class AcquisitionError(LabelloopError):
    """A way of choosing pictures that does not exist, or that cannot be used with these values."""

    code = "acquisition"


def least_confidence(scores: Floats) -> Floats:
    """1 - p for scores [r]: highest where the model hardly dared to draw."""
    return 1.0 - scores


def margin(scores: Floats) -> Floats:
    """(1 - |p - (1 - p)|)^2 for scores [r]: the squared 1-vs-2 margin of Brust et al. 2019 with two answers."""
    return np.asarray(np.square(1.0 - np.abs(2.0 * scores - 1.0)))


def entropy(scores: Floats) -> Floats:
    """Binary entropy in bits for scores [r]: -p log2 p - (1 - p) log2(1 - p), with 0 log 0 = 0."""
    both = np.stack([scores, 1.0 - scores])
    bits = -np.sum(both * np.log2(both, out=np.zeros_like(both), where=both > 0), axis=0)
    return np.asarray(np.clip(bits, 0.0, 1.0))  # rounding may leave 1 + 2e-16, and -0.0


STRATEGIES: Mapping[str, RegionUncertainty | None] = {
    "random": None,  # the control: knows the task's id and nothing else
    "least_confidence": least_confidence,
    "margin": margin,
    "entropy": entropy,
}


class Acquisition(msgspec.Struct, frozen=True):
    """How pictures are asked for. Raises AcquisitionError for what does not exist, naming the nearest that does.

    `aggregation` makes one number of a picture's regions: "max" asks for the single doubtful box, "mean" is blind to
    how many there are, "sum" prefers crowded pictures (it buys boxes, not pictures), "top-k" is the mean of the
    `top_k` most uncertain, so that many easy boxes do not hide a few hard ones. `balance` weights regions by
    `class_weights` of the pool. `seed` moves the random strategy and all ties.
    """

    strategy: str = "margin"
    aggregation: Aggregation = "top-k"
    top_k: int = 3
    balance: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        check_name("strategy", self.strategy, tuple(STRATEGIES))
        check_name("aggregation", self.aggregation, get_args(Aggregation))
        if self.top_k < 1:
            raise AcquisitionError(f"top_k is {self.top_k}.", hint="Give the number of regions to look at, 1 or more.")


def uncertainty(pool: Pool, acquisition: Acquisition) -> NDArray[np.float64]:
    """Uncertainty [n] in [0, 1] of each picture of the pool, 1 = a person is needed most.

    A picture without drawn regions has its best hidden score: the model is the less sure that there is nothing the
    closer it came to drawing something (`learning/select` orders such pictures among themselves). What two looks at
    the picture disagreed about comes on top as 1 - (1 - u)(1 - inconsistency): either reason suffices.
    """
    formula = STRATEGIES[acquisition.strategy]
    if formula is None:
        return random_uniform(pool.task_ids, seed=acquisition.seed)
    regions = np.asarray(formula(pool.scores), np.float64)
    if acquisition.balance:
        regions = regions * class_weights(pool.class_counts)[pool.labels]
    pictures = aggregate(regions, pool.starts, acquisition.aggregation, top_k=acquisition.top_k)
    pictures = np.where(pool.counts > 0, pictures, pool.hidden)
    return np.asarray(1.0 - (1.0 - pictures) * (1.0 - pool.inconsistency))


def scorer(acquisition: Acquisition) -> Callable[[Sequence[Region], float], float]:
    """Label Studio's score of one prediction, "how little a person needs to look at this", in [0, 1]: 1 - uncertainty,
    from the regions that are drawn and the best score in [0, 1] that was not drawn.

    For predictions that are sent before the others are known, so there is no class balance and no place of their own
    for pictures without findings; `learning/select` gives both. It stands on the path of a request: six times as quick
    as `uncertainty` of a pool of one, and free where nothing is drawn. Raises AcquisitionError for the random strategy,
    which needs a task.
    """
    formula = STRATEGIES[acquisition.strategy]
    if formula is None:
        hint = "Use it to order a project; give predictions a score by another strategy."
        raise AcquisitionError("A random number is no score of a prediction.", hint=hint)

    def score(regions: Sequence[Region], hidden: float) -> float:
        if not regions:
            return 1.0 - hidden
        doubts = formula(np.fromiter(map(score_of, regions), np.float64, len(regions)))
        return float(1.0 - _aggregate_one(doubts, acquisition))

    return score


def _aggregate_one(regions: Floats, acquisition: Acquisition) -> float:
    """`aggregate` for one picture with at least one region."""
    if acquisition.aggregation == "max":
        return float(regions.max())
    if acquisition.aggregation == "top-k" and len(regions) > acquisition.top_k:
        regions = np.sort(regions)[-acquisition.top_k :]
    total = float(regions.sum())
    return total / (1.0 + total) if acquisition.aggregation == "sum" else min(total / len(regions), 1.0)


def aggregate(
    regions: Floats, starts: NDArray[np.int64], aggregation: Aggregation, *, top_k: int
) -> NDArray[np.float64]:
    """One number in [0, 1] per picture from uncertainties [r] in [0, 1] of its regions, 0 for a picture without any.

    `starts` [n + 1] as in `Pool`. A sum s becomes s / (1 + s), which keeps the order of sums and stays below 1.
    """
    counts = np.diff(starts)
    pictures = np.zeros(len(counts), np.float64)
    filled = counts > 0
    if not filled.any():
        return pictures
    first = starts[:-1][filled]  # reduceat would take the next picture's region for an empty one
    if aggregation == "top-k":
        regions, kept = _keep_largest(regions, starts, top_k)
        sums = np.add.reduceat(regions, first)
        pictures[filled] = sums / kept[filled]
    elif aggregation == "max":
        pictures[filled] = np.maximum.reduceat(regions, first)
    else:
        sums = np.add.reduceat(regions, first)
        pictures[filled] = sums / counts[filled] if aggregation == "mean" else sums / (1.0 + sums)
    return np.minimum(pictures, 1.0)  # a mean of ones may come out as 1 + 2e-16


def class_weights(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Weights [c] in (0, 1] of classes that occur `counts` [c] times: 1 for the rarest, falling as 1 / frequency.

    Brust et al. 2019: w = (instances + classes) / (instances of the class + 1), divided by the largest weight here so
    that weighted uncertainties stay in [0, 1]. Count predictions, or people's annotations where there are enough.
    """
    if not len(counts):
        return np.ones(0)
    return np.asarray((counts.min() + 1) / (counts + 1), np.float64)


def random_uniform(keys: NDArray[np.int64], *, seed: int, stream: int = 0) -> NDArray[np.float64]:
    """Numbers [n] in [0, 1) that depend on key, `seed` and `stream` only: the same task draws the same number in every
    page, process and machine. SplitMix64's finaliser (Steele, Lea and Flood, OOPSLA 2014) on 53 bits."""
    offset = np.uint64((seed * 0x9E3779B97F4A7C15 + stream * 0xD1B54A32D192ED03) & 0xFFFFFFFFFFFFFFFF)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        mixed = keys.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + _mix(np.atleast_1d(offset))
        return (_mix(mixed) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(bits: NDArray[np.uint64]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return bits ^ (bits >> np.uint64(31))


def _keep_largest(regions: Floats, starts: NDArray[np.int64], top_k: int) -> tuple[Floats, NDArray[np.int64]]:
    """`regions` sorted within each picture, largest first, with all beyond the first `top_k` set to 0; and how many
    of each picture are left [n]."""
    counts = np.diff(starts)
    picture = np.repeat(np.arange(len(counts)), counts)
    ordered = regions[np.lexsort((-regions, picture))]
    place = np.arange(len(regions)) - np.repeat(starts[:-1], counts)
    return np.where(place < top_k, ordered, 0.0), np.minimum(counts, top_k)


def check_name(what: str, name: str, known: tuple[str, ...]) -> None:
    """Raise AcquisitionError, with the nearest of `known`, where there is no such name."""
    if name in known:
        return
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
    raise AcquisitionError(f"There is no {what} called {name!r}.", hint=hint)

"""What to label next: the order of a whole project, most uncertain first.

rank -> (shortlist -> embeddings from elsewhere -> diversified) -> order -> learning/placement
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.learning.acquisition import Acquisition, AcquisitionError, check_name, random_uniform, uncertainty
from labelloop.learning.diversity import Indices, k_center, k_means_plus_plus
from labelloop.learning.pool import Floats, Pool

Method = Literal["k-center", "k-means++"]

EMPTY_QUOTA = 0.1
"""Share of places for pictures without findings: enough to catch what the model misses, too little to tire people."""


class Diversity(msgspec.Struct, frozen=True):
    """How the first `budget` pictures are chosen from the `pool_factor` * budget most uncertain ones."""

    budget: int
    method: Method = "k-center"
    pool_factor: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_name("way to diversity", self.method, get_args(Method))
        if self.budget < 1 or self.pool_factor < 1:
            raise AcquisitionError(
                f"A budget of {self.budget} from a pool of {self.pool_factor} times as many is no choice.",
                hint="Both must be at least 1.",
            )


class Ranking(msgspec.Struct, frozen=True, eq=False):
    """The pictures of a pool, by their positions in it, in two strata, each most uncertain first. `quota` is the share
    of places that `empty` has in the order, in [0, 1), as long as both last; `uncertainty` [n] as it was reckoned."""

    found: Indices
    empty: Indices
    quota: float
    uncertainty: NDArray[np.float64]

    def order(self) -> Indices:
        """All positions [n], both strata interleaved evenly."""
        slots = self.slots()
        merged = np.empty(len(slots), np.intp)
        merged[slots], merged[~slots] = self.empty, self.found
        return merged

    def slots(self) -> NDArray[np.bool_]:
        """Which places [n] of the order belong to `empty`.

        Stride scheduling (Waldspurger and Weihl 1995): the k-th of a stratum with share q is due at (k + 1/2) / q. With
        a quota of 10 % those are the places 5, 15, 25 (from 0), not the first tenth. When one stratum is used up, the
        other takes all places; a quota of 0 puts `empty` last.
        """
        with np.errstate(divide="ignore"):
            due_found = (np.arange(len(self.found)) + 0.5) / (1.0 - self.quota)
            due_empty = (np.arange(len(self.empty)) + 0.5) / np.float64(self.quota)
        return np.asarray(np.argsort(np.concatenate([due_found, due_empty]), kind="stable") >= len(self.found))


def rank(pool: Pool, acquisition: Acquisition, *, empty_quota: float = EMPTY_QUOTA) -> Ranking:
    """Order the pictures of `pool`; the order of its rows makes no difference.

    Pictures without drawn regions are a stratum of their own, by their best hidden score: nothing found is neither
    "most uncertain" nor "certain". For the random strategy there are no strata: the control must not know the model.
    Ties are broken by a random number of the task, so that the order of import is no hidden criterion.
    """
    if not 0.0 <= empty_quota < 1.0:
        raise AcquisitionError(f"A quota of {empty_quota} is no share.", hint="Give a number from 0 to below 1.")
    doubt = uncertainty(pool, acquisition)
    order = np.lexsort((pool.task_ids, random_uniform(pool.task_ids, seed=acquisition.seed), -doubt))
    is_empty = pool.counts[order] == 0
    if acquisition.strategy == "random":
        is_empty[:] = False
    return Ranking(found=order[~is_empty], empty=order[is_empty], quota=empty_quota, uncertainty=doubt)


def shortlist(ranking: Ranking, diversity: Diversity) -> Indices:
    """Positions [m] of the pictures that the diverse subset is chosen from: those that need an embedding.

    From each stratum `pool_factor` times as many, most uncertain first, as it has places in the budget.
    """
    found, empty = _pools(ranking, diversity)
    return np.concatenate([found, empty])


def diversified(
    ranking: Ranking,
    diversity: Diversity,
    *,
    embeddings: Floats,
    keys: NDArray[np.int64],
    covered: Floats | None = None,
) -> Ranking:
    """`ranking` with a diverse choice of each stratum's shortlist moved to its front, in the order of choice; what was
    not chosen follows by uncertainty.

    The pattern of PPAL (Yang, Huang and Crowley, CVPR 2024): uncertainty narrows, diversity chooses. `embeddings`
    [m, d] belong to `shortlist(ranking, diversity)`, `keys` [n] are the pool's task ids, `covered` [c, d] are
    embeddings of pictures that people have labelled already. The first of each stratum is its most uncertain one,
    unless `covered` says what to be far from.
    """
    pools = _pools(ranking, diversity)
    if len(embeddings) != sum(map(len, pools)):
        raise ValueError(f"{len(embeddings)} embeddings for a shortlist of {sum(map(len, pools))}")
    shares = _shares(ranking, diversity.budget)
    fronts = []
    for pool, share, rows in zip(pools, shares, np.split(embeddings, [len(pools[0])]), strict=True):
        if diversity.method == "k-center":
            chosen = k_center(rows, share, covered=covered)
        else:
            weights = ranking.uncertainty[pool]
            chosen = k_means_plus_plus(
                rows, share, weights=weights, keys=keys[pool], seed=diversity.seed, covered=covered
            )
        fronts.append(pool[chosen])
    return msgspec.structs.replace(
        ranking, found=_to_front(ranking.found, fronts[0]), empty=_to_front(ranking.empty, fronts[1])
    )


def _pools(ranking: Ranking, diversity: Diversity) -> tuple[Indices, Indices]:
    found, empty = (math.ceil(share * diversity.pool_factor) for share in _shares(ranking, diversity.budget))
    return ranking.found[:found], ranking.empty[:empty]


def _shares(ranking: Ranking, budget: int) -> tuple[int, int]:
    """How many of the first `budget` places belong to found and to empty pictures."""
    first = ranking.slots()[:budget]
    empty = int(first.sum())
    return len(first) - empty, empty


def _to_front(order: Indices, chosen: Indices) -> Indices:
    return np.concatenate([chosen, order[~np.isin(order, chosen)]])

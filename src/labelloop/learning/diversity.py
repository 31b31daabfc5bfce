"""A diverse subset of vectors. Both ways choose one by one, so any beginning of their answer is a good answer too."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.learning.acquisition import random_uniform
from labelloop.learning.pool import Floats

Indices = NDArray[np.intp]


def k_center(embeddings: Floats, budget: int, *, covered: Floats | None = None) -> Indices:
    """`budget` rows of embeddings [n, d], each the farthest (Euclidean) from what was chosen before.

    Farthest-first traversal (Gonzalez 1985): the largest distance from any row to its nearest chosen one is at most
    twice the best possible. Used for active learning by Sener and Savarese (Core-Set, ICLR 2018). Begins with row 0,
    or with the row farthest from `covered` [m, d], the pictures people have labelled already. Ties keep the earlier
    row. Costs n * budget * d operations.
    """
    distance = _Nearest(embeddings, covered)
    chosen: list[int] = []
    for _ in range(min(budget, len(embeddings))):
        chosen.append(int(np.argmax(distance.squared)) if chosen or distance.known else 0)
        distance.choose(chosen[-1])
    return np.asarray(chosen, np.intp)


def k_means_plus_plus(
    embeddings: Floats,
    budget: int,
    *,
    weights: Floats | None = None,
    keys: NDArray[np.int64] | None = None,
    seed: int = 0,
    covered: Floats | None = None,
) -> Indices:
    """`budget` rows of embeddings [n, d], each drawn with probability proportional to weight * squared distance to the
    nearest row chosen before.

    The seeding of k-means++ (Arthur and Vassilvitskii, SODA 2007), which BADGE uses to choose batches (Ash et al.,
    ICLR 2020); less drawn to outliers than `k_center`. `weights` [n] > 0 are uncertainties, 1 if absent. Begins with
    row 0, or as drawn where `covered` [m, d] is given. Randomness comes from `keys` [n] (task ids; row numbers if
    absent) and `seed`, so the same tasks in another order give the same subset. Once only copies of chosen rows are
    left they follow in their order.
    """
    weight = np.ones(len(embeddings)) if weights is None else np.asarray(weights, np.float64)
    names = np.arange(len(embeddings), dtype=np.int64) if keys is None else keys
    distance = _Nearest(embeddings, covered)
    chosen: list[int] = []
    for step in range(min(budget, len(embeddings))):
        chosen.append(_draw(distance.squared, weight, names, seed, step) if chosen or distance.known else 0)
        distance.choose(chosen[-1])
    return np.asarray(chosen, np.intp)


def _draw(squared: Floats, weights: Floats, keys: NDArray[np.int64], seed: int, step: int) -> int:
    """A row drawn in proportion to weight * distance: the first to finish when each takes an exponentially distributed
    time with that as its rate. Unlike a draw on the cumulated sum it does not depend on the order of the rows."""
    rate = weights * np.maximum(squared, 0.0)
    if not rate.any():
        return int(np.argmax(squared))  # chosen rows have -1, so this is one that is left
    time = -np.log1p(-random_uniform(keys, seed=seed, stream=step + 1))
    return int(np.argmin(np.divide(time, rate, out=np.full(len(rate), np.inf), where=rate > 0)))


class _Nearest:
    """Squared distance [n] of each row to the nearest chosen or covered row, -1 for a chosen row itself."""

    def __init__(self, embeddings: Floats, covered: Floats | None) -> None:
        self.known = covered is not None and len(covered) > 0
        self.squared = np.full(len(embeddings), np.inf)
        self._rows: NDArray[Any] = np.asarray(embeddings, np.float64)
        for row in covered if covered is not None else ():
            self._lower(np.asarray(row, np.float64))

    def choose(self, index: int) -> None:
        self._lower(self._rows[index])
        self.squared[index] = -1.0

    def _lower(self, row: Floats) -> None:
        # the difference, not |a|^2 - 2ab + |b|^2: copies must come out as exactly 0
        difference = self._rows - row
        np.minimum(self.squared, np.einsum("nd,nd->n", difference, difference), out=self.squared)

"""The way down: L-BFGS, for smooth convex functions of some thousands of numbers.

Nocedal, Updating quasi-Newton matrices with limited storage, 1980; the two loops are algorithm 7.4 of Nocedal and
Wright, Numerical Optimization, 2006. Here because a fit takes some hundredths of a second, and importing SciPy's
optimisers takes ten times as long. Tests hold it against those.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from labelloop.learning.detections import Floats

REMEMBERED = 10
_ENOUGH = 1e-4
"""Of what the slope promises, a step must bring this much (Armijo)."""
_SHORTEST = 1e-12
_FLAT = 64 * float(np.finfo(float).eps)

Function = Callable[[Floats], tuple[float, Floats]]
"""The value at a place [n], and the slope there [n]."""


class _Step(NamedTuple):
    """How far it went, how the slope changed, and one over the product of both."""

    way: Floats
    change: Floats
    inverse: float


def lowest(function: Function, begin: Floats, *, most_steps: int, slope: float = 1e-4) -> Floats:
    """Where `function` is lowest, from `begin` on: where no part of its slope is larger than `slope`, where steps bring
    nothing any more, or where `most_steps` have led."""
    place = begin
    value, down = function(place)
    steps: deque[_Step] = deque(maxlen=REMEMBERED)
    for _ in range(most_steps):
        if np.abs(down).max() <= slope:
            break
        way = -_scaled(down, steps)
        length = 1.0 if steps else min(1.0, 1.0 / float(np.abs(down).sum()))
        promised = float(down @ way)
        reached, there = function(place + length * way)
        while not reached <= value + _ENOUGH * length * promised:
            length *= 0.5
            if length < _SHORTEST:
                return place
            reached, there = function(place + length * way)
        moved, change, before = length * way, there - down, value
        place, value, down = place + moved, reached, there
        curvature = float(moved @ change)
        if curvature > _FLAT * float(change @ change):
            steps.append(_Step(moved, change, 1.0 / curvature))
        if before - value <= _FLAT * max(abs(before), abs(value), 1.0):
            break
    return place


def _scaled(down: Floats, steps: deque[_Step]) -> Floats:
    """The slope times what is known of the inverse of the second derivatives."""
    way, shares = down.copy(), []
    for step in reversed(steps):
        share = step.inverse * float(step.way @ way)
        way -= share * step.change
        shares.append(share)
    if steps:
        way /= steps[-1].inverse * float(steps[-1].change @ steps[-1].change)
    for step, share in zip(steps, reversed(shares), strict=True):
        way += (share - step.inverse * float(step.change @ way)) * step.way
    return way

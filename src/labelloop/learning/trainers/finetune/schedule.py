"""How far a run is, how large its steps are, and the average it leaves."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

WARM_UP_STEPS = 20
WARM_UP_SHARE = 0.1


class Clock:
    """The budget of a run in seconds of wall time, and perhaps in steps."""

    def __init__(self, budget_s: float, *, reserve_s: float, max_steps: int | None, started: float) -> None:
        self._started, self._end_s, self._max_steps = started, budget_s - reserve_s, max_steps
        self._most_steps: int | None = None
        self._begun_s: float | None = None
        self._done, self._spent_s = 0.0, 0.0

    def resume(self, done: float, spent_s: float) -> None:
        """Go on where an earlier try was: `done` is its progress, `spent_s` what it took."""
        self._done, self._spent_s = done, spent_s

    def limit(self, steps: int) -> None:
        """End after so many steps where the time allows more: few pictures, seen too often, are learned by heart."""
        self._most_steps = max(1, steps)

    def seconds(self) -> float:
        """Of this try and of those that it goes on from."""
        return time.monotonic() - self._started + self._spent_s

    def at(self, share: float) -> float:
        """The time (of `time.monotonic`) at which this share of the budget is spent."""
        return self._started + share * self._end_s

    def progress(self, step: int) -> float:
        """0 at the first step, 1 when training is over: by steps where their number is set, else by time, or by the
        limit on steps where that comes first."""
        if self._max_steps is not None:
            return min(1.0, step / self._max_steps)
        now = time.monotonic() - self._started
        if self._begun_s is None:
            self._begun_s = now
        by_time = self._done + (now - self._begun_s) / max(self._end_s - self._begun_s, 1e-3)
        by_steps = step / self._most_steps if self._most_steps is not None else 0.0
        return min(1.0, max(by_time, by_steps))


def rate(progress: float, step: int) -> float:
    """The factor of the learning rate: a short warm-up, then half a cosine over the whole run."""
    warm = max((step + 1) / WARM_UP_STEPS, progress / WARM_UP_SHARE)
    return min(1.0, warm) * 0.5 * (1 + math.cos(math.pi * progress))


def batches(count: int, *, size: int, seed: int, step: int) -> Iterator[list[int]]:
    """Indices of each batch from `step` on: all `count` in random order, then all again in another. The same for the
    same seed, wherever it starts."""
    position = step * size
    while True:
        batch: list[int] = []
        while len(batch) < size:
            epoch, place = divmod(position, count)
            order = np.random.default_rng([seed, epoch]).permutation(count)
            part = order[place : place + size - len(batch)].tolist()
            batch += part
            position += len(part)
        yield batch


class Average:
    """Exponential moving average of weights; quick at first, so that it soon forgets the start."""

    def __init__(self, weights: Mapping[str, Tensor], *, decay: float = 0.98) -> None:
        self._decay = decay
        self.weights = {name: value.detach().clone() for name, value in weights.items()}

    @torch.no_grad()
    def update(self, weights: Mapping[str, Tensor], *, step: int) -> None:
        decay = min(self._decay, (1 + step) / (10 + step))
        theirs = [weights[name].detach() for name in self.weights]
        torch._foreach_lerp_(list(self.weights.values()), theirs, 1 - decay)

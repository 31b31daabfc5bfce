"""What the frozen part of a network says about every view, computed once and kept.

Half precision, channels last: a view of a 416 x 416 picture is 0.6 MB with YOLOX-nano. Above `MEMORY_BYTES` the cache
is a file in the folder of the run, which the operating system pages.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import structlog
from numpy.typing import NDArray

from labelloop.core.errors import MediaError
from labelloop.learning.trainers.base import TrainerError
from labelloop.learning.trainers.views import Plan, Sample, View

log = structlog.get_logger(__name__)

MEMORY_BYTES = 1 << 30
HALF_PRECISION_LIMIT = 6e4
Arrays = list[NDArray[Any]]


class Known(NamedTuple):
    """One view that was computed: its plan and its boxes; its features are at the same place in the cache."""

    plan: Plan
    xyxy: NDArray[np.float32]
    labels: NDArray[np.int64]


class FeatureCache:
    """`known[i]` tells what view i is; `features(indices)` are float32 arrays [b, h, w, c], one per map."""

    def __init__(self, folder: Path, *, room: int) -> None:
        self._folder, self._room = folder, room
        self._maps: Arrays = []
        self.known: list[Known] = []

    def add(self, plan: Plan, view: View, maps: Sequence[NDArray[np.float32]]) -> None:
        """Keep the maps [c, h, w] of one view."""
        if not self._maps:
            self._maps = self._reserve(maps)
        for kept, one in zip(self._maps, maps, strict=True):
            np.clip(
                one.transpose(1, 2, 0),
                -HALF_PRECISION_LIMIT,
                HALF_PRECISION_LIMIT,
                out=kept[len(self.known)],
                casting="same_kind",
            )
        self.known.append(Known(plan, view.xyxy, view.labels))

    def features(self, indices: Sequence[int]) -> Arrays:
        return [kept[list(indices)].astype(np.float32) for kept in self._maps]

    def _reserve(self, maps: Sequence[NDArray[np.float32]]) -> Arrays:
        shapes = [(self._room, *one.transpose(1, 2, 0).shape) for one in maps]
        total = sum(2 * int(np.prod(shape)) for shape in shapes)
        if total <= MEMORY_BYTES:
            return [np.empty(shape, np.float16) for shape in shapes]
        files = [self._folder / f"features-{place}.bin" for place in range(len(shapes))]
        kept: Arrays = [
            np.memmap(file, np.float16, "w+", shape=shape) for file, shape in zip(files, shapes, strict=True)
        ]
        for file in files:
            file.unlink()  # the mapping keeps it; a killed run leaves nothing behind
        return kept


def each_view(
    samples: Sequence[Sample],
    plans: Sequence[Plan],
    make: Callable[[Sample, Plan], Any],
    *,
    threads: int,
    until: Callable[[Plan], float],
) -> Iterator[tuple[Plan, Any]]:
    """Make views on `threads` threads, in order, until the time `until(plan)` of the next has come.

    A picture that cannot be read is left out with a word in the log; TrainerError when none can.
    """
    made, unread = 0, set[int]()
    with ThreadPoolExecutor(threads) as pool:
        waiting: list[tuple[Plan, Any]] = []
        rest = iter(plans)
        while True:
            while len(waiting) < 2 * threads and (plan := next(rest, None)) is not None:
                if time.monotonic() < until(plan) or not made:
                    waiting.append((plan, pool.submit(make, samples[plan.sample], plan)))
            if not waiting:
                break
            plan, future = waiting.pop(0)
            try:
                yield plan, future.result()
                made += 1
            except (OSError, MediaError) as error:
                if plan.sample not in unread:
                    unread.add(plan.sample)
                    log.warning("picture-left-out", path=str(samples[plan.sample].path), error=str(error))
    if not made:
        raise TrainerError("None of the pictures of this data set can be read.", hint="See the log of the run.")

"""An engine whose answers and pace a test decides."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size
from labelloop.engines.base import Wants

Find = Callable[[Picture], tuple[Region, ...]]


def middle_box(picture: Picture, *, label: str = "car", score: float = 0.9) -> tuple[Region, ...]:
    """One box around the middle half of the picture."""
    width, height = picture.size
    return (Region(Box((width / 4, height / 4, width * 3 / 4, height * 3 / 4)), label, score),)


class FakeEngine:
    """Answers with `find(picture)`. While `gate` is clear every `predict` waits for it; `entered` is set when one does.

    An exception that `find` raises fails the item, as a real model's would.
    """

    wants: Wants = "picture"
    input_size: Size | None = None

    def __init__(
        self, find: Find = middle_box, *, classes: Sequence[str] = ("car",), max_batch: int = 8, parallel: int = 1
    ) -> None:
        self.classes = tuple(classes)
        self.max_batch = max_batch
        self.parallel = parallel
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Event()
        self._find = find

    def prepare(self, picture: Picture) -> Picture:
        return picture

    def predict(self, batch: Sequence[Picture]) -> list[tuple[Region, ...]]:
        self.entered.set()
        if not self.gate.wait(30):
            raise TimeoutError("the test never opened the gate")
        return [self._find(picture) for picture in batch]

"""What a classifier says about frame after frame -> what it says about the film: the mean score of each class."""

from __future__ import annotations

import numpy as np

from labelloop.core.regions import Region, Whole
from labelloop.video.tracker import Detections


class Votes:
    """Takes the classes of each frame, as detections whose boxes say nothing."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        self._classes = classes
        self._sums = np.zeros(len(classes))
        self._frames = 0

    def add(self, found: Detections) -> None:
        """A class that is not named on a frame has a score of 0 there."""
        np.add.at(self._sums, found.classes, found.scores)
        self._frames += 1

    def finish(self) -> tuple[Region, ...]:
        """A Region of the whole film for each class that was ever named, best first."""
        means = self._sums / max(self._frames, 1)
        order = [int(place) for place in np.argsort(-means, kind="stable") if means[place] > 0]
        return tuple(Region(Whole(), label=self._classes[place], score=float(means[place])) for place in order)

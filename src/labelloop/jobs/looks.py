"""Second looks at pictures, for selection: do two looks agree, and which pictures are alike. Both go through the one
prediction path, behind everybody who waits."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import LabelloopError, ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Prediction, Region
from labelloop.core.tasks import Task
from labelloop.engines.base import Embedder
from labelloop.jobs.open import DEADLINE_S, Loop
from labelloop.learning.consistency import inconsistency, mirrored, mirrored_picture
from labelloop.learning.features import pooled_features
from labelloop.serving.predict import Look, Predictor
from labelloop.serving.projects import View
from labelloop.serving.stage import Priority

Vector = NDArray[np.floating[Any]]


class Looks:
    """Looks with one model version through one label config; called by one thread. What `check` raises ends a look."""

    def __init__(self, predictor: Predictor, loop: Loop, view: View, *, check: Callable[[], None]) -> None:
        self._predictor = predictor
        self._loop = loop
        self._view = view
        self._check = check

    def inconsistencies(self, tasks: Sequence[Task]) -> dict[int, float]:
        """1 - agreement, in [0, 1], of what the model says about each task's pictures and about their mirror images.
        Tasks that cannot be predicted are left out. Raises ModelFailed when the model is lost."""
        straight = self._predict(tasks, Look())
        turned = self._predict(tasks, Look(mirrored_picture))
        threshold = self._view.label_map.lowest_threshold
        return {
            task.id: inconsistency(one.regions, _turned_back(other), threshold=threshold)
            for task, one, other in zip(tasks, straight, turned, strict=True)
            if task.id is not None and one.error is None and other.error is None
        }

    def embeddings(self, tasks: Sequence[Task]) -> dict[int, Vector]:
        """Where each task lies among the others, [d]: the mean over its pictures of what the engine's `embed` says or,
        without one, of their pooled features. Tasks whose pictures cannot be had are left out."""
        work = self._predictor.examine(tasks, self._view, _embed, priority=Priority.BULK, deadline_s=DEADLINE_S)
        found = zip(tasks, self._loop.run(work, check=self._check), strict=True)
        return {
            task.id: np.mean(vectors, axis=0)
            for task, vectors in found
            if task.id is not None and not isinstance(vectors, LabelloopError) and vectors
        }

    def _predict(self, tasks: Sequence[Task], look: Look) -> list[Prediction]:
        work = self._predictor.predict(tasks, self._view, priority=Priority.BULK, deadline_s=DEADLINE_S, look=look)
        found = self._loop.run(work, check=self._check)
        errors = [one.error for one in found if one.error is not None]
        if errors and len(errors) == len(found) and errors[0].code == ModelFailed.code and errors[0].retry:
            raise ModelFailed(errors[0].message)
        return found


def _turned_back(prediction: Prediction) -> list[Region]:
    sizes = prediction.sizes
    return [
        same
        for region in prediction.regions
        for same in (mirrored([region], width=sizes[region.media].width) if region.media in sizes else [region])
    ]


def _embed(picture: Picture, engine: Any) -> Vector:
    if isinstance(engine, Embedder):
        return np.asarray(engine.embed([engine.prepare(picture)])[0], np.float32)  # type: ignore[attr-defined]
    return pooled_features(picture)

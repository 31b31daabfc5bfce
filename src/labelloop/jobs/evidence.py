"""What an order is reckoned from: what is remembered of a version's predictions, completed where something lacks.

Each part is kept as soon as it is there, so that whoever goes on after a stop need not find it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.core.tasks import Task
from labelloop.jobs.listing import Listing, Row
from labelloop.labelstudio.wire import decode_regions
from labelloop.learning.memory import packed, recall, remember, unpacked
from labelloop.learning.pool import Pool, pool_of
from labelloop.serving.projects import View
from labelloop.store.scores import Scores, Seen

LOOKED = 200
"""Tasks that are looked at again before what was found is kept."""

Vector = NDArray[np.floating[Any]]
Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is."""


class Seeing(Protocol):
    """Looks at pictures again (jobs/looks); tasks that cannot be looked at are left out."""

    def inconsistencies(self, tasks: Sequence[Task]) -> Mapping[int, float]: ...
    def embeddings(self, tasks: Sequence[Task]) -> Mapping[int, Vector]: ...


class Evidence:
    """Of one project and version. `unseen` counts the tasks whose pictures could not be looked at."""

    def __init__(
        self, scores: Scores, listing: Listing, project_id: int, view: View, looks: Seeing | None, progress: Progress
    ) -> None:
        self._scores = scores
        self._listing = listing
        self._project_id = project_id
        self._view = view
        self._looks = looks
        self._progress = progress
        self.unseen = 0

    def pool(self, task_ids: NDArray[np.int64]) -> Pool:
        """What is remembered of these tasks; those without a row are left out."""
        listed = set(task_ids.tolist())
        return pool_of(recall(seen) for seen in self._stored() if seen.task_id in listed)

    def read_back(self, task_ids: NDArray[np.int64]) -> int:
        """Remember the predictions that are in Label Studio only: made by somebody else, or noted nowhere. Returns how
        many there were."""
        known = {seen.task_id for seen in self._stored()}
        missing = [task for task in task_ids.tolist() if task not in known]
        done = 0
        for rows in self._listing.rows(missing, ("id", "predictions")):
            found = [seen for row in rows if (seen := self._as_seen(row)) is not None]
            self._scores.put(self._project_id, self._view.name, found)
            done += len(found)
            self._progress("reading predictions", done, len(missing))
        return done

    def look_twice(self, task_ids: NDArray[np.int64]) -> None:
        """Find out how consistent the model is on those of these tasks where nobody did."""
        listed = set(task_ids.tolist())
        once = [seen.task_id for seen in self._stored() if seen.inconsistency is None and seen.task_id in listed]
        for tasks in self._looking("looking twice", once):
            found = self._seeing().inconsistencies(tasks)
            self._scores.set_inconsistency(self._project_id, self._view.name, found)
            self.unseen += len(tasks) - len(found)

    def embeddings(self, wanted: Collection[int]) -> dict[int, Vector]:
        """Where tasks lie among each other, vectors [d] of one length: of `wanted`, as far as they can be looked at,
        and of all others that were looked at before."""
        known = self._known_embeddings()
        for tasks in self._looking("comparing pictures", [task for task in wanted if task not in known]):
            found = self._seeing().embeddings(tasks)
            kept = {task: packed(vector) for task, vector in found.items()}
            self._scores.set_embeddings(self._project_id, self._view.name, kept)
            self.unseen += len(tasks) - len(found)
        # another release may reckon other vectors for the same model; the many decide
        known = self._known_embeddings()
        lengths = Counter(len(known[task]) for task in wanted if task in known)
        return {task: vector for task, vector in known.items() if len(vector) == max(lengths, key=lengths.__getitem__)}

    def _known_embeddings(self) -> dict[int, Vector]:
        rows = self._scores.embeddings(self._project_id, self._view.name)
        return {task: unpacked(content) for task, content in rows.items()}

    def _stored(self) -> Iterator[Seen]:
        return self._scores.all(self._project_id, self._view.name)

    def _looking(self, what: str, wanted: Sequence[int]) -> Iterator[Sequence[Task]]:
        done = 0
        for tasks in self._listing.tasks(wanted):
            for start in range(0, len(tasks), LOOKED):
                part = tasks[start : start + LOOKED]
                yield part
                done += len(part)
                self._progress(what, done, len(wanted))

    def _seeing(self) -> Seeing:
        if self._looks is None:
            raise ValueError("this order needs looks at pictures")
        return self._looks

    def _as_seen(self, row: Row) -> Seen | None:
        ours = [one for one in row["predictions"] if one["model_version"] == self._view.name]
        if not ours:
            return None  # deleted a moment ago
        regions, score = decode_regions(ours[-1]["result"], self._view.config), ours[-1]["score"]
        # where nothing is drawn, a prediction's score is one minus the best that was not drawn
        hidden = 0.0 if regions or score is None else 1.0 - min(max(float(score), 0.0), 1.0)
        return remember(row["id"], regions, hidden, label_of=lambda region: region.label)

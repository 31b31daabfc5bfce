"""The tasks of a project that nobody has touched, as Label Studio lists them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.tasks import Task
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import after, chosen, query_of, untouched
from labelloop.labelstudio.records import TaskPage

LISTED = 2000
"""Tasks of one page where only numbers are read: a page costs Label Studio a second, however small it is."""
READ = 500
"""Tasks of one page where their predictions or data are read."""

Row = dict[str, Any]


class Listed(msgspec.Struct, frozen=True, eq=False):
    """Untouched tasks [n] with a prediction of a version, ascending by id, and their scores (NaN: none); how many
    untouched tasks there are, `total`, and how many of them have no such prediction."""

    task_ids: NDArray[np.int64]
    scores: NDArray[np.float64]
    unpredicted: int
    total: int

    def scores_of(self, task_ids: NDArray[np.int64]) -> NDArray[np.float64]:
        """Scores [m] of `task_ids` [m], all of which were listed."""
        return self.scores[np.searchsorted(self.task_ids, task_ids)]


class Listing:
    """Reads pages by ids: what others import, annotate and delete meanwhile cannot move them."""

    def __init__(self, client: Client, project_id: int, *, patience: Patience) -> None:
        self._client = client
        self._project_id = project_id
        self._patience = patience

    def pages(self, version: str) -> Iterator[Listed]:
        """What was listed so far, after each page; the last one is everything. The project's `model_version` must be
        `version`: the scores that Label Studio lists are those of the version that it names."""
        task_ids: list[int] = []
        scores: list[float] = []
        seen, last = 0, 0
        while True:
            page = self._page(last, LISTED, ("id", "predictions_score", "predictions_model_versions"))
            for row in page.tasks:
                score = row.get("predictions_score")
                if score is not None or version in _names(row):
                    task_ids.append(row["id"])
                    scores.append(float("nan") if score is None else float(score))
            total = seen + page.total
            seen += len(page.tasks)
            found = np.asarray(task_ids, np.int64), np.asarray(scores, np.float64)
            yield Listed(*found, unpredicted=seen - len(task_ids), total=total)
            if seen >= total:
                return
            last = max(row["id"] for row in page.tasks)

    def rows(self, wanted: Collection[int], include: Sequence[str]) -> Iterator[list[Row]]:
        """Those among the tasks `wanted` that are still untouched, page by page; gaps between them are jumped over."""
        left = sorted(wanted)
        while left:
            page = self._page(left[0] - 1, READ, include)
            last = max((row["id"] for row in page.tasks), default=left[-1])
            here = set(left)
            yield [row for row in page.tasks if row["id"] in here]
            left = [task for task in left if task > last]

    def tasks(self, wanted: Collection[int]) -> Iterator[list[Task]]:
        """The same as Tasks, with what they show."""
        for rows in self.rows(wanted, ("id", "data")):
            yield [Task(row["id"], row["data"], self._project_id) for row in rows]

    def now(self, task_ids: Sequence[int], version: str) -> Mapping[int, list[Row]]:
        """The predictions of this version as they are at this moment, of those among about a hundred tasks that are
        still untouched."""
        include = ("id", "predictions", "total_annotations", "cancelled_annotations")
        query = chosen(task_ids)
        page = self._patience(
            lambda: self._client.tasks(
                self._project_id, page_size=len(task_ids), include=include, query=query, everything=True
            )
        )
        return {
            row["id"]: [one for one in row["predictions"] if one["model_version"] == version]
            for row in page.tasks
            if not row["total_annotations"] and not row["cancelled_annotations"]
        }

    def _page(self, last: int, size: int, include: Sequence[str]) -> TaskPage:
        query = query_of([after(last), *untouched()])
        return self._patience(
            lambda: self._client.tasks(self._project_id, page_size=size, include=include, query=query, everything=True)
        )


def _names(row: Row) -> set[str]:
    return {name.strip() for name in str(row.get("predictions_model_versions") or "").split(",")}

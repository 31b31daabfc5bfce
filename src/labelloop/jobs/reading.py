"""The tasks of a job, page by page, each page taken so that no other worker of the same job has its tasks.

Pages are read by the ids of tasks ("the first 500 after 1234"), never by page number: what we store ourselves, what
others delete and what is imported meanwhile moves page numbers, and cannot move ids. A page that was read is taken
under the number after the one that was the newest before the reading began; who finds that number gone was slower than
another worker, and reads again behind the other's page. So workers need no lock while they wait for Label Studio, and
none waits for another.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from labelloop.core.tasks import Task
from labelloop.jobs.delivery import LOOK_AT, predictions_of, rows_of
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import after, chosen, query_of, without_version
from labelloop.store.jobs import Job
from labelloop.store.pages import Page, Pages


class Taken(msgspec.Struct, frozen=True):
    """A page in our hands and its tasks, less `skipped` that need nothing any more. `earlier` are, by task, predictions
    of this version that the job is to replace, as Label Studio lists them."""

    page: Page
    tasks: tuple[Task, ...]
    skipped: int = 0
    earlier: Mapping[int, Sequence[Mapping[str, Any]]] = {}


class Reading:
    """Takes the next page of a job; used by one thread. `expect` is told how many tasks the job has."""

    def __init__(
        self, job: Job, *, client: Client, pages: Pages, patience: Patience, expect: Callable[[int], None]
    ) -> None:
        self._job = job
        self._client = client
        self._pages = pages
        self._patience = patience
        self._expect = expect
        self._left: deque[Page] = deque()
        self._reads_all = not job.options.only_missing or self._is_part_of_another_version()

    def again(self, pages: Sequence[Page]) -> None:
        """Read these before any other: their tasks were taken by a worker that is gone. While nobody calls `next`."""
        self._left.extend(pages)

    def next(self, size: int) -> Taken | None:
        """A page of at most `size` tasks; None at the end."""
        if self._left:
            return self._read_again(self._left.popleft())
        return self._read_failed() if self._job.only_failed else self._read_listing(size)

    def _read_listing(self, size: int) -> Taken | None:
        options, last = self._job.options, 0
        while True:
            mark = self._pages.mark()
            last = max(last, mark.cursor)
            wanted = size if options.limit is None else min(size, options.limit - mark.planned)
            if wanted <= 0:
                return None
            conditions = [after(last)] + ([] if self._reads_all else [without_version(self._job.version)])
            query = query_of(conditions, filters=options.filters)
            rows, total = self._rows(query, size=wanted, everything=self._reads_all)
            if not rows:
                return None
            expected = mark.planned + total
            self._expect(expected if options.limit is None else min(expected, options.limit))
            beyond = max(row["id"] for row in rows)
            if self._reads_all and options.only_missing:
                rows = self._missing(rows)
            tasks = self._tasks_of(rows)
            if not tasks:
                last = beyond
                continue
            page = self._pages.take(_ids_of(tasks), mark=mark, cursor=beyond, replaces=self._replaces_of(rows))
            if page is not None:
                return Taken(page, tasks, earlier=self._earlier(rows))

    def _read_failed(self) -> Taken | None:
        while True:
            mark = self._pages.mark()
            wanted = self._pages.again(limit=LOOK_AT)
            if not wanted:
                return None
            rows = self._chosen(wanted)
            page = self._pages.take(wanted, mark=mark, cursor=None, replaces=self._replaces_of(rows))
            if page is not None:
                return self._taken(page, rows)

    def _read_again(self, page: Page) -> Taken:
        parts = [page.task_ids[start : start + LOOK_AT] for start in range(0, len(page.task_ids), LOOK_AT)]
        return self._taken(page, [row for part in parts for row in self._chosen(part)])

    def _taken(self, page: Page, rows: Sequence[dict[str, Any]]) -> Taken:
        tasks = self._tasks_of(self._missing(rows) if self._job.options.only_missing else rows)
        return Taken(page, tasks, len(page.task_ids) - len(tasks), self._earlier(rows))

    def _chosen(self, task_ids: Sequence[int]) -> list[dict[str, Any]]:
        return self._rows(chosen(task_ids), size=LOOK_AT, everything=True)[0]

    def _rows(self, query: Mapping[str, Any], *, size: int, everything: bool) -> tuple[list[dict[str, Any]], int]:
        include = ("id", "data", "predictions") if everything else ("id", "data")
        page = self._patience(
            lambda: self._client.tasks(
                self._job.project_id, page_size=size, include=include, query=query, everything=everything
            )
        )
        return list(page.tasks), page.total

    def _missing(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        return [row for row in rows if not predictions_of(row, self._job.version)]

    def _tasks_of(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Task, ...]:
        return tuple(Task(row["id"], row["data"], self._job.project_id) for row in rows)

    def _replaces_of(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
        return {task: [one["id"] for one in old] for task, old in self._earlier(rows).items()}

    def _earlier(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, list[Mapping[str, Any]]]:
        if self._job.options.only_missing:
            return {}
        return {row["id"]: old for row in rows if (old := rows_of(row, self._job.version))}

    def _is_part_of_another_version(self) -> bool:
        """Then Label Studio's filter would take a task with the other version for one with ours (see filters)."""
        stored = self._patience(lambda: self._client.model_versions(self._job.project_id))
        names = [row.model_version or "" for row in stored]
        return any(self._job.version in name and name != self._job.version for name in names)


def _ids_of(tasks: Sequence[Task]) -> list[int]:
    return [task.id or 0 for task in tasks]

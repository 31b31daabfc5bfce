"""Pre-annotate a project, page by page: while one page is stored, the next is predicted and the one after it is read.

Pages are read by the ids of tasks ("the first 500 after 1234"), never by page number: what we store ourselves, what
others delete and what is imported meanwhile moves page numbers, and cannot move ids. Nothing is held but the pages in
work, so memory does not grow with the project. `delivery` says why each prediction arrives exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import msgspec

from labelloop.core.regions import Prediction
from labelloop.core.tasks import Task
from labelloop.jobs.delivery import LOOK_AT, Delivery, predictions_of
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import after, chosen, query_of, without_version
from labelloop.labelstudio.wire import encode_prediction
from labelloop.serving.projects import View
from labelloop.store.jobs import Job
from labelloop.store.pages import Failed, Page, Pages

PAGE_S = 5.0
"""A page is as large as what is predicted in this time: a kill costs about this much work, and people see progress."""
LONGEST_PAGE_S = 30.0
STORING = 0.1
"""Pages grow, up to LONGEST_PAGE_S, until storing one takes at most this part of predicting it: with each import Label
Studio counts the predictions of the whole project anew, and in a large project that costs seconds, whatever is sent."""
SMALLEST_PAGE = 50
PASSING = frozenset({"media-unreachable", "media-timeout", "media-forbidden", "deadline-exceeded", "overloaded"})
"""Failures that may be over in a moment: Label Studio also hands out the pictures."""
_PAUSES_S = (1.0, 5.0)

Predict = Callable[[Sequence[Task]], Sequence[Prediction]]


class _Batch(msgspec.Struct, frozen=True):
    """Tasks as they were read. `cursor` and `replaces` as in store/pages; `skipped` need nothing any more."""

    tasks: tuple[Task, ...] = ()
    cursor: int | None = None
    replaces: dict[int, list[int]] = {}
    skipped: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tasks or self.skipped)


class Preannotation:
    """One job in the hands of one worker. Call `advance` until it says False, then `close`, which closes `client` too.

    `predict` answers one Prediction per task, in order. `one_by_one`: tasks have films, so each is a page of its own,
    and `advance` takes as long as its film. Errors are LabelloopErrors: the job cannot go on.
    """

    def __init__(
        self,
        job: Job,
        *,
        client: Client,
        pages: Pages,
        view: View,
        predict: Predict,
        patience: Patience,
        expect: Callable[[int], None],
        tell: Callable[[str, str], None],
        import_size: int,
        settle_s: float,
        one_by_one: bool = False,
    ) -> None:
        self._job = job
        self._client = client
        self._pages = pages
        self._view = view
        self._predict = predict
        self._patience = patience
        self._expect = expect
        self._smallest = 1 if one_by_one else SMALLEST_PAGE
        self._import_size = 1 if one_by_one else import_size
        self._size = min(self._smallest, self._import_size)
        self._storing_s = 0.0
        self._delivery = Delivery(
            client,
            pages,
            project_id=job.project_id,
            version=job.version,
            patience=patience,
            settle_s=settle_s,
            tell=tell,
        )
        self._planned = pages.planned()
        self._reads_all = not job.options.only_missing or self._is_part_of_another_version()
        self._threads = ThreadPoolExecutor(2, thread_name_prefix=f"job-{job.id}")
        self._waiting = pages.unfinished()
        self._reading = self._threads.submit(self._read, 0 if job.only_failed else pages.cursor())
        self._ahead: Future[Page | None] = self._threads.submit(self._prepare)

    def advance(self) -> bool:
        """Store one page. False when nothing is left to do."""
        if self._waiting:
            self._deliver(self._waiting.pop(0))
            return True
        page = self._ahead.result()
        if page is None:
            self._delivery.clear_doubts()
            return False
        self._ahead = self._threads.submit(self._prepare)
        self._deliver(page)
        return True

    def close(self) -> None:
        """Let go. What is being predicted is finished first, and kept if the job is still ours."""
        self._patience.end()
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _deliver(self, page: Page) -> None:
        begun = time.perf_counter()
        self._delivery.deliver(page)
        self._storing_s = time.perf_counter() - begun

    # --- predicting ---------------------------------------------------------------------------------------

    def _prepare(self) -> Page | None:
        """The next page, predicted and kept; None at the end."""
        batch = self._reading.result()
        if not batch:
            return None
        last = batch.cursor if batch.cursor is not None else max(_ids_of(batch))
        self._reading = self._threads.submit(self._read, last)
        begun = time.perf_counter()
        predictions = self._predict_patiently(batch.tasks)
        rate = len(batch.tasks) / max(time.perf_counter() - begun, 1e-6)
        page_s = min(max(PAGE_S, self._storing_s / STORING), LONGEST_PAGE_S)
        self._size = min(max(int(rate * page_s), self._smallest), self._import_size)
        pairs = [(task.id or 0, found) for task, found in zip(batch.tasks, predictions, strict=True)]
        return self._pages.add(
            _ids_of(batch),
            [self._item(task, found) for task, found in pairs if found.error is None],
            [Failed(task, found.error.code, found.error.message) for task, found in pairs if found.error is not None],
            cursor=batch.cursor,
            replaces=batch.replaces,
            skipped=len(batch.skipped),
        )

    def _item(self, task_id: int, prediction: Prediction) -> dict[str, Any]:
        return {"task": task_id} | encode_prediction(prediction, self._view.label_map, task_id=task_id)

    def _predict_patiently(self, tasks: Sequence[Task]) -> list[Prediction]:
        """Failures that may pass are tried again, after Label Studio is seen to answer; as long as that helps."""
        done = list(self._predict(tasks)) if tasks else []
        for pause_s in _PAUSES_S:
            again = [number for number, one in enumerate(done) if one.error and one.error.code in PASSING]
            if not again:
                break
            self._patience(lambda: self._client.project(self._job.project_id))
            self._patience.sleep(pause_s)
            for number, one in zip(again, self._predict([tasks[number] for number in again]), strict=True):
                done[number] = one
            if all(done[number].error for number in again):
                break
        return done

    # --- reading ------------------------------------------------------------------------------------------

    def _read(self, last: int) -> _Batch:
        """Tasks after the id `last`; an empty batch at the end."""
        return self._read_failed(last) if self._job.only_failed else self._read_listing(last)

    def _read_listing(self, last: int) -> _Batch:
        options = self._job.options
        while True:
            size = self._size if options.limit is None else min(self._size, options.limit - self._planned)
            if size <= 0:
                return _Batch()
            conditions = [after(last)] + ([] if self._reads_all else [without_version(self._job.version)])
            query = query_of(conditions, filters=options.filters)
            rows, total = self._rows(query, size=size, everything=self._reads_all)
            if not rows:
                return _Batch()
            expected = self._planned + total
            self._expect(expected if options.limit is None else min(expected, options.limit))
            last = max(row["id"] for row in rows)
            if self._reads_all and options.only_missing:
                rows = [row for row in rows if not predictions_of(row, self._job.version)]
            if rows:
                self._planned += len(rows)
                return _Batch(self._tasks_of(rows), last, self._replaces_of(rows))

    def _read_failed(self, last: int) -> _Batch:
        wanted = self._pages.again(after=last, limit=LOOK_AT)
        if not wanted:
            return _Batch()
        rows, _ = self._rows(chosen(wanted), size=LOOK_AT, everything=True)
        if self._job.options.only_missing:
            rows = [row for row in rows if not predictions_of(row, self._job.version)]
        tasks = self._tasks_of(rows)
        left = {task.id for task in tasks}
        skipped = tuple(task for task in wanted if task not in left)
        return _Batch(tasks, None, self._replaces_of(rows), skipped)

    def _rows(self, query: Mapping[str, Any], *, size: int, everything: bool) -> tuple[list[dict[str, Any]], int]:
        include = ("id", "data", "predictions") if everything else ("id", "data")
        page = self._patience(
            lambda: self._client.tasks(
                self._job.project_id, page_size=size, include=include, query=query, everything=everything
            )
        )
        return list(page.tasks), page.total

    def _tasks_of(self, rows: Sequence[Mapping[str, Any]]) -> tuple[Task, ...]:
        return tuple(Task(row["id"], row["data"], self._job.project_id) for row in rows)

    def _replaces_of(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, list[int]]:
        if self._job.options.only_missing:
            return {}
        return {row["id"]: old for row in rows if (old := predictions_of(row, self._job.version))}

    def _is_part_of_another_version(self) -> bool:
        """Then Label Studio's filter would take a task with the other version for one with ours (see filters)."""
        stored = self._patience(lambda: self._client.model_versions(self._job.project_id))
        names = [row.model_version or "" for row in stored]
        return any(self._job.version in name and name != self._job.version for name in names)


def _ids_of(batch: _Batch) -> list[int]:
    return [*(task.id or 0 for task in batch.tasks), *batch.skipped]

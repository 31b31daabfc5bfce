"""Pre-annotate a project, page by page: while pages are stored, the next is predicted and the one after it is read.

Nothing is held but the pages in work, so memory does not grow with the project. `reading` says how several workers
share one job, `delivery` why each prediction arrives exactly once.

Two sizes: a page is what is predicted at a time, and what a kill costs; an import is some pages together, because each
costs Label Studio as much time as the project is large.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from labelloop.core.errors import LabelStudioError, LabelStudioRejected, LabelStudioUnreachable
from labelloop.core.regions import Prediction
from labelloop.core.tasks import Task
from labelloop.jobs.backlog import Backlog
from labelloop.jobs.delivery import Delivery
from labelloop.jobs.patience import Patience
from labelloop.jobs.reading import Reading, Taken
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.wire import encode_prediction
from labelloop.serving.projects import View
from labelloop.store.jobs import Job
from labelloop.store.pages import Failed, Page, Pages

PAGE_S = 5.0
"""A page is as large as what is predicted in this time: a kill costs about this much work."""
STORING = 0.05
"""Pages are gathered, for LONGEST_WAIT_S at most, until an import as long as the one before it would take this part of
the time: with each import Label Studio counts the predictions of all tasks that have some. That took it 1.7 ms of a
processor for each of them, beside 1.4 ms for each prediction that is new (SQLite): in 5,000 tasks 5 ms a prediction in
imports of 1,000, and 7 ms in imports of 500."""
LONGEST_WAIT_S = 60.0
_LARGEST_PAGE = 1000
SMALLEST_PAGE = 50
PASSING = frozenset({"media-unreachable", "media-timeout", "media-forbidden", "deadline-exceeded", "overloaded"})
"""Failures that may be over in a moment: Label Studio also hands out the pictures."""
_PAUSES_S = (1.0, 5.0)
_WAIT_S = 0.5
"""How often it is looked whether the last pages of other workers are stored."""

Predict = Callable[[Sequence[Task]], Sequence[Prediction]]
Remember = Callable[[Sequence[Task], Sequence[Prediction]], None]


class Preannotation:
    """One job in the hands of one worker. Call `advance` until it says False, then `close`, which closes `client` too.

    `predict` answers one Prediction per task, in order; `remember` is told what it answered. A `guest` helps while
    there are tasks that nobody has taken; the owner of the job stays until all pages are stored, and does what dead
    workers left behind. `one_by_one`: tasks have films, so each is a page of its own, and `advance` takes as long as
    its film. `select`: the project names no predictions that annotators get, so it shall name these. Errors are
    LabelloopErrors: the job cannot go on.
    """

    def __init__(
        self,
        job: Job,
        *,
        client: Client,
        pages: Pages,
        view: View,
        predict: Predict,
        remember: Remember,
        patience: Patience,
        expect: Callable[[int], None],
        tell: Callable[[str, str], None],
        import_size: int,
        settle_s: float,
        guest: bool = False,
        one_by_one: bool = False,
        select: bool = False,
    ) -> None:
        self._job = job
        self._select = select
        self._guest = guest
        self._client = client
        self._pages = pages
        self._view = view
        self._predict = predict
        self._remember = remember
        self._patience = patience
        self._tell = tell
        self._smallest = 1 if one_by_one else SMALLEST_PAGE
        self._import_size = 1 if one_by_one else import_size
        self._largest = min(_LARGEST_PAGE, self._import_size)
        self._size = min(self._smallest, self._largest)
        self._due_s = 0.0
        self._closing = False
        self._delivery = Delivery(
            client,
            pages,
            project_id=job.project_id,
            version=job.version,
            patience=patience,
            settle_s=settle_s,
            import_size=self._import_size,
            tell=tell,
        )
        self._tasks = Reading(job, client=client, pages=pages, patience=patience, expect=expect)
        self._threads = ThreadPoolExecutor(3, thread_name_prefix=f"job-{job.id}")
        left = [] if guest else pages.take_over()[0]
        self._begin(left)

    def _begin(self, left: Sequence[Page]) -> None:
        """Start the flow of pages with those that dead workers left behind."""
        self._waiting = [page for page in left if page.state != "taken"]
        self._tasks.again([page for page in left if page.state == "taken"])
        self._backlog = Backlog(self._import_size)
        self._threads.submit(self._predict_all, self._backlog)

    def advance(self) -> bool:
        """Store some pages. False when nothing is left to do."""
        waiting, self._waiting = self._waiting, []
        pages = waiting or self._backlog.take(due_s=self._due_s)
        if not pages:
            return not self._guest and self._look_after_others()
        begun_s = time.monotonic()
        self._delivery.deliver(pages)
        storing_s = time.monotonic() - begun_s
        self._due_s = time.monotonic() + min(storing_s / STORING, LONGEST_WAIT_S)
        self._select = self._select and not self._selected()
        return True

    def _selected(self) -> bool:
        """Let the project name these predictions, or annotators open empty tasks beside all that is stored: a project
        that was never connected names none. Whether that is settled; what goes wrong costs no prediction."""
        number, version = self._job.project_id, self._job.version
        try:
            if not self._client.project(number).model_version:  # nobody has chosen meanwhile
                self._client.set_project(number, model_version=version)
                self._tell("info", f"The project named no predictions for annotators; now it names {version}.")
        except LabelStudioUnreachable:
            return False
        except LabelStudioError as error:
            if isinstance(error, LabelStudioRejected) and error.status == 400:
                return False  # nothing is stored yet: all of this page failed, and the next may bring some
            self._tell("warning", f"Annotators do not get these predictions by themselves: {error}")
        return True

    def _look_after_others(self) -> bool:
        """All tasks are taken: go on with pages whose worker is gone, wait for the others, then end."""
        left, others = self._pages.take_over()
        if left:
            self._tell("info", f"{len(left)} pages of a worker that is gone are done again.")
            self._begin(left)
        elif others:
            self._patience.sleep(_WAIT_S)
        else:
            self._delivery.clear_doubts()
            return False
        return True

    def close(self) -> None:
        """Let go. What is being predicted is finished first, and kept if the job is still ours."""
        self._closing = True
        self._patience.end()
        self._backlog.close()
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    # --- predicting ---------------------------------------------------------------------------------------

    def _predict_all(self, backlog: Backlog) -> None:
        """Page after page, until no task is left: each is kept beside the prediction of the next one, and that is read
        meanwhile."""
        try:
            kept = _done()
            reading = self._threads.submit(self._tasks.next, self._size)
            while (taken := reading.result()) is not None and not self._closing:
                reading = self._threads.submit(self._tasks.next, self._size)
                predictions = self._predict_page(taken.tasks)
                kept.result()
                kept = self._beside(taken, predictions, backlog)
            kept.result()
        except BaseException as error:
            backlog.end(error)
        else:
            backlog.end()

    def _predict_page(self, tasks: Sequence[Task]) -> list[Prediction]:
        begun_s = time.monotonic()
        predictions = self._predict_patiently(tasks)
        if tasks:
            rate = len(tasks) / max(time.monotonic() - begun_s, 1e-6)
            self._size = min(max(int(rate * PAGE_S), self._smallest), self._largest)
        return predictions

    def _beside(self, taken: Taken, predictions: Sequence[Prediction], backlog: Backlog) -> Future[None]:
        try:
            return self._threads.submit(self._keep, taken, predictions, backlog)
        except RuntimeError:  # `close` waits for us and takes nothing new
            self._keep(taken, predictions, backlog)
            return _done()

    def _keep(self, taken: Taken, predictions: Sequence[Prediction], backlog: Backlog) -> None:
        self._remember(taken.tasks, predictions)
        pairs = [(task.id or 0, found) for task, found in zip(taken.tasks, predictions, strict=True)]
        items = [self._item(task, found) for task, found in pairs if found.error is None]
        new = [item for item in items if not _is_there(item, taken.earlier.get(item["task"], ()))]
        there = len(items) - len(new)
        if there:
            self._tell("info", f"Page {taken.page.number}: {there} predictions say what is there already.")
        failed = [
            Failed(task, found.error.code, found.error.message) for task, found in pairs if found.error is not None
        ]
        backlog.add(self._pages.predicted(taken.page, new, failed, skipped=taken.skipped + there))

    def _item(self, task_id: int, prediction: Prediction) -> dict[str, Any]:
        item = {"task": task_id} | encode_prediction(prediction, self._view.label_map, task_id=task_id)
        # a hosted model may learn while the job runs, and call itself something else from then on
        return item | {"model_version": self._job.version}

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


def _done() -> Future[None]:
    done: Future[None] = Future()
    done.set_result(None)
    return done


def _is_there(item: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> bool:
    """Whether Label Studio has this prediction already, and it alone."""
    return len(earlier) == 1 and all(earlier[0].get(name) == item[name] for name in ("result", "score"))

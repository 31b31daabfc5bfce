"""Pre-annotate a project, page by page: while one page is stored, the next is predicted and the one after it is read.

Nothing is held but the pages in work, so memory does not grow with the project. `reading` says how several workers
share one job, `delivery` why each prediction arrives exactly once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from typing import Any

from labelloop.core.regions import Prediction
from labelloop.core.tasks import Task
from labelloop.jobs.delivery import Delivery
from labelloop.jobs.patience import Interrupted, Patience
from labelloop.jobs.reading import Reading, Taken
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.wire import encode_prediction
from labelloop.serving.projects import View
from labelloop.store.jobs import Job
from labelloop.store.pages import Failed, Page, Pages

PAGE_S = 5.0
"""A page is as large as what is predicted in this time: a kill costs about this much work, and people see progress."""
LONGEST_PAGE_S = 60.0
STORING = 0.05
"""Pages grow, up to LONGEST_PAGE_S, until storing one takes at most this part of predicting it: with each import Label
Studio counts the predictions of the whole project anew, and in a large project that costs seconds, whatever is sent. In
5,000 tasks it took 4 ms of a processor a prediction in imports of 1,000, and 12 ms in imports of 250."""
SMALLEST_PAGE = 50
PASSING = frozenset({"media-unreachable", "media-timeout", "media-forbidden", "deadline-exceeded", "overloaded"})
"""Failures that may be over in a moment: Label Studio also hands out the pictures."""
_PAUSES_S = (1.0, 5.0)
_WAIT_S = 0.5
"""How often it is looked whether the last pages of other workers are stored."""

Predict = Callable[[Sequence[Task]], Sequence[Prediction]]


class Preannotation:
    """One job in the hands of one worker. Call `advance` until it says False, then `close`, which closes `client` too.

    `predict` answers one Prediction per task, in order. A `guest` helps while there are tasks that nobody has taken;
    the owner of the job stays until all pages are stored, and does what dead workers left behind. `one_by_one`: tasks
    have films, so each is a page of its own, and `advance` takes as long as its film. Errors are LabelloopErrors: the
    job cannot go on.
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
        guest: bool = False,
        one_by_one: bool = False,
    ) -> None:
        self._job = job
        self._guest = guest
        self._client = client
        self._pages = pages
        self._view = view
        self._predict = predict
        self._patience = patience
        self._tell = tell
        self._smallest = 1 if one_by_one else SMALLEST_PAGE
        self._import_size = 1 if one_by_one else import_size
        self._size = min(self._smallest, self._import_size)
        self._storing_s = 0.0
        self._closing = False
        self._delivery = Delivery(
            client,
            pages,
            project_id=job.project_id,
            version=job.version,
            patience=patience,
            settle_s=settle_s,
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
        self._reading = self._threads.submit(self._tasks.next, self._size)
        self._ahead: Future[Future[Page] | None] = self._threads.submit(self._prepare)

    def advance(self) -> bool:
        """Store one page. False when nothing is left to do."""
        if self._waiting:
            self._deliver(self._waiting.pop(0))
            return True
        try:
            kept = self._ahead.result()
            if kept is None:
                return not self._guest and self._look_after_others()
            self._ahead = self._threads.submit(self._prepare)
            page = kept.result()
        except (RuntimeError, CancelledError) as error:
            if self._closing:  # in another thread: this process ends, and the job does not
                raise Interrupted from error
            raise
        self._deliver(page)
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
        self._threads.shutdown(cancel_futures=True)
        self._client.close()

    def _deliver(self, page: Page) -> None:
        begun = time.perf_counter()
        self._delivery.deliver(page)
        self._storing_s = time.perf_counter() - begun

    # --- predicting ---------------------------------------------------------------------------------------

    def _prepare(self) -> Future[Page] | None:
        """The next page, predicted, and kept beside the prediction of the one after it; None at the end."""
        taken = self._reading.result()
        if taken is None:
            return None
        self._reading = self._threads.submit(self._tasks.next, self._size)
        begun = time.perf_counter()
        predictions = self._predict_patiently(taken.tasks)
        if taken.tasks:
            self._resize(len(taken.tasks) / max(time.perf_counter() - begun, 1e-6))
        try:
            return self._threads.submit(self._keep, taken, predictions)
        except RuntimeError:  # `close` waits for us and takes nothing new
            kept: Future[Page] = Future()
            kept.set_result(self._keep(taken, predictions))
            return kept

    def _keep(self, taken: Taken, predictions: Sequence[Prediction]) -> Page:
        pairs = [(task.id or 0, found) for task, found in zip(taken.tasks, predictions, strict=True)]
        items = [self._item(task, found) for task, found in pairs if found.error is None]
        new = [item for item in items if not _is_there(item, taken.earlier.get(item["task"], ()))]
        there = len(items) - len(new)
        if there:
            self._tell("info", f"Page {taken.page.number}: {there} predictions say what is there already.")
        return self._pages.predicted(
            taken.page,
            new,
            [Failed(task, found.error.code, found.error.message) for task, found in pairs if found.error is not None],
            skipped=taken.skipped + there,
        )

    def _resize(self, rate: float) -> None:
        """`rate` is in tasks per second."""
        page_s = min(max(PAGE_S, self._storing_s / STORING), LONGEST_PAGE_S)
        self._size = min(max(int(rate * page_s), self._smallest), self._import_size)

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


def _is_there(item: Mapping[str, Any], earlier: Sequence[Mapping[str, Any]]) -> bool:
    """Whether Label Studio has this prediction already, and it alone."""
    return len(earlier) == 1 and all(earlier[0].get(name) == item[name] for name in ("result", "score"))

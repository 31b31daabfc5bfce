"""Exactly once into Label Studio, whatever happens to requests and answers on the way."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from starlette.responses import Response

from jobs.desk import IMPORT, Desk, refusal, to_the_end
from labelloop.core.errors import JobLost, LabelloopError, LabelStudioRejected
from labelloop.jobs.delivery import Delivery
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.store.jobs import Job
from labelloop.store.pages import Page, Pages, Progress

Answer = Callable[[], Response]


def on_import(trouble: Callable[[int, Answer], Response]) -> Callable[[Any, str, Answer], Response]:
    """`trouble(n, answer)` for the n-th import, counted from 1."""
    count = 0

    def around(_ask: Any, path: str, answer: Answer) -> Response:
        nonlocal count
        if not path.endswith(IMPORT):
            return answer()
        count += 1
        return trouble(count, answer)

    return around


def lost_answer(number: int, answer: Answer) -> Response:
    if number == 2:
        answer()
        return refusal(504)
    return answer()


def refused_once(status: int) -> Callable[[int, Answer], Response]:
    return lambda number, answer: refusal(status) if number == 2 else answer()


@pytest.mark.parametrize(
    "trouble",
    [lost_answer, *(refused_once(status) for status in (401, 429, 500, 502, 503))],
    ids=["stored, answer lost", "401", "429", "500", "502", "503"],
)
def test_each_task_gets_one_prediction(desk: Desk, trouble: Callable[[int, Answer], Response]) -> None:
    desk.add_tasks(35)
    desk.studio.around = on_import(trouble)
    job = desk.job()
    assert desk.run(job).state == "done"
    assert desk.versions() == [[desk.version]] * 35
    assert desk.progress(job).stored == 35
    assert "Trying again" in desk.log(job)
    assert "answers again" in desk.log(job)


def test_an_import_that_is_still_at_work_when_we_ask_is_waited_for(desk: Desk) -> None:
    desk.add_tasks(10)
    late: list[threading.Timer] = []

    def slow(number: int, answer: Answer) -> Response:
        if number > 1:
            return answer()
        late.append(threading.Timer(0.6, answer))
        late[0].start()
        return refusal(504)

    desk.studio.around = on_import(slow)
    desk.settings = desk.settings.model_copy(update={"import_settle_s": 5.0})
    desk.run(desk.job())
    late[0].join()
    assert desk.versions() == [[desk.version]] * 10
    assert desk.imports() == 1, "what arrived late is not sent again"


def test_a_double_of_an_import_slower_than_we_wait_is_deleted_at_the_end(desk: Desk) -> None:
    desk.add_tasks(30)
    late: list[Answer] = []

    def slower(number: int, answer: Answer) -> Response:
        if number == 1:
            late.append(answer)
            return refusal(504)
        if late and number == 3:
            late.pop()()  # the first one arrives now, after it was given up and sent again
        return answer()

    desk.studio.around = on_import(slower)
    job = desk.job()
    with desk.open(job) as work:
        assert work.advance()
        assert work.advance()
        assert max(map(len, desk.versions())) == 2, "the case is not made"
        to_the_end(work)
    assert desk.versions() == [[desk.version]] * 30
    assert "a double" in desk.log(job)


def test_deleted_tasks_are_left_out_and_the_rest_is_sent(desk: Desk) -> None:
    tasks = desk.add_tasks(20)

    def delete_two(number: int, answer: Answer) -> Response:
        if number == 1:
            desk.delete(tasks[0], tasks[7])
        return answer()

    desk.studio.around = on_import(delete_two)
    job = desk.job()
    desk.run(job)
    assert desk.versions() == [[desk.version]] * 18
    found = desk.progress(job)
    assert (found.stored, found.failed, found.skipped) == (18, 0, 2)


def test_what_label_studio_drops_is_found_and_named(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    tasks = desk.add_tasks(20)
    bad = {tasks[3], tasks[14]}
    spoil(monkeypatch, lambda item: item["task"] in bad)
    job = desk.job()
    desk.run(job)
    assert [(failure.task_id, failure.code) for failure in desk.failures(job)] == [
        (task, "prediction-invalid") for task in sorted(bad)
    ]
    assert desk.progress(job).stored == 18
    assert "dropped 1 predictions" in desk.log(job)


@pytest.mark.parametrize("status", [400, 413], ids=["strict validation", "a proxy's limit"])
def test_a_refused_import_is_narrowed_down_to_the_item_to_blame(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    tasks = desk.add_tasks(10)
    spoil(monkeypatch, lambda item: item["task"] == tasks[6])

    def strict(ask: Any, path: str, answer: Answer) -> Response:
        bad = path.endswith(IMPORT) and any(item["score"] == 7 for item in json.loads(ask.raw))
        return refusal(status, "score: not in [0, 1]") if bad else answer()

    desk.studio.around = strict
    job = desk.job()
    desk.run(job)
    (failure,) = desk.failures(job)
    assert (failure.task_id, failure.code) == (tasks[6], "prediction-refused")
    assert "not in [0, 1]" in failure.message or status == 413
    assert desk.progress(job).stored == 9
    assert sum(map(len, desk.versions())) == 9


def spoil(monkeypatch: pytest.MonkeyPatch, chosen: Callable[[dict[str, Any]], bool]) -> None:
    """Give chosen items a score that Label Studio refuses."""
    real = Pages.predicted

    def predicted(self: Pages, page: Any, items: Any, *rest: Any, **named: Any) -> Any:
        return real(self, page, [item | {"score": 7} if chosen(item) else item for item in items], *rest, **named)

    monkeypatch.setattr(Pages, "predicted", predicted)


def test_a_project_that_is_gone_ends_the_job_with_the_reason(desk: Desk) -> None:
    desk.add_tasks(5)
    desk.studio.around = on_import(lambda _number, _answer: refusal(404, "No Project matches the given query."))
    with desk.open(desk.job()) as work, pytest.raises(LabelStudioRejected, match="No Project"):
        work.advance()


def test_patience_ends(desk: Desk) -> None:
    desk.add_tasks(5)
    desk.settings = desk.settings.model_copy(update={"patience_s": 0.2})
    desk.studio.around = on_import(lambda _number, _answer: refusal(503))
    begun = time.monotonic()
    with desk.open(desk.job()) as work, pytest.raises(LabelloopError, match="503"):
        work.advance()
    assert time.monotonic() - begun < 10
    assert desk.imports() < 6, "it spins"


# --- several pages in one import ------------------------------------------------------------------------------


@contextmanager
def ready(desk: Desk, *, tasks: int = 40, import_size: int = 100) -> Iterator[tuple[Delivery, list[Page], Job]]:
    """Predicted tasks in pages of ten, and what brings them into Label Studio."""
    added = desk.add_tasks(tasks)
    job = desk.job()
    worker = desk.store.workers.register()
    assert desk.store.jobs.claim(desk.store.jobs.get(job.id), worker)
    pages = Pages(desk.store.engine, job.id, owner=worker, is_alive=desk.store.workers.is_alive)
    predicted = []
    for start in range(0, tasks, 10):
        part = added[start : start + 10]
        page = pages.take(part, mark=pages.mark(), cursor=part[-1], replaces={})
        assert page is not None
        items = [{"task": task, "result": [], "score": 0.5, "model_version": desk.version} for task in part]
        predicted.append(pages.predicted(page, items, ()))

    def tell(level: str, text: str) -> None:
        desk.store.jobs.tell(job.id, level, text)

    patience = Patience(20.0, check=lambda: None, tell=tell, first_s=0.05)
    with Client(desk.studio.url, desk.studio.token) as client:
        yield (
            Delivery(
                client,
                pages,
                project_id=desk.project,
                version=desk.version,
                patience=patience,
                settle_s=0.3,
                import_size=import_size,
                tell=tell,
            ),
            predicted,
            job,
        )


def test_pages_travel_together(desk: Desk) -> None:
    with ready(desk) as (delivery, pages, job):
        delivery.deliver(pages)
    assert desk.imports() == 1
    assert desk.versions() == [[desk.version]] * 40
    assert desk.progress(job) == Progress(stored=40)


def test_an_import_has_no_more_than_it_may(desk: Desk) -> None:
    with ready(desk, import_size=25) as (delivery, pages, _):
        delivery.deliver(pages)
    assert desk.imports() == 2
    assert desk.versions() == [[desk.version]] * 40


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(lambda n, answer: (answer(), refusal(504))[1] if n == 1 else answer(), id="stored, answer lost"),
        pytest.param(lambda n, answer: refusal(503) if n == 1 else answer(), id="not stored, 503"),
        pytest.param(lambda n, answer: refusal(413) if n == 1 else answer(), id="too large for a proxy"),
    ],
)
def test_each_task_of_pages_that_travel_together_gets_one_prediction(
    desk: Desk, trouble: Callable[[int, Answer], Response]
) -> None:
    desk.studio.around = on_import(trouble)
    with ready(desk) as (delivery, pages, job):
        delivery.deliver(pages)
        delivery.clear_doubts()
    assert desk.versions() == [[desk.version]] * 40
    assert desk.progress(job) == Progress(stored=40)


def test_an_import_that_a_proxy_refused_is_not_tried_as_large_again(desk: Desk) -> None:
    sizes = []

    def limited(ask: Any, path: str, answer: Answer) -> Response:
        if not path.endswith(IMPORT):
            return answer()
        sizes.append(len(json.loads(ask.raw)))
        return refusal(413) if sizes[-1] > 20 else answer()

    desk.studio.around = limited
    with ready(desk, tasks=80) as (delivery, pages, _):
        delivery.deliver(pages[:4])
        delivery.deliver(pages[4:])
    assert sizes == [40, 10, 10, 10, 10, 20, 20]


def test_one_task_that_is_gone_does_not_keep_its_neighbours(desk: Desk) -> None:
    with ready(desk) as (delivery, pages, job):
        desk.delete(desk.tasks[13])
        delivery.deliver(pages)
    assert desk.versions() == [[desk.version]] * 39
    assert desk.progress(job) == Progress(stored=39, skipped=1)


def test_what_is_dropped_from_pages_that_travel_together_is_found(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    bad: set[int] = set()
    spoil(monkeypatch, lambda item: item["task"] in bad or (len(bad) < 1 and bad.add(item["task"]) is None))
    with ready(desk) as (delivery, pages, job):
        delivery.deliver(pages)
    assert [(failure.task_id, failure.code) for failure in desk.failures(job)] == [(*bad, "prediction-invalid")]
    assert desk.progress(job) == Progress(stored=39, failed=1)
    assert sum(map(len, desk.versions())) == 39


def test_pages_of_another_worker_are_not_sent(desk: Desk) -> None:
    with ready(desk) as (delivery, pages, job):
        desk.store.workers.register()
        assert desk.store.jobs.claim(desk.store.jobs.get(job.id), "thief")
        with pytest.raises(JobLost):
            delivery.deliver(pages)
    assert desk.imports() == 0

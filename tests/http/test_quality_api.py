from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import msgspec
import pytest
from starlette.responses import Response
from starlette.routing import Router

from labelloop.core.errors import ShuttingDown
from labelloop.http.quality import QualityApi
from labelloop.jobs.quality_report import Report
from labelloop.labelstudio.client import Client
from labelloop.testing import FakeLabelStudio
from labelloop.testing.label_studio.exchange import Ask
from reference.reviewed_project import FIRST, REGIONS_OF_FIRST, SECOND, ReviewedProject
from reference.running_server import Backend, Start


@pytest.fixture
def reviewed(studio: FakeLabelStudio) -> Iterator[ReviewedProject]:
    with Client(studio.url, studio.token) as client:
        reviewed = ReviewedProject(client, studio.token, "reviewed")
        reviewed.people()
        yield reviewed
        reviewed.close()


@pytest.fixture
def backend(start: Start, studio: FakeLabelStudio) -> Backend:
    """A server that `labelloop connect` told about the Label Studio."""
    backend = start(models=())
    backend.parts.store.registry.save_connection(studio.url, studio.personal_access_token)
    backend.parts.origins.reload()
    return backend


def ask(backend: Backend, reviewed: ReviewedProject, **question: Any) -> httpx.Response:
    return backend.http.get(f"/api/projects/{reviewed.project_id}/quality", params=question)


def test_the_report_is_the_one_of_the_command(backend: Backend, reviewed: ReviewedProject) -> None:
    answer = ask(backend, reviewed)
    assert answer.status_code == 200, answer.text
    report = msgspec.json.decode(answer.content, type=Report, strict=True)
    assert report.versions[0].regions == REGIONS_OF_FIRST
    assert report.mistakes is None, "no model serves the project, and it shows none"
    assert reviewed.client.views(reviewed.project_id) == [], "asking changes nothing"


def test_what_serves_the_project_judges(start: Start, studio: FakeLabelStudio, reviewed: ReviewedProject) -> None:
    backend = start(label_studio_url=studio.url, label_studio_token=studio.token)
    report = ask(backend, reviewed).json()
    assert (report["mistakes"]["judge"], report["mistakes"]["compared"]) == ("cars@1", 4)


def test_questions(backend: Backend, reviewed: ReviewedProject) -> None:
    question = {"version": SECOND, "since": "2020-01-01", "overruled": "true", "sure": "0.9", "limit": "2"}
    report = ask(backend, reviewed, **question).json()
    assert [one["version"] for one in report["versions"]] == [SECOND]
    assert (report["mistakes"]["found"], len(report["mistakes"]["listed"])) == (3, 2)
    assert ask(backend, reviewed, version=FIRST, mistakes="false").json()["mistakes"] is None
    assert ask(backend, reviewed, since="2100-01-01").json()["annotations"] == 0


@pytest.mark.parametrize(
    ("question", "status", "code"),
    [
        ({"sure": "2"}, 400, "bad-request"),
        ({"sure": "nan"}, 400, "bad-request"),
        ({"limit": "many"}, 400, "bad-request"),
        ({"mistakes": "maybe"}, 400, "bad-request"),
        ({"versoin": "cars"}, 400, "bad-request"),
        ({"since": "yesterday"}, 400, "bad-filter"),
        ({"version": "cars@9"}, 404, "model-not-found"),
    ],
    ids=["too sure", "not a number", "no number", "neither true nor false", "misspelt", "no date", "no such version"],
)
def test_bad_questions(
    backend: Backend, reviewed: ReviewedProject, question: dict[str, str], status: int, code: str
) -> None:
    answer = ask(backend, reviewed, **question)
    assert (answer.status_code, answer.json()["error"]) == (status, code)


def test_trouble_with_label_studio_says_whose_it_is(
    backend: Backend, studio: FakeLabelStudio, reviewed: ReviewedProject, start: Start
) -> None:
    unknown = backend.http.get("/api/projects/4711/quality")
    assert (unknown.status_code, unknown.json()["error"]) == (404, "label-studio-rejected")
    assert backend.http.get(f"/api/projects/{2**63}/quality").status_code == 400
    studio.tokens.revoke_personal()
    refused = ask(backend, reviewed)
    assert (refused.status_code, refused.json()["error"]) == (502, "label-studio-auth")


def test_a_server_that_was_never_connected_says_so(start: Start) -> None:
    answer = start(models=()).http.get("/api/projects/1/quality")
    assert (answer.status_code, answer.json()["error"]) == (400, "settings")
    assert "labelloop connect 1" in answer.json()["hint"]


async def test_a_server_that_stops_ends_the_reading(studio: FakeLabelStudio, reviewed: ReviewedProject) -> None:
    api = QualityApi(lambda _project: (studio.url, studio.token), lambda _project: None)
    api.close()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Router(api.routes())), base_url="http://here") as caller:
        with pytest.raises(ShuttingDown):
            await caller.get(f"/api/projects/{reviewed.project_id}/quality")
    assert sum(path == "GET /api/tasks" for path in studio.paths()) == 1


def test_reading_blocks_nobody_is_shared_and_bounded(
    backend: Backend, studio: FakeLabelStudio, reviewed: ReviewedProject
) -> None:
    """While Label Studio takes its time: others are answered, the same question is not asked twice, a third waits."""
    gate, reading = threading.Event(), threading.Semaphore(0)

    def slowly(ask: Ask, path: str, answer: Callable[[], Response]) -> Response:
        if path == "/api/tasks":
            reading.release()
            gate.wait(60)
        return answer()

    studio.around = slowly
    with ThreadPoolExecutor(3) as people:
        try:
            same = [people.submit(ask, backend, reviewed) for _ in range(2)]
            assert reading.acquire(timeout=60)
            other = people.submit(ask, backend, reviewed, mistakes="false")
            assert reading.acquire(timeout=60)
            third = ask(backend, reviewed, limit="1")
            assert (third.status_code, third.json()["error"]) == (503, "overloaded")
            assert backend.http.get("/health").status_code == 200
        finally:
            gate.set()
        assert [one.result().status_code for one in (*same, other)] == [200, 200, 200]
    assert same[0].result().content == same[1].result().content
    assert sum(path == "GET /api/tasks" for path in studio.paths()) == 2

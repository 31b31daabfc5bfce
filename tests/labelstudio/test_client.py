"""The client against a real HTTP server: calls, pages, retries, and what each failure says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import msgspec
import pytest

from labelloop.core.errors import LabelloopError, LabelStudioAuthError, LabelStudioRejected, LabelStudioUnreachable
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import BadFilter, parse_filters
from labelloop.labelstudio.records import JwtSettings, Webhook
from labelloop.labelstudio.session import explain
from labelloop.labelstudio.tokens import Credentials
from labelloop.testing import FakeBackend, FakeLabelStudio

CONFIG = """<View><Image name="picture" value="$photo"/>
<RectangleLabels name="thing" toName="picture"><Label value="Car"/></RectangleLabels></View>"""
REGION = {
    "id": "r1", "from_name": "thing", "to_name": "picture", "type": "rectanglelabels", "original_width": 640,
    "original_height": 480, "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0, "rectanglelabels": ["Car"]},
}  # fmt: skip


@pytest.fixture(params=["", "/label-studio"], ids=["root", "sub-path"])
def studio(request: pytest.FixtureRequest) -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio(sub_path=request.param) as server:
        yield server


@pytest.fixture
def client(studio: FakeLabelStudio) -> Iterator[Client]:
    with Client(studio.url, studio.personal_access_token) as made:
        yield made


def test_server_and_user(studio: FakeLabelStudio, client: Client) -> None:
    assert client.version() == "1.23.2"
    assert client.health()
    assert client.is_at_api()
    assert client.whoami().email == "admin@example.com"
    assert client.set_jwt_settings(JwtSettings(legacy_api_tokens_enabled=False)).api_tokens_enabled
    assert not client.jwt_settings().legacy_api_tokens_enabled


def test_an_expired_access_token_is_replaced_in_the_middle_of_the_work(studio: FakeLabelStudio, client: Client) -> None:
    client.whoami()
    studio.advance(301)  # our own clock did not move, so only the 401 tells us
    assert client.whoami().id == 1
    assert studio.tokens.refreshes == 2


def test_projects_are_found_by_id_and_by_title(studio: FakeLabelStudio, client: Client) -> None:
    cells = client.create_project("Blood cells", CONFIG, sampling="Uniform sampling")
    seven = client.create_project("777", CONFIG)
    assert client.project(cells.id).sampling == "Uniform sampling"
    for asked in (cells.id, str(cells.id), "Blood cells", " blood CELLS "):
        assert client.find_project(asked).id == cells.id
    assert client.find_project("777").id == seven.id
    assert {row.id for row in client.projects()} == {cells.id, seven.id}
    with pytest.raises(LabelStudioRejected, match="Did you mean 'Blood cells'") as missing:
        client.find_project("Blod cells")
    assert missing.value.status == 404
    for number in ("²", "9" * 30):
        with pytest.raises(LabelStudioRejected, match="There is no project"):
            client.find_project(number)
    client.create_project("Blood cells", CONFIG)
    with pytest.raises(LabelStudioRejected, match=r"Give the number: \d, \d"):
        client.find_project("Blood cells")


def test_more_projects_than_one_page(studio: FakeLabelStudio, client: Client) -> None:
    for number in range(130):
        studio.add_project(f"project {number}", CONFIG)
    assert len(client.projects()) == 130


def test_upload_predict_and_read_back(client: Client, tmp_path: Path) -> None:
    project = client.create_project("cells", CONFIG)
    pictures = [tmp_path / f"my picture {number}.jpg" for number in range(53)]  # more than one request takes
    for picture in pictures:
        picture.write_bytes(picture.name.encode() + b"\r\n--\r\n\xff\x00")
    uploaded = client.upload_files(project.id, pictures)
    assert uploaded.task_count == len(uploaded.task_ids) == 53
    task = client.task(uploaded.task_ids[0])
    assert task["data"]["photo"].startswith(f"/data/upload/{project.id}/")
    assert client.probe_file(task["data"]["photo"], task_id=task["id"]) == 206
    wrong = {**REGION, "value": {**REGION["value"], "rectanglelabels": ["Bus"]}}
    items = [
        {"task": task_id, "result": [region], "score": 0.5, "model_version": "v1"}
        for task_id, region in zip(uploaded.task_ids, [REGION, wrong, REGION], strict=False)
    ]
    done = client.import_predictions(project.id, items)
    assert (done.sent, done.created, done.dropped) == (3, 2, 1)
    assert client.predictions(uploaded.task_ids[0])[0]["result"] == [REGION]
    assert client.predictions(uploaded.task_ids[1]) == []
    assert [(row.model_version, row.count) for row in client.model_versions(project.id)] == [("v1", 2)]
    assert client.set_project(project.id, model_version="v1").model_version == "v1"
    shown = client.next_task(project.id)
    assert shown is not None
    assert shown["predictions"][0]["model_version"] == "v1"
    assert client.delete_model_version(project.id, "v1") == 2
    assert client.project(project.id).model_version is None


def test_pages_of_tasks(studio: FakeLabelStudio, client: Client) -> None:
    project = studio.add_project("many", CONFIG)
    ids = studio.add_tasks(project, ({"photo": f"{number}.jpg"} for number in range(1050)))
    pages = list(client.task_pages(project, page_size=500, include=("id", "data")))
    assert [len(page.tasks) for page in pages] == [500, 500, 50]
    assert [task["id"] for page in pages for task in page.tasks] == ids
    assert list(client.task_pages(studio.add_project("empty", CONFIG))) == []
    with pytest.raises(LabelStudioRejected, match="Invalid page") as beyond:
        client.tasks(project, page=4, page_size=500)
    assert beyond.value.status == 404


def test_pages_end_quietly_when_tasks_disappear_meanwhile(studio: FakeLabelStudio, client: Client) -> None:
    project = studio.add_project("shrinking", CONFIG)
    ids = studio.add_tasks(project, ({"photo": "x"} for _ in range(20)))
    pages = client.task_pages(project, page_size=10)
    assert len(next(pages).tasks) == 10
    for task in ids[5:]:
        studio.state.remove_task(task)
    studio.state.projects[project].task_ids[:] = ids[:5]
    assert list(pages) == []


def test_filters_and_import_of_tasks(client: Client) -> None:
    project = client.create_project("filtered", CONFIG)
    made = client.import_tasks(project.id, [{"data": {"photo": "a"}, "predictions": [{"result": []}]}, {"photo": "b"}])
    without = {
        "filters": {
            "conjunction": "and",
            "items": [{"filter": "filter:tasks:total_predictions", "operator": "equal", "type": "Number", "value": 0}],
        }
    }
    page = client.tasks(project.id, query=without, include=("id",))
    assert (page.total, page.tasks) == (1, ({"id": made.task_ids[1]},))


@pytest.mark.parametrize(
    "text",
    [
        "nonsense",
        "updated_at>yesterday",
        "created_at=0001-01-01T00:00+14:00",
        "city=",
        "[1]",
        '{"filters": 3}',
        '{"items": 5}',
        '{"a": 1}',
        "{",
        '["id=1"]',
    ],
)
def test_what_is_no_filter(text: str) -> None:
    with pytest.raises(BadFilter) as told:
        parse_filters([text])
    assert told.value.hint


def test_moments_in_filters_are_written_as_label_studio_reads_them() -> None:
    found = parse_filters(["updated_at > 2026-11-01", "completed_at<=2026-11-01T01:30:00+02:00", "data.seen_at=noon"])
    assert found is not None
    assert [(one["type"], one["value"]) for one in found["items"]] == [
        ("Datetime", "2026-11-01T00:00:00.000000Z"),
        ("Datetime", "2026-10-31T23:30:00.000000Z"),
        ("String", "noon"),
    ]


def test_backends_and_webhooks(client: Client) -> None:
    project = client.create_project("wired", CONFIG)
    with FakeBackend(basic_auth=("user", "secret")) as backend:
        row = client.add_backend(
            project.id,
            backend.url,
            title="one",
            auth_method="BASIC_AUTH",
            basic_auth_user="user",
            basic_auth_pass="secret",
        )
        assert row.connected
        assert row.basic_auth_pass_is_set
        # without credentials in the request Label Studio would validate without them and refuse
        assert client.update_backend(row, title="two").title == "two"
        hook = client.webhooks(project.id)[0]
        narrowed = client.update_webhook(hook, send_for_all_actions=False, actions=["ANNOTATION_CREATED"])
        # Label Studio forgets the actions in a PATCH that does not repeat them
        assert client.update_webhook(narrowed, headers={"X-Who": "me"}).actions == ("ANNOTATION_CREATED",)
        client.delete_webhook(hook.id)
        client.delete_backend(row.id)
        assert client.backends(project.id) == []
        made = client.create_webhook(project.id, backend.url, is_active=False)
        assert isinstance(made, Webhook)
        assert not made.is_active


def test_retrieve_predictions_asks_the_backend_once_for_all(studio: FakeLabelStudio, client: Client) -> None:
    project = studio.add_project("live", CONFIG)
    tasks = studio.add_tasks(project, ({"photo": f"{number}.jpg"} for number in range(5)))
    with FakeBackend(predict=lambda task: {"result": [REGION], "score": 0.9}) as backend:
        client.add_backend(project, backend.url, title="one")
        assert client.retrieve_predictions(project, tasks[:3]) == 3
        assert client.retrieve_predictions(project) == 5
        asked = [len(call.body["tasks"]) for call in backend.calls if call.path == "/predict"]
    assert asked == [3, 2]  # those that have this version are not asked again
    assert [len(client.predictions(task)) for task in tasks] == [1] * 5


def test_storages(client: Client) -> None:
    project = client.create_project("stored", CONFIG)
    session = httpx.Client(base_url=client.base_url, headers={"Authorization": client.credentials.authorization()})
    with session:
        for kind, fields in {"s3": {"bucket": "b", "presign": False}, "localfiles": {"path": "/srv"}}.items():
            answer = session.post(f"/api/storages/{kind}", json={"project": project.id, "title": kind, **fields})
            assert answer.status_code == 201
    found = {row.type: row for row in client.storages(project.id)}
    assert found["s3"].bucket == "b"
    assert found["s3"].presign is False
    assert found["localfiles"].path == "/srv"


# --- what goes wrong --------------------------------------------------------------------------------


def test_address_rules_are_asked_without_storing_anything() -> None:
    with FakeLabelStudio(block_webhooks=True) as studio, Client(studio.url, studio.token) as client:
        client.check_backend_address("http://127.0.0.1:9090")
        with pytest.raises(LabelStudioRejected, match="ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false"):
            client.check_webhook_address("http://127.0.0.1:9090/webhook")
        with pytest.raises(LabelStudioRejected, match="network alias"):
            client.check_webhook_address("http://labelloop:9090/webhook")
        with pytest.raises(LabelStudioRejected, match="can resolve"):
            client.check_backend_address("http://nowhere.invalid:9090")
        assert not studio.state.backends
        assert not studio.state.webhooks


@pytest.mark.parametrize(
    ("address", "token", "error", "says"),
    [
        pytest.param("http://127.0.0.1:1", "x", LabelStudioUnreachable, "Check that it runs", id="nobody listens"),
        pytest.param("label-studio:8080", "x", LabelStudioUnreachable, "Write for instance", id="no scheme"),
        pytest.param("https:{url}", "x", LabelStudioUnreachable, "Write http://", id="https to http"),
        pytest.param("{url}", "wrong", LabelStudioAuthError, "personal access token", id="unknown legacy token"),
        pytest.param("{url}", "eyJhbGciOi.eyJ0b2tl", LabelStudioAuthError, "signature is missing", id="half a token"),
        pytest.param("{url}/deep", "x", LabelStudioRejected, "sub-path", id="wrong path"),
    ],
)
def test_errors_say_the_next_step(address: str, token: str, error: type[LabelloopError], says: str) -> None:
    with FakeLabelStudio() as studio:
        url = address.format(url=studio.url.removeprefix("http:") if address.startswith("https") else studio.url)
        with Client(url, token, attempts=1) as client, pytest.raises(error, match=says):
            client.whoami()


def test_disabled_tokens_are_named() -> None:
    with FakeLabelStudio(legacy_tokens=False) as studio:
        with Client(studio.url, studio.token) as client, pytest.raises(LabelStudioAuthError, match="switched off"):
            client.whoami()
        studio.tokens.api_tokens_enabled = False
        personal = Client(studio.url, studio.personal_access_token)
        with personal as client, pytest.raises(LabelStudioAuthError, match="Access Token Settings"):
            client.whoami()


def test_an_error_body_has_an_id_and_is_no_row() -> None:
    with FakeLabelStudio() as studio, Client(studio.url, studio.token) as client:
        with pytest.raises(LabelStudioRejected, match="at least 3 characters") as refused:
            client.create_project("ab", CONFIG)
        assert refused.value.status == 400


def test_a_page_instead_of_an_answer_about_a_project_may_mean_that_it_is_gone() -> None:
    gone = httpx.Response(
        404, html="<h1>Not Found</h1>", request=httpx.Request("POST", "http://ls/api/projects/7/import")
    )
    assert explain(gone, Credentials("http://ls", "x")).hint.startswith("Was the project deleted meanwhile?")


Answer = Callable[[httpx.Request], httpx.Response]


def scripted(*answers: httpx.Response | Exception) -> tuple[httpx.MockTransport, list[httpx.Request]]:
    """A transport that gives these answers one after the other, and what it was asked."""
    asked: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request)
        item = answers[min(len(asked), len(answers)) - 1]
        if isinstance(item, Exception):
            raise item
        return item

    return httpx.MockTransport(answer), asked


def json_answer(body: object, status: int = 200, **headers: str) -> httpx.Response:
    return httpx.Response(
        status, content=msgspec.json.encode(body), headers={"content-type": "application/json", **headers}
    )


@pytest.mark.parametrize(
    "trouble",
    [
        pytest.param(json_answer({}, 503, **{"retry-after": "0"}), id="503"),
        pytest.param(httpx.Response(502, text="bad gateway"), id="502 of a proxy"),
        pytest.param(json_answer({}, 429, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}), id="429 with a date"),
        pytest.param(httpx.ReadTimeout("slow"), id="timeout"),
    ],
)
def test_reading_is_repeated(trouble: httpx.Response | Exception) -> None:
    transport, asked = scripted(trouble, json_answer({"id": 4, "email": "a@b"}))
    with Client("http://ls.test", "key", transport=transport) as client:
        assert client.whoami().id == 4
    assert len(asked) == 2


def test_writing_is_not_repeated_unless_the_connection_was_refused() -> None:
    transport, asked = scripted(httpx.ReadTimeout("slow"), json_answer({"created": 1}, 201))
    with Client("http://ls.test", "key", transport=transport) as client:
        with pytest.raises(LabelStudioUnreachable, match="in time"):
            client.import_predictions(1, [{"task": 1, "result": []}])
        assert len(asked) == 1
    transport, asked = scripted(httpx.ConnectError("refused"), json_answer({"created": 1}, 201))
    with Client("http://ls.test", "key", transport=transport) as client:
        assert client.import_predictions(1, [{"task": 1, "result": []}]).created == 1
    assert len(asked) == 2


def test_redirects_are_told_and_never_followed() -> None:
    transport, asked = scripted(httpx.Response(301, headers={"location": "https://ls.test/api/current-user/whoami"}))
    with (
        Client("http://ls.test", "key", transport=transport) as client,
        pytest.raises(LabelStudioUnreachable, match=r"Use --url https://ls\.test "),
    ):
        client.whoami()
    assert len(asked) == 1
    transport, _ = scripted(httpx.Response(302, headers={"location": "https://login.test/sso?next=x"}))
    with (
        Client("http://ls.test", "key", transport=transport) as client,
        pytest.raises(LabelStudioUnreachable, match="single sign-on"),
    ):
        client.whoami()


def test_a_web_page_instead_of_json_is_not_an_answer() -> None:
    transport, _ = scripted(httpx.Response(200, text="<html>Welcome</html>"))
    with (
        Client("http://ls.test", "key", transport=transport) as client,
        pytest.raises(LabelStudioRejected, match="not Label Studio's API"),
    ):
        client.version()


def test_newer_fields_are_ignored() -> None:
    row = {"id": 1, "title": "t", "label_config": "", "model_version": None, "quantum_flag": [1, {"x": 2}]}
    transport, _ = scripted(json_answer(row))
    with Client("http://ls.test", "key", transport=transport) as client:
        assert client.project(1).model_version is None

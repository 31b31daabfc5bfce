"""Connecting once, twice, and after somebody or something left it half done."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from labelloop.connection.backend import basic_header
from labelloop.connection.connect import ConnectReport, connect
from labelloop.core.errors import LabelStudioAuthError, LabelStudioRejected
from labelloop.labelstudio.client import ANNOTATION_EVENTS, Client
from labelloop.serving.projects import NO_MODEL
from labelloop.testing import FakeBackend, FakeLabelStudio
from labelloop.testing.label_studio import Timeouts

CONFIG = """<View><Image name="picture" value="$photo"/>
<RectangleLabels name="thing" toName="picture"><Label value="Car"/></RectangleLabels></View>"""


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as server:
        yield server


@pytest.fixture
def backend() -> Iterator[FakeBackend]:
    with FakeBackend(model_version="cars@1") as server:
        yield server


@pytest.fixture
def client(studio: FakeLabelStudio) -> Iterator[Client]:
    with Client(studio.url, studio.personal_access_token, attempts=1) as made:
        yield made


@pytest.fixture
def project(studio: FakeLabelStudio) -> int:
    number = studio.add_project("Street", CONFIG)
    studio.add_tasks(number, [{"photo": studio.add_upload(number, "a b.jpg", b"\xff\xd8")}])
    return number


def lines(report: ConnectReport, status: str) -> dict[str, str]:
    """check -> message and fix of the findings with this status."""
    return {item.check: f"{item.message} {item.fix}" for item in report.findings if item.status == status}


def test_everything_is_made_and_checked(client: Client, backend: FakeBackend, project: int) -> None:
    report = connect(client, "street", backend_url=backend.url + "/")
    assert report.ok
    assert {item.status for item in report.findings} == {"ok"}
    assert report.backend is not None
    assert (report.backend.title, report.backend.is_interactive) == ("labelloop", True)
    assert (report.backend.url, report.backend.model_version) == (backend.url, "cars@1")
    assert report.webhook is not None
    assert report.webhook.url == f"{backend.url}/webhook"
    assert not report.webhook.send_for_all_actions
    assert sorted(report.webhook.actions) == sorted(ANNOTATION_EVENTS)
    assert report.project.model_version == "labelloop"
    assert client.project(project).model_version == "labelloop"


@pytest.mark.parametrize("other_name", ["{url}", "{url}/", "{localhost}"], ids=["same", "slash", "localhost"])
def test_repeating_never_makes_a_second_row(
    client: Client, backend: FakeBackend, project: int, other_name: str
) -> None:
    first = connect(client, project, backend_url=backend.url)
    again = other_name.format(url=backend.url, localhost=backend.url.replace("127.0.0.1", "localhost"))
    second = connect(client, project, backend_url=again)
    third = connect(client, project, backend_url=again)
    assert second.ok
    assert third.changes == ()
    assert [row.id for row in client.backends(project)] == [first.backend.id if first.backend else 0]
    hooks = client.webhooks(project)
    assert [hook.url for hook in hooks] == [again.rstrip("/") + "/webhook"]


def test_what_was_not_asked_for_stays_as_it_is(client: Client, backend: FakeBackend, project: int) -> None:
    made = connect(client, project, backend_url=backend.url, title="mine", interactive=False, extra_params={"a": 1})
    assert made.backend is not None
    again = connect(client, project, backend_url=backend.url)
    assert again.backend == made.backend
    renamed = connect(client, project, backend_url=backend.url, title="yours", interactive=True)
    assert renamed.backend is not None
    assert (renamed.backend.title, renamed.backend.is_interactive, renamed.backend.extra_params) == (
        "yours",
        True,
        {"a": 1},
    )
    assert renamed.project.model_version == "yours"


def test_a_password_goes_into_the_row_and_into_the_webhook(client: Client, project: int) -> None:
    with FakeBackend(basic_auth=("user", "sécret")) as backend:
        refused = connect(client, project, backend_url=backend.url)
        assert "--basic-auth-user" in lines(refused, "fail")["the backend answers"]
        assert client.backends(project) == []
        report = connect(client, project, backend_url=backend.url, basic_auth=("user", "sécret"))
        assert report.ok
        assert report.webhook is not None
        assert report.webhook.headers == {"Authorization": basic_header(("user", "sécret"))}
        again = connect(client, project, backend_url=backend.url, basic_auth=("user", "sécret"))
        assert again.changes == ()
        annotate(client, project)
        event = backend.calls[-1]
    assert (event.path, event.body["action"]) == ("/webhook", "ANNOTATION_CREATED")
    assert event.headers["authorization"] == basic_header(("user", "sécret"))


def annotate(client: Client, project: int) -> None:
    """Submit an annotation, as the editor does."""
    task = client.tasks(project).tasks[0]["id"]
    client._ask("POST", f"/api/tasks/{task}/annotations/", dict, body={"result": []})


def test_a_changed_password_is_mended(client: Client, project: int) -> None:
    with FakeBackend(basic_auth=("user", "old")) as backend:
        connect(client, project, backend_url=backend.url, basic_auth=("user", "old"))
        backend.basic_auth = ("user", "new")
        wrong = connect(client, project, backend_url=backend.url, basic_auth=("user", "old"))
        assert "another user name and password" in lines(wrong, "fail")["the backend answers"]
        report = connect(client, project, backend_url=backend.url, basic_auth=("user", "new"))
        assert report.ok
        assert report.webhook is not None
        assert report.webhook.headers == {"Authorization": basic_header(("user", "new"))}


def test_a_password_that_went_away_leaves_the_webhook_too(client: Client, project: int) -> None:
    with FakeBackend(basic_auth=("user", "old")) as backend:
        report = connect(client, project, backend_url=backend.url, basic_auth=("user", "old"))
        assert report.webhook is not None
        client.update_webhook(report.webhook, headers={**report.webhook.headers, "X-Team": "blue"})
        backend.basic_auth = None
        # the row still has the password, so the header is kept
        kept = connect(client, project, backend_url=backend.url)
        assert kept.webhook is not None
        assert "Authorization" in kept.webhook.headers
        for row in client.backends(project):
            client.delete_backend(row.id)
        fresh = connect(client, project, backend_url=backend.url)
    assert fresh.webhook is not None
    assert fresh.webhook.headers == {"X-Team": "blue"}


def test_a_row_left_by_a_refused_webhook_is_completed(
    studio: FakeLabelStudio, client: Client, backend: FakeBackend, project: int
) -> None:
    studio.outgoing.block_webhooks = True
    for _ in range(2):  # each try of other tools leaves one more row
        with pytest.raises(LabelStudioRejected, match="SSRF_PROTECTION_ENABLED=false"):
            client.add_backend(project, backend.url, title="old")
    refused = connect(client, project, backend_url=backend.url)
    assert "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false" in lines(refused, "fail")["address rules"]
    assert refused.changes == ()
    studio.outgoing.block_webhooks = False
    report = connect(client, project, backend_url=backend.url)
    assert report.ok
    assert len(client.backends(project)) == len(client.webhooks(project)) == 1
    assert report.project.model_version == "old"


def test_nothing_is_stored_while_the_address_is_forbidden(backend: FakeBackend) -> None:
    with (
        FakeLabelStudio(block_backends=True, block_webhooks=True) as studio,
        Client(studio.url, studio.token) as client,
    ):
        project = studio.add_project("Street", CONFIG)
        report = connect(client, project, backend_url=backend.url)
        assert not report.ok
        assert report.backend is None
        assert not studio.state.backends
        assert not studio.state.webhooks


def test_a_host_without_a_dot_gets_predictions_and_a_warning(
    client: Client, backend: FakeBackend, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the name that a container has in docker compose
    import socket

    real = socket.getaddrinfo
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *rest, **more: real("127.0.0.1", *rest, **more))
    monkeypatch.setattr(socket, "gethostbyname", lambda host: "127.0.0.1")
    report = connect(client, project, backend_url=backend.url.replace("127.0.0.1", "labelloop"))
    assert report.ok
    assert report.webhook is None
    assert "network alias" in lines(report, "warn")["address rules"]
    assert "does not hear of annotations" in lines(report, "warn")["webhook"]


def test_a_webhook_that_somebody_deleted_or_doubled_is_mended(
    client: Client, backend: FakeBackend, project: int
) -> None:
    connect(client, project, backend_url=backend.url)
    client.delete_webhook(client.webhooks(project)[0].id)
    assert connect(client, project, backend_url=backend.url).webhook is not None
    client.create_webhook(project, f"{backend.url}/webhook/", actions=["TASKS_CREATED"], send_for_all_actions=False)
    client.update_webhook(client.webhooks(project)[0], is_active=False, actions=["TASKS_CREATED"])
    report = connect(client, project, backend_url=backend.url)
    hooks = client.webhooks(project)
    assert len(hooks) == 1
    assert hooks[0].is_active
    # what somebody added to a narrowed list stays
    assert sorted(hooks[0].actions) == sorted([*ANNOTATION_EVENTS, "TASKS_CREATED"])
    assert any("removed a second webhook" in change for change in report.changes)


def test_another_backend_comes_first(client: Client, backend: FakeBackend, project: int) -> None:
    with FakeBackend(model_version="other@1") as other:
        client.add_backend(project, other.url, title="other")
        report = connect(client, project, backend_url=backend.url)
    assert report.ok
    assert "'other'" in lines(report, "warn")["first backend"]
    assert "another backend" in lines(report, "warn")["shown predictions"]
    assert report.project.model_version == "other"


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        pytest.param({"/setup": (500, {})}, "answers /health but not /setup: 500 Server Error", id="setup fails"),
        pytest.param({"/setup": (400, {})}, "refuses the label config", id="setup refuses"),
        pytest.param({"/health": (503, {})}, "from here it does not answer either", id="health fails"),
    ],
)
def test_label_studio_does_not_get_through(
    client: Client, project: int, setting: dict[str, tuple[int, object]], says: str
) -> None:
    with FakeBackend() as backend:
        backend.answers.update(setting)
        new = connect(client, project, backend_url=backend.url)
        assert says in lines(new, "fail")["Label Studio reaches the backend"]
        assert new.backend is None
        backend.answers.clear()
        assert connect(client, project, backend_url=backend.url).ok
        backend.answers.update(setting)
        known = connect(client, project, backend_url=backend.url)
        assert says in lines(known, "fail")["Label Studio reaches the backend"]
        assert len(client.backends(project)) == 1


def test_a_slow_backend_is_not_reached(studio: FakeLabelStudio, client: Client, project: int) -> None:
    studio.timeouts = Timeouts(health=0.05)
    with FakeBackend() as backend:
        backend.delays_s["/health"] = 0.2
        report = connect(client, project, backend_url=backend.url)
    # seen from Label Studio this is what a loopback address looks like from inside a container
    assert "host.docker.internal" in lines(report, "fail")["Label Studio reaches the backend"]


def test_a_dead_backend_says_start_it(client: Client, project: int) -> None:
    report = connect(client, project, backend_url="http://127.0.0.1:1")
    assert "labelloop serve" in lines(report, "fail")["Label Studio reaches the backend"]
    assert client.backends(project) == []


def test_a_project_without_model_is_told(client: Client, project: int) -> None:
    with FakeBackend(model_version=NO_MODEL) as backend:
        report = connect(client, project, backend_url=backend.url)
    assert f"labelloop models use {project} NAME" in lines(report, "warn")["model"]
    assert f"labelloop loop {project} on" in lines(report, "warn")["model"], "it may begin without one"


def test_pictures_that_cannot_be_had(studio: FakeLabelStudio, client: Client, backend: FakeBackend) -> None:
    cases = {
        "a missing upload": ("/data/upload/9/gone.jpg", "import it again"),
        "a missing local file": ("/data/local-files/?d=gone.jpg", "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED"),
        "a storage that is gone": ("s3://bucket/a.jpg", "Cloud Storage"),
    }
    for number, (what, (address, says)) in enumerate(cases.items()):
        project = studio.add_project(f"case {number}", CONFIG)
        studio.add_tasks(project, [{"photo": address}])
        report = connect(client, project, backend_url=backend.url)
        assert says in lines(report, "fail")["we reach the pictures"], what
        assert report.backend is not None


def test_the_token_is_not_sent_to_strangers(studio: FakeLabelStudio, client: Client, backend: FakeBackend) -> None:
    project = studio.add_project("elsewhere", CONFIG)
    studio.add_tasks(project, [{"photo": f"{backend.url}/picture.jpg"}])
    report = connect(client, project, backend_url=backend.url)
    assert "without Label Studio's token" in lines(report, "ok")["we reach the pictures"]
    assert "GET /picture.jpg" not in backend.paths()


def test_a_bad_token_or_project_stops_before_anything_happens(
    studio: FakeLabelStudio, client: Client, backend: FakeBackend
) -> None:
    with Client(studio.url, "wrong", attempts=1) as stranger, pytest.raises(LabelStudioAuthError):
        connect(stranger, 1, backend_url=backend.url)
    with pytest.raises(LabelStudioRejected, match="no project"):
        connect(client, "nowhere", backend_url=backend.url)
    assert backend.calls == []

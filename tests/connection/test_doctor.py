"""Every fault that people have is one failed line with its fix, and the other checks go on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from labelloop.connection.connect import connect
from labelloop.connection.doctor import diagnose
from labelloop.connection.findings import Finding
from labelloop.connection.server_checks import Installation
from labelloop.core.errors import MediaNotFound
from labelloop.core.regions import Size
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.testing import FakeBackend, FakeLabelStudio
from labelloop.testing.label_studio import Timeouts

CONFIG = """<View><Image name="picture" value="$photo"/>
<RectangleLabels name="thing" toName="picture"><Label value="Car"/><Label value="Zebu"/></RectangleLabels></View>"""
REGION = {
    "id": "r1", "from_name": "thing", "to_name": "picture", "type": "rectanglelabels",
    "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rectanglelabels": ["Car"]},
}  # fmt: skip


class Setting:
    """A Label Studio with one connected project, and its backend."""

    def __init__(self, studio: FakeLabelStudio, backend: FakeBackend) -> None:
        self.studio = studio
        self.backend = backend
        self.project = studio.add_project("Street", CONFIG)
        studio.add_tasks(self.project, [{"photo": studio.add_upload(self.project, "a.jpg", b"\xff\xd8")}])
        self.client = Client(studio.url, studio.token, attempts=1)

    @property
    def installation(self) -> Installation:
        return Installation(self.studio.url, self.studio.token, self.backend.url, self.backend.basic_auth)

    def connect(self) -> None:
        report = connect(self.client, self.project, backend_url=self.backend.url, basic_auth=self.backend.basic_auth)
        assert report.backend is not None

    def diagnose(self) -> list[Finding]:
        return diagnose(self.installation, self.project)


@pytest.fixture
def setting() -> Iterator[Setting]:
    backend = FakeBackend(model_version="cars@1", predict=lambda task: {"result": [REGION], "score": 0.9})
    with FakeLabelStudio() as studio, backend:
        made = Setting(studio, backend)
        made.connect()
        yield made
        made.client.close()


def line(findings: Sequence[Finding], check: str, status: str) -> str:
    """Message and fix of the first finding of this check with this status."""
    found = [f"{item.message} -> {item.fix}" for item in findings if (item.check, item.status) == (check, status)]
    assert found, f"no {status} line for {check!r} in {[(item.check, item.status) for item in findings]}"
    return found[0]


def faults(findings: Sequence[Finding]) -> set[str]:
    return {item.check for item in findings if item.status == "fail"}


def test_all_is_well(setting: Setting) -> None:
    before = len(setting.studio.requests)
    findings = setting.diagnose()
    assert [item for item in findings if item.status != "ok"] == []
    assert "1 region (task 1, version cars@1" in line(findings, "prediction", "ok")
    # what would change something is only the two questions that Label Studio answers with 400
    written = [seen for seen in setting.studio.requests[before:] if seen.method not in ("GET", "HEAD")]
    assert {(seen.method, seen.path) for seen in written} == {("POST", "/api/ml"), ("POST", "/api/webhooks")}
    assert setting.studio.predictions(1) == []
    assert len(setting.studio.state.backends) == len(setting.studio.state.webhooks) == 1


def test_without_a_project_all_connected_ones_are_checked(setting: Setting) -> None:
    setting.studio.add_project("Not ours", CONFIG)
    findings = diagnose(setting.installation)
    assert {item.subject for item in findings} == {"", "Street (project 1)"}
    setting.client.delete_backend(1)
    findings = diagnose(setting.installation)
    assert f"labelloop connect PROJECT --backend-url {setting.backend.url}" in line(findings, "projects", "warn")


# --- the address and the token ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "check", "says"),
    [
        pytest.param("", "address", "LABEL_STUDIO_URL", id="unknown"),
        pytest.param("http://127.0.0.1:1", "address", "Check that it runs", id="nobody listens"),
        pytest.param("{backend}", "address", "not Label Studio", id="another server"),
        pytest.param("{studio}/deeper", "address", "sub-path", id="wrong path"),
        pytest.param("nonsense", "address", "http://host:8080", id="no address at all"),
    ],
)
def test_a_wrong_address_leaves_the_backend_checks_alive(setting: Setting, url: str, check: str, says: str) -> None:
    url = url.format(backend=setting.backend.url, studio=setting.studio.url)
    backend = "http://127.0.0.1:1" if url == setting.backend.url else setting.backend.url
    findings = diagnose(Installation(url, "x", backend), 1)
    assert says in line(findings, check, "fail")
    assert {"backend"} <= {item.check for item in findings}


@pytest.mark.parametrize(
    ("token", "says"),
    [
        pytest.param("", "LABEL_STUDIO_API_KEY", id="none"),
        pytest.param("wrong", "Create a personal access token", id="unknown"),
        pytest.param("{cut}", "signature is missing", id="copied from the list of tokens"),
        pytest.param("{revoked}", "Create a new one", id="revoked"),
    ],
)
def test_a_bad_token_is_named(setting: Setting, token: str, says: str) -> None:
    personal = setting.studio.personal_access_token
    setting.studio.tokens.revoke_personal()
    token = token.format(cut=personal.rpartition(".")[0], revoked=personal)
    findings = diagnose(Installation(setting.studio.url, token, setting.backend.url), 1)
    assert says in line(findings, "token", "fail")
    assert line(findings, "backend", "ok")
    assert line(findings, "project", "skipped")
    assert not token or token not in str(findings)


def test_kinds_of_token(setting: Setting) -> None:
    studio = setting.studio
    for token in (studio.personal_access_token, f"Token {studio.personal_access_token}"):
        findings = diagnose(Installation(studio.url, token, setting.backend.url), 1)
        assert "personal access token" in line(findings, "token", "ok")
    access = studio.tokens.access_for(studio.personal_access_token) or ""
    findings = diagnose(Installation(studio.url, access, setting.backend.url), 1)
    assert "five minutes" in line(findings, "token", "warn")
    studio.tokens.legacy_api_tokens_enabled = False
    assert "switched off in this organisation" in line(setting.diagnose(), "token", "fail")


# --- the backend and the way between ----------------------------------------------------------------


def test_a_dead_backend(setting: Setting) -> None:
    setting.backend.stop()
    findings = setting.diagnose()
    assert "labelloop serve" in line(findings, "backend", "fail")
    assert "labelloop serve" in line(findings, "Label Studio reaches the backend", "fail")
    assert line(findings, "prediction", "skipped")
    assert line(findings, "webhook", "ok")
    assert line(findings, "picture" if "picture" in faults(findings) else "we reach the pictures", "ok")


def test_label_studio_itself_is_not_the_backend(setting: Setting) -> None:
    findings = diagnose(Installation(setting.studio.url, setting.studio.token, setting.studio.url))
    assert "is Label Studio itself" in line(findings, "backend", "fail")


def test_something_else_on_the_port(setting: Setting) -> None:
    setting.backend.answers["/health"] = (404, {})
    assert "another program" in line(setting.diagnose(), "backend", "fail")


def test_models_still_loading(setting: Setting) -> None:
    setting.backend.answers["/ready"] = (503, {"ready": False, "models": {"cars@1": "loading"}})
    assert "cars@1 (loading)" in line(setting.diagnose(), "models", "warn")
    setting.backend.answers["/ready"] = (200, {"ready": True, "models": {}})
    assert "labelloop models add" in line(setting.diagnose(), "models", "warn")


def test_the_address_switches(setting: Setting) -> None:
    setting.studio.outgoing.block_backends = setting.studio.outgoing.block_webhooks = True
    findings = setting.diagnose()
    assert "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false" in line(findings, "address rules", "fail")
    assert "call the backend or send webhooks" in line(findings, "address rules", "fail")
    assert "address rules keep it" in line(findings, "Label Studio reaches the backend", "fail")
    setting.studio.outgoing.block_backends = False
    findings = setting.diagnose()
    assert "would not send webhooks" in line(findings, "address rules", "fail")
    assert line(findings, "Label Studio reaches the backend", "ok")


def test_a_password_that_label_studio_does_not_have(setting: Setting) -> None:
    setting.backend.basic_auth = ("user", "secret")
    findings = setting.diagnose()  # the doctor has it, Label Studio does not
    assert "--basic-auth-user" in line(findings, "Label Studio reaches the backend", "fail")
    assert "does not carry the backend's user name and password" in line(findings, "webhook", "fail")
    assert "secret" not in str(findings)
    open_handed = Installation(setting.studio.url, setting.studio.token, setting.backend.url)
    assert "--basic-auth-user" in line(diagnose(open_handed, 1), "backend login", "fail")


def test_a_backend_that_only_we_can_see(setting: Setting) -> None:
    setting.studio.timeouts = Timeouts(health=0.05)
    setting.backend.delays_s["/health"] = 0.2
    assert "host.docker.internal" in line(setting.diagnose(), "Label Studio reaches the backend", "fail")


# --- the project ------------------------------------------------------------------------------------


def test_an_unknown_project(setting: Setting) -> None:
    assert "Did you mean 'Street'" in line(diagnose(setting.installation, "Stret"), "project", "fail")


def test_a_project_that_is_not_connected(setting: Setting) -> None:
    other = setting.studio.add_project("Other", CONFIG)
    findings = diagnose(setting.installation, other)
    fix = f"labelloop connect {other} --backend-url {setting.backend.url}"
    assert fix in line(findings, "registered", "fail")
    assert fix in line(findings, "webhook", "fail")
    assert line(findings, "prediction", "skipped")


def test_webhook_faults(setting: Setting) -> None:
    hook = setting.client.webhooks(setting.project)[0]
    setting.client.update_webhook(hook, is_active=False, actions=["ANNOTATION_CREATED"])
    messages = [item.message for item in setting.diagnose() if item.check == "webhook" and item.status == "fail"]
    assert [("switched off" in text, "ANNOTATION_UPDATED" in text) for text in messages] == [
        (True, False),
        (False, True),
    ]
    setting.client.create_webhook(setting.project, hook.url)
    assert "sent 2 times" in line(setting.diagnose(), "webhook", "warn")


def test_which_predictions_are_shown(setting: Setting) -> None:
    setting.client.import_predictions(1, [{"task": 1, "result": [], "model_version": "bulk"}])
    setting.client.set_project(1, model_version="bulk")
    assert "shows stored predictions of 'bulk'" in line(setting.diagnose(), "shown predictions", "warn")
    setting.client.set_project(1, model_version="")
    assert "selects no model" in line(setting.diagnose(), "shown predictions", "warn")
    setting.client.set_project(1, show_collab_predictions=False)
    assert "does not show predictions" in line(setting.diagnose(), "shown predictions", "warn")


def test_versions_that_disagree_make_duplicates(setting: Setting) -> None:
    setting.backend.predicts_as = "cars@2"
    text = line(setting.diagnose(), "prediction", "fail")
    assert "'cars@1'" in text
    assert "'cars@2'" in text


@pytest.mark.parametrize(
    ("answer", "status", "says"),
    [
        pytest.param((500, {"error": "boom"}), "fail", "500", id="error"),
        pytest.param((503, {}), "warn", "busy", id="overloaded"),
        pytest.param((200, {"results": []}), "fail", "exactly one result", id="no result"),
        pytest.param((200, {"results": [{"error": "no picture"}]}), "fail", "no picture", id="item failed"),
        pytest.param(
            (200, {"results": [{"result": [], "model_version": "cars@1"}]}), "warn", "nothing was found", id="empty"
        ),
    ],
)
def test_prediction_faults(setting: Setting, answer: tuple[int, object], status: str, says: str) -> None:
    setting.backend.answers["/predict"] = answer
    assert says in line(setting.diagnose(), "prediction", status)


def test_smart_tools_need_the_flag(setting: Setting) -> None:
    smart = CONFIG.replace('toName="picture"', 'toName="picture" smart="true"')
    setting.client.set_project(1, label_config=smart)
    setting.client.update_backend(setting.client.backends(1)[0], is_interactive=False)
    assert "--interactive" in line(setting.diagnose(), "smart tools", "warn")


def test_storages(setting: Setting) -> None:
    for row in ({"type": "s3", "presign": False, "use_blob_urls": True}, {"type": "gcs", "presign": True}):
        setting.studio.state.storages[len(setting.studio.state.storages)] = {"id": 1, "project": 1, **row}
    findings = [item for item in setting.diagnose() if item.check == "storages"]
    assert [item.status for item in findings] == ["warn", "ok"]
    assert "pre-signed" in findings[0].fix


def test_labels_and_picture_come_from_the_caller(setting: Setting) -> None:
    classes = ["car", "bus", "tram"]

    def findings(labels: list[str], size: Size | None) -> list[Finding]:
        def look(project: object, task: object) -> Size | None:
            if size == Size(0, 0):
                raise MediaNotFound("The file is gone.", hint="Import it again.")
            return size

        return diagnose(
            setting.installation,
            1,
            coverage=lambda project, version: (version, build_label_map(parse_config(project.label_config), labels)),
            look=look,
        )

    found = findings(classes, Size(640, 480))
    assert line(found, "labels", "ok").startswith("1 of 3 classes of cars@1")
    warnings = [item.message for item in found if item.check == "labels" and item.status == "warn"]
    assert ["Zebu" in warnings[0], "bus, tram" in warnings[1]] == [True, True]
    assert "640 x 480" in line(found, "picture", "ok")
    found = findings(["class_0", "class_1"], Size(0, 0))
    assert "--labels" in line(found, "labels", "fail")
    assert "Import it again" in line(found, "picture", "fail")
    assert line(findings(["bus"], None), "picture", "skipped")


def test_a_model_that_writes_regions_itself_has_no_label_map(setting: Setting) -> None:
    found = diagnose(setting.installation, 1, coverage=lambda project, version: ("theirs@1", None))
    assert "theirs@1 writes regions by itself" in line(found, "labels", "ok")


def test_no_finding_that_is_not_well_lacks_a_fix(setting: Setting) -> None:
    setting.backend.stop()
    setting.studio.outgoing.block_backends = True
    setting.client.delete_webhook(1)
    findings = setting.diagnose() + diagnose(Installation("", "", "http://127.0.0.1:1"))
    assert len(faults(findings)) >= 4
    assert [item for item in findings if item.status != "ok" and not item.fix] == []

"""The fake answers as the real Label Studio 1.23.2 was recorded: same names, same traps."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from labelloop.testing import FakeBackend, FakeLabelStudio
from labelloop.testing.label_studio.state import timestamp
from labelloop.testing.label_studio.validation import is_valid

CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image" model_score_threshold="0.3">'
    '<Label value="Car"/><Label value="Person"/></RectangleLabels></View>'
)
REGION: dict[str, Any] = {
    "id": "r1", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 320,
    "original_height": 240, "image_rotation": 0, "score": 0.87,
    "value": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 0, "rectanglelabels": ["Car"]},
}  # fmt: skip


class Scene:
    """The fake, its backend, a project with uploads, and a bare HTTP client."""

    def __init__(self, studio: FakeLabelStudio, backend: FakeBackend) -> None:
        self.studio = studio
        self.backend = backend
        self.project = studio.add_project("p_rect", CONFIG)
        self.http = httpx.Client(base_url=studio.url, headers={"Authorization": f"Token {studio.token}"})
        files = [(f"f{number}", (f"im{number}.jpg", b"\xff\xd8\r\n")) for number in range(3)]
        self.uploaded = self.http.post(f"/api/projects/{self.project}/import", files=files)
        self.tasks = list(studio.state.projects[self.project].task_ids)

    def call(self, method: str, path: str, body: Any = None, *, expect: int = 200) -> Any:
        answer = self.http.request(method, path, json=body)
        assert answer.status_code == expect, answer.text
        return answer.json() if answer.content else None

    def add_backend(self, **fields: Any) -> Any:
        body = {"url": self.backend.url, "project": self.project, "title": "stub", "extra_params": {"a": 1}, **fields}
        return self.call("POST", "/api/ml", body, expect=201)


@pytest.fixture
def scene() -> Iterator[Scene]:
    backend = FakeBackend(model_version="stub-v1", predict=lambda task: {"result": [REGION], "score": 0.84})
    with FakeLabelStudio() as studio, backend:
        made = Scene(studio, backend)
        yield made
        made.http.close()


@pytest.fixture(scope="session")
def recorded(shared: Path) -> Any:
    def read(name: str) -> Any:
        return json.loads((shared / "label-studio" / "recordings" / f"{name}.json").read_text())

    return read


def strange(told: Any, real: Any, path: str = "", *, depth: int = 3) -> list[str]:
    """Where the names of two answers differ, `depth` levels deep. Lists are compared by their first elements."""
    if isinstance(told, list) and isinstance(real, list):
        return strange(told[0], real[0], f"{path}[0]", depth=depth) if told and real else []
    if not depth or not isinstance(told, dict) or not isinstance(real, dict):
        return [] if isinstance(told, dict) == isinstance(real, dict) else [path]
    differing = [f"{path}.{key}" for key in told.keys() ^ real.keys()]
    for key in (told.keys() & real.keys()) - {"result"}:  # regions are the backend's, not Label Studio's
        differing += strange(told[key], real[key], f"{path}.{key}", depth=depth - 1)
    return differing


def test_answers_have_the_recorded_names(scene: Scene, recorded: Any) -> None:
    project, task = scene.project, scene.tasks[0]
    items = [{"task": number, "result": [REGION], "score": 0.1, "model_version": "m1"} for number in scene.tasks]
    view = recorded("api_dm_views_create")["request"]["body"] | {"project": project}
    scene.call("POST", "/api/dm/views", {"project": project, "data": {"title": "y"}}, expect=201)
    answers = {
        "api_import_upload_response": scene.uploaded.json(),
        "api_project_get": scene.call("GET", f"/api/projects/{project}"),
        "api_tasks_list_fields_all": scene.call("GET", f"/api/tasks?project={project}&page_size=2&fields=all"),
        "api_ml_create": scene.add_backend(),
        "api_webhooks_list_auto": scene.call("GET", f"/api/webhooks?project={project}"),
        "api_next_task": scene.call("GET", f"/api/projects/{project}/next"),
        "api_dm_action_retrieve_predictions": scene.call(
            "POST", f"/api/dm/actions?id=retrieve_tasks_predictions&project={project}", {"selectedItems": {"all": True}}
        ),
        "api_task_get": scene.call("GET", f"/api/tasks/{task}"),
        "api_import_predictions": scene.call("POST", f"/api/projects/{project}/import/predictions", items, expect=201),
        "api_predictions_create": scene.call("POST", "/api/predictions", items[0], expect=201),
        "api_model_versions_extended": scene.call("GET", f"/api/projects/{project}/model-versions?extended=true"),
        "api_dm_views_create": scene.call("POST", "/api/dm/views", view, expect=201),
        "api_dm_action_next_task": scene.call(
            "POST", f"/api/dm/actions?id=next_task&project={project}", {"ordering": ["tasks:predictions_score"]}
        ),
        "api_model_versions_delete": scene.call(
            "DELETE", f"/api/projects/{project}/model-versions", {"model_version": "bad9"}
        ),
        "api_storage_localfiles_create": scene.call(
            "POST", "/api/storages/localfiles", {"project": project, "title": "loc", "path": "/srv"}, expect=201
        ),
    }
    differing = {name: strange(answer, recorded(name)["response"]["body"]) for name, answer in answers.items()}
    assert {name: paths for name, paths in differing.items() if paths} == {}


def test_requests_to_the_backend_have_the_recorded_names(scene: Scene, recorded: Any) -> None:
    scene.add_backend(is_interactive=True)
    scene.call("GET", f"/api/tasks/{scene.tasks[0]}")
    scene.call("POST", "/api/ml/1/interactive-annotating", {"task": scene.tasks[1], "context": {"result": []}})
    scene.call("POST", f"/api/tasks/{scene.tasks[0]}/annotations/", {"result": [REGION], "lead_time": 1.5}, expect=201)
    scene.http.post("/api/ml/1/train")
    live, interactive = [call for call in scene.backend.calls if call.path == "/predict"]
    scene.call("POST", f"/api/projects/{scene.project}/import", [{"image": "x"}], expect=201)
    scene.call("DELETE", f"/api/tasks/{scene.tasks[2]}", expect=204)
    event, training, created, deleted = [call for call in scene.backend.calls if call.path == "/webhook"]
    setup = next(call for call in scene.backend.calls if call.path == "/setup")
    sent = {
        "setup_on_add": setup,
        "predict_open_task": live,
        "predict_interactive_keypoint": interactive,
        "webhook_annotation_created": event,
        "webhook_start_training": training,
        "webhook_tasks_created": created,
        "webhook_tasks_deleted": deleted,
    }
    differing = {name: strange(call.body, recorded(name)["body"]) for name, call in sent.items()}
    assert {name: paths for name, paths in differing.items() if paths} == {}


def test_adding_a_backend_calls_it_twice_and_registers_a_webhook_once(scene: Scene) -> None:
    row = scene.add_backend()
    assert scene.backend.paths() == ["GET /health", "POST /setup"] * 2
    setup = scene.backend.calls[1].body
    assert setup["project"].startswith(f"{scene.project}.")
    assert setup["access_token"] == scene.studio.token
    assert (row["state"], row["model_version"]) == ("CO", "stub-v1")
    assert scene.call("GET", f"/api/projects/{scene.project}")["model_version"] == "stub"
    scene.call("DELETE", f"/api/ml/{row['id']}", expect=204)
    assert scene.call("GET", f"/api/projects/{scene.project}")["model_version"] == ""
    scene.add_backend()
    assert len(scene.call("GET", f"/api/webhooks?project={scene.project}")) == 1


def test_patching_a_backend_needs_its_url(scene: Scene) -> None:
    row = scene.add_backend()
    scene.backend.calls.clear()
    scene.call("PATCH", f"/api/ml/{row['id']}", {"title": "x"}, expect=500)
    scene.backend.calls.clear()
    scene.call("PATCH", f"/api/ml/{row['id']}", {"url": row["url"], "project": scene.project, "title": "x"})
    assert scene.backend.paths() == ["GET /health", "POST /setup"] * 3
    assert scene.call("GET", f"/api/projects/{scene.project}")["model_version"] == "x"


def test_switches_and_the_half_made_row(scene: Scene) -> None:
    body = {"url": scene.backend.url, "project": scene.project, "title": "stub"}
    scene.studio.outgoing.block_backends = scene.studio.outgoing.block_webhooks = True
    refused = scene.call("POST", "/api/ml", body, expect=403)
    assert "reserved network address (block: 127.0.0.0/8)" in refused["detail"]
    assert refused["id"]  # error bodies have an id too
    assert (scene.backend.calls, scene.studio.state.backends) == ([], {})
    scene.studio.outgoing.block_backends = False
    for rows in (1, 2):
        scene.call("POST", "/api/ml", body, expect=403)
        assert len(scene.studio.state.backends) == rows
    assert scene.studio.state.webhooks == {}
    assert scene.backend.paths() == ["GET /health", "POST /setup"] * 2


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        pytest.param({"/health": (401, {})}, "authentication parameters", id="login"),
        pytest.param({"/health": (500, {})}, "health check failed", id="health"),
        pytest.param({"/setup": (400, {})}, "doesn't look like a valid ML backend", id="setup"),
    ],
)
def test_a_backend_that_does_not_answer_well_is_refused(scene: Scene, answers: dict[str, Any], says: str) -> None:
    scene.backend.answers.update(answers)
    refused = scene.call(
        "POST", "/api/ml", {"url": scene.backend.url, "project": scene.project, "title": "x"}, expect=400
    )
    assert says in refused["validation_errors"]["non_field_errors"][0]
    assert scene.studio.state.backends == {}


# --- predictions ------------------------------------------------------------------------------------


def stored(scene: Scene) -> list[int]:
    """How many predictions each task has."""
    return [len(scene.studio.predictions(task)) for task in scene.tasks]


def retrieve(scene: Scene) -> None:
    scene.call(
        "POST",
        f"/api/dm/actions?id=retrieve_tasks_predictions&project={scene.project}",
        {"selectedItems": {"all": True}},
    )


@pytest.mark.parametrize(
    ("answer", "after"),
    [
        pytest.param({"results": [{"result": []}] * 3}, [1, 1, 1], id="one each"),
        pytest.param({"results": [{"result": []}] * 2}, [0, 0, 0], id="too few: good ones are lost too"),
        pytest.param({"results": [{"result": []}, {"error": "x"}, {"result": []}]}, [1, 0, 1], id="one without result"),
        pytest.param({"results": [{"result": []}, [{"result": []}] * 2, []]}, [1, 2, 0], id="lists"),
        pytest.param({"results": [{"result": []}]}, [1, 1, 1], id="exactly one: asked one by one"),
        pytest.param([{"result": []}] * 3, [0, 0, 0], id="a list instead of an object"),
    ],
)
def test_batch_answers(scene: Scene, answer: Any, after: list[int]) -> None:
    scene.add_backend()
    scene.backend.answers["/predict"] = (200, answer)
    retrieve(scene)
    assert stored(scene) == after


def test_a_version_that_differs_from_setup_is_stored_again_and_again(scene: Scene) -> None:
    scene.add_backend()
    for expected in ([1, 1, 1], [1, 1, 1]):
        retrieve(scene)
        assert stored(scene) == expected
    scene.backend.predicts_as = "stub-v2"
    scene.backend.model_version = "stub-v3"
    for expected in ([2, 2, 2], [3, 3, 3]):
        retrieve(scene)
        assert stored(scene) == expected


def test_a_bad_item_refuses_the_whole_batch(scene: Scene) -> None:
    scene.add_backend()
    for item in ({"result": None}, {"result": [], "score": "abc"}, {"result": [], "model_version": None}):
        scene.backend.answers["/predict"] = (200, {"results": [{"result": []}, item, {"result": []}]})
        path = f"/api/dm/actions?id=retrieve_tasks_predictions&project={scene.project}"
        scene.call("POST", path, {"selectedItems": {"all": True}}, expect=400)
        assert stored(scene) == [0, 0, 0]


def test_only_the_first_backend_is_asked_and_a_stored_version_asks_nobody(scene: Scene) -> None:
    with FakeBackend(model_version="second") as second:
        scene.add_backend()
        scene.call("POST", "/api/ml", {"url": second.url, "project": scene.project, "title": "second"}, expect=201)
        scene.call("PATCH", f"/api/projects/{scene.project}", {"model_version": "second"})
        second.calls.clear()
        scene.call("GET", f"/api/projects/{scene.project}/next")
        assert second.calls == []
    assert stored(scene) == [1, 0, 0]
    scene.call("PATCH", f"/api/projects/{scene.project}", {"model_version": "stub-v1"})
    scene.backend.calls.clear()
    shown = scene.call("GET", f"/api/projects/{scene.project}/next")
    assert [row["model_version"] for row in shown["predictions"]] == ["stub-v1"]
    assert scene.backend.calls == []


def test_bulk_import_drops_without_a_word_and_refuses_unknown_tasks(scene: Scene) -> None:
    path = f"/api/projects/{scene.project}/import/predictions"
    good = {"task": scene.tasks[0], "result": [REGION], "score": 0.5}
    bad = {"task": scene.tasks[1], "result": [{**REGION, "type": "rectangle"}], "score": 0.5}
    assert scene.call("POST", path, [good, good, bad], expect=201) == {"created": 2}
    assert [row["model_version"] for row in scene.studio.predictions(scene.tasks[0])] == ["undefined"] * 2
    scene.call("POST", path, [good, {**good, "task": 999}], expect=400)
    scene.call("POST", path, [good, {**good, "task": str(scene.tasks[0])}], expect=400)
    scene.call("POST", path, {"task": 1}, expect=500)
    assert stored(scene) == [2, 0, 0]


def region(**change: Any) -> dict[str, Any]:
    value = {**REGION["value"], **change.pop("value", {})}
    return {**REGION, **change, "value": value}


@pytest.mark.parametrize(
    ("prediction", "valid"),
    [
        pytest.param({"result": [region()], "score": 1}, True, id="good"),
        pytest.param({"result": []}, True, id="empty, no score"),
        pytest.param({"result": [region(value={"rectanglelabels": []})]}, True, id="no label"),
        pytest.param({"result": [region(value={"rotation": -5})]}, True, id="negative rotation"),
        pytest.param({"result": [region(), {"type": "relation", "from_id": "a", "to_id": "b"}]}, True, id="relation"),
        pytest.param({"result": {}}, False, id="result is no list"),
        pytest.param({"result": [region()], "score": 1.01}, False, id="score above 1"),
        pytest.param({"result": [region()], "score": float("nan")}, False, id="score NaN"),
        pytest.param({"result": [region(value={"x": 100.5})]}, False, id="beyond the edge"),
        pytest.param({"result": [region(value={"x": float("nan")})]}, False, id="NaN"),
        pytest.param({"result": [region(value={"rotation": 361})]}, False, id="rotation"),
        pytest.param({"result": [region(value={"rectanglelabels": ["Bus"]})]}, False, id="unknown label"),
        pytest.param({"result": [region(value={"rectanglelabels": None, "labels": ["Car"]})]}, False, id="wrong key"),
        pytest.param({"result": [region(from_name="other")]}, False, id="unknown control"),
        pytest.param({"result": [region(to_name="other")]}, False, id="unknown object"),
        pytest.param({"result": [{"from_name": "label", "to_name": "image", "value": {}}]}, False, id="no type"),
    ],
)
def test_which_predictions_are_valid(prediction: Any, valid: bool) -> None:
    assert is_valid(prediction, CONFIG) is valid


# --- tasks, files, tokens ---------------------------------------------------------------------------


def test_a_hundred_thousand_tasks(scene: Scene) -> None:
    project = scene.studio.add_project("many", CONFIG)
    ids = scene.studio.add_tasks(project, ({"image": f"{number}.jpg"} for number in range(100_000)))
    last = scene.call("GET", f"/api/tasks?project={project}&page=200&page_size=500&include=id,data")
    assert (last["total"], last["tasks"][-1]) == (100_000, {"id": ids[-1], "data": {"image": "99999.jpg"}})
    beyond = scene.call("GET", f"/api/tasks?project={project}&page=201&page_size=500", expect=404)
    assert beyond["detail"] == "Invalid page."


def test_filters_and_order(scene: Scene) -> None:
    scores = {scene.tasks[0]: 0.9, scene.tasks[2]: 0.1}
    items = [{"task": task, "result": [], "score": score, "model_version": "m1"} for task, score in scores.items()]
    scene.call("POST", f"/api/projects/{scene.project}/import/predictions", items, expect=201)
    scene.call("PATCH", f"/api/projects/{scene.project}", {"model_version": "m1"})

    def selected(data: dict[str, Any]) -> list[int]:
        view = scene.call("POST", "/api/dm/views", {"project": scene.project, "data": data}, expect=201)
        page = scene.call("GET", f"/api/tasks?project={scene.project}&view={view['id']}&include=id")
        return [task["id"] for task in page["tasks"]]

    first, second, third = scene.tasks
    assert selected({"ordering": ["tasks:predictions_score"]}) == [third, first, second]
    assert selected({"ordering": ["-tasks:predictions_score"]}) == [first, third, second]
    lacks = {
        "filter": "filter:tasks:predictions_model_versions",
        "operator": "not_contains",
        "type": "List",
        "value": ["m1"],
    }
    assert selected({"filters": {"conjunction": "and", "items": [lacks]}}) == [second]
    scene.studio.advance(60)
    since = timestamp(scene.studio.clock())
    scene.call("POST", "/api/predictions", {"task": first, "result": [], "model_version": "m2"}, expect=201)
    newer = {"filter": "filter:tasks:updated_at", "operator": "greater", "type": "Datetime", "value": since}
    assert selected({"filters": {"conjunction": "and", "items": [newer]}}) == [first]


def test_uploads(scene: Scene) -> None:
    address = scene.call("GET", f"/api/tasks/{scene.tasks[0]}")["data"]["image"]
    whole = scene.http.get(address)
    assert (whole.content, whole.headers["content-type"]) == (b"\xff\xd8\r\n", "image/jpeg")
    part = scene.http.get(address, headers={"Range": "bytes=1-2"})
    assert (part.status_code, part.content, part.headers["content-range"]) == (206, b"\xd8\r", "bytes 1-2/4")
    assert httpx.get(scene.studio.url + address).status_code == 401
    assert scene.http.get(address + "x").status_code == 500  # not 404


def test_cloud_addresses(scene: Scene) -> None:
    scene.call("POST", "/api/storages/s3", {"project": scene.project, "bucket": "b", "presign": True}, expect=201)
    scene.studio.state.objects["s3://b/a b.jpg"] = b"picture"
    task = scene.studio.add_tasks(scene.project, [{"image": "s3://b/a b.jpg"}])[0]

    def resolve(uri: str) -> httpx.Response:
        coded = base64.urlsafe_b64encode(uri.encode()).decode()
        return scene.http.get(f"/tasks/{task}/resolve/?fileuri={coded}")

    there = resolve("s3://b/a b.jpg")
    assert there.status_code == 303
    target = scene.studio.url + there.headers["location"]
    assert httpx.get(target).content == b"picture"
    assert scene.http.get(target).status_code == 400  # two kinds of authentication
    assert resolve("s3://other/a.jpg").status_code == 404
    scene.studio.state.storages[1]["presign"] = False
    assert resolve("s3://b/a b.jpg").content == b"picture"


def test_tokens(scene: Scene) -> None:
    studio = scene.studio
    made = scene.call("POST", "/api/token/", {}, expect=201)["token"]
    scene.call("POST", "/api/token/", {}, expect=409)
    access = httpx.post(f"{studio.url}/api/token/refresh", json={"refresh": made}).json()["access"]

    def asks(authorization: str) -> int:
        return httpx.get(f"{studio.url}/api/projects", headers={"Authorization": authorization}).status_code

    assert [asks(f"Bearer {access}"), asks(f"Bearer {made}"), asks(f"Token {made}")] == [200, 401, 401]
    assert [asks(f"Token {studio.token}"), asks(f"Bearer {studio.token}"), asks("")] == [200, 401, 401]
    assert asks(f"Bearer {access[:-2]}AA") == 401
    studio.advance(240)
    assert asks(f"Bearer {access}") == 200
    studio.advance(61)
    assert asks(f"Bearer {access}") == 401
    newer = scene.call("POST", "/api/token/rotate", {"refresh": made})["refresh"]
    assert httpx.post(f"{studio.url}/api/token/refresh", json={"refresh": made}).status_code == 401
    assert newer == studio.personal_access_token


def test_deleting_a_version_forgets_a_selected_title(scene: Scene) -> None:
    scene.add_backend()
    retrieve(scene)
    path = f"/api/projects/{scene.project}/model-versions"
    assert scene.call("DELETE", path, {"model_version": "stub-v1"}) == {"deleted_predictions": 3}
    assert scene.call("GET", f"/api/projects/{scene.project}")["model_version"] is None


def test_it_goes_on_after_a_stop_on_the_same_port(scene: Scene) -> None:
    scene.studio.stop()
    with pytest.raises(httpx.ConnectError):
        scene.http.get("/health")
    scene.studio.start()
    assert scene.call("GET", f"/api/tasks?project={scene.project}")["total"] == 3

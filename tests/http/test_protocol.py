"""Label Studio's calls against a real server: the recordings, odd input, load, and what happens while models load."""

from __future__ import annotations

import base64
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from labelloop.core.errors import ModelError
from labelloop.core.regions import Box, Region
from labelloop.store import schema
from labelloop.testing import FakeEngine, FakeLabelStudio
from reference.running_server import CONFIG, jpeg


@pytest.fixture(scope="module")
def recordings(shared: Path) -> dict[str, Any]:
    return {path.stem: json.loads(path.read_text()) for path in (shared / "label-studio" / "recordings").glob("*.json")}


def uploads(studio: FakeLabelStudio, count: int) -> list[dict[str, Any]]:
    project = studio.add_project("pictures", CONFIG)
    return [
        {"id": n + 1, "data": {"image": studio.add_upload(project, f"{n}.jpg", jpeg(80 + n, seed=n))}}
        for n in range(count)
    ]


def test_boxes_arrive_in_percent_under_the_version_of_setup(start, studio) -> None:
    backend = start()
    version = backend.setup(1, studio=studio)
    answer = backend.predict(uploads(studio, 3)).json()
    assert [item["model_version"] for item in answer["results"]] == [version] * 3
    for number, item in enumerate(answer["results"]):
        (region,) = item["result"]
        assert region["value"] == {
            "x": 25,
            "y": 25,
            "width": 50,
            "height": 50,
            "rotation": 0,
            "rectanglelabels": ["Car"],
        }
        assert (region["original_width"], region["original_height"]) == (80 + number, 40), "in the order of the tasks"


def test_every_recorded_request_is_answered(start, recordings) -> None:
    backend = start(media_timeout_s=0.5, label_studio_url="http://127.0.0.1:1")
    for name, recording in recordings.items():
        if "path" not in recording:
            continue
        answer = backend.http.request(recording["method"], recording["path"], json=recording["body"])
        assert answer.status_code in (200, 201), (name, answer.text)
        if recording["path"] == "/predict":
            items = answer.json()["results"]
            assert len(items) == len(recording["body"]["tasks"]), name
            assert all(isinstance(item, dict) for item in items), name


@pytest.mark.parametrize(
    ("uri", "code"),
    [
        ("/data/upload/1/00000000-gone.jpg", "media-not-found"),
        ("data:image/png;base64,AAAA", "media-undecodable"),
        ("http://169.254.169.254/latest/meta-data", "media-refused"),
        ("file:///etc/passwd", "media-refused"),
        ("", "media-not-found"),
    ],
)
def test_a_picture_that_cannot_be_had_never_shortens_the_list(start, studio, uri: str, code: str) -> None:
    backend = start()
    version = backend.setup(1, studio=studio)
    first, second = uploads(studio, 2)
    items = backend.predict([first, {"id": 77, "data": {"image": uri}}, second]).json()["results"]
    assert [len(item["result"]) for item in items] == [1, 0, 1]
    assert (items[1]["score"], items[1]["model_version"]) == (0, version)
    (failure,) = backend.http.get("/api/failures?project=1").json()["failures"]
    assert (failure["task_id"], failure["code"]) == (77, code)
    assert (
        f'labelloop_predict_failures_total{{code="{code}",model="cars",version="1"}} 1.0'
        in backend.http.get("/metrics").text
    )


def test_failed_items_may_be_left_for_later(start, studio) -> None:
    backend = start(failed_items="skip")
    backend.setup(1, studio=studio)
    items = backend.predict([{"id": 7, "data": {"image": "file:///x"}}, *uploads(studio, 1)]).json()["results"]
    assert "result" not in items[0]
    assert len(items[1]["result"]) == 1


def test_a_model_that_fails_on_one_picture_answers_the_others(start, studio) -> None:
    def find(picture: Any) -> tuple[Region, ...]:
        if picture.size.width == 81:
            raise ValueError("cannot bear 81")
        return (Region(Box((1, 1, 9, 9)), "car", 0.9),)

    backend = start(engine=FakeEngine(find))
    backend.setup(1, studio=studio)
    items = backend.predict(uploads(studio, 4)).json()["results"]
    assert [len(item["result"]) for item in items] == [1, 0, 1, 1]
    assert "cannot bear 81" in items[1]["error"]


def test_a_stranger_mixture_of_tasks_is_answered_in_order(start, studio) -> None:
    backend = start()
    backend.setup(1, studio=studio)
    good = uploads(studio, 1)[0]
    items = backend.predict(
        [None, {}, {"id": 1}, {"id": 2, "data": None}, {"id": 3, "data": {"image": 5}}, good]
    ).json()["results"]
    assert [len(item["result"]) for item in items] == [0, 0, 0, 0, 0, 1]


def test_no_tasks_no_results(start) -> None:
    assert start().predict([]).json()["results"] == []


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"tasks": 5}'])
def test_a_body_that_is_no_request_says_why(start, body: bytes) -> None:
    answer = start().http.post("/predict", content=body)
    assert answer.status_code == 400
    assert "request body" in answer.json()["message"]


def test_an_unreadable_label_config_says_why(start) -> None:
    answer = start().predict([], config="<View>")
    assert answer.status_code == 400
    assert "XML" in answer.json()["message"]


def test_a_click_gives_the_box_around_it(start, studio) -> None:
    def find(_picture: Any) -> tuple[Region, ...]:
        boxes = ((0.0, 0.0, 30.0, 40.0), (40.0, 0.0, 70.0, 40.0), (0.0, 0.0, 80.0, 40.0))
        return tuple(Region(Box(box), "car", 0.9) for box in boxes)

    backend = start(engine=FakeEngine(find))
    backend.setup(1, studio=studio)
    click = {
        "id": "p", "type": "keypointlabels", "from_name": "kp", "to_name": "img", "is_positive": True,
        "original_width": 80, "original_height": 40, "value": {"x": 60, "y": 50, "width": 0.3, "keypointlabels": ["Car"]},
    }  # fmt: skip
    (item,) = backend.predict(uploads(studio, 1), context={"result": [click]}).json()["results"]
    (region,) = item["result"]
    assert region["value"]["x"] == 50, "the smaller one of the two around the click"


# --- while models load ------------------------------------------------------------------------------


def test_setup_and_health_answer_while_weights_load(start, studio) -> None:
    let_go = threading.Event()

    def load(_version: Any) -> FakeEngine:
        assert let_go.wait(10)
        return FakeEngine()

    backend = start(load=load)
    try:
        assert backend.http.get("/health").json()["status"] == "UP"
        version = backend.setup(1, studio=studio)
        ready = backend.http.get("/ready")
        assert (ready.status_code, ready.json()["models"]) == (503, {"cars@1": "loading"})
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(backend.predict, uploads(studio, 1))
            backend.wait(lambda: "labelloop_predict_in_flight 1.0" in backend.http.get("/metrics").text)
            let_go.set()
            (item,) = waiting.result(10).json()["results"]
    finally:
        let_go.set()
    assert item["model_version"] == version, "the request that came early got the answer"
    assert len(item["result"]) == 1
    assert backend.http.get("/ready").status_code == 200


def test_a_model_that_does_not_load_is_told_and_asked_again_later(start, studio) -> None:
    def load(_version: Any) -> FakeEngine:
        raise ModelError("The file is broken.", hint="Export it again.")

    backend = start(load=load)
    backend.setup(1, studio=studio)
    (item,) = backend.predict(uploads(studio, 1)).json()["results"]
    assert "result" not in item, "nothing is stored, so Label Studio asks again"
    assert item["error"] == "The file is broken. Export it again."
    (model,) = backend.http.get("/api/models").json()["models"]
    assert (model["state"], model["error"]) == ("failed", "The file is broken. Export it again.")


def test_what_is_not_done_in_time_is_left_for_later_and_the_rest_arrives(start, studio) -> None:
    engine = FakeEngine(max_batch=1)
    backend = start(engine=engine, predict_deadline_s=1)
    backend.setup(1, studio=studio)
    backend.wait_ready()
    tasks = uploads(studio, 3)
    original = engine.predict
    done = []

    def first_two_only(batch: Any) -> Any:
        done.append(1)
        if len(done) > 2:
            engine.gate.clear()
        return original(batch)

    engine.predict = first_two_only  # type: ignore[method-assign]
    items = backend.predict(tasks).json()["results"]
    assert ["result" in item for item in items].count(True) == 2
    late = next(item for item in items if "result" not in item)
    assert "stops waiting" in late["error"]


# --- load -------------------------------------------------------------------------------------------


def test_a_full_queue_answers_at_once_and_says_when_to_come_back(start, studio) -> None:
    backend = start(queue_limit=2)
    backend.setup(1, studio=studio)
    backend.wait_ready()
    tasks = uploads(studio, 1)
    backend.engine.gate.clear()
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(backend.predict, tasks) for _ in range(2)]
        backend.wait(lambda: "labelloop_predict_in_flight 2.0" in backend.http.get("/metrics").text)
        refused = backend.predict(tasks)
        assert refused.status_code == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert backend.http.get("/health").status_code == 200
        backend.engine.gate.set()
        assert [answer.result(10).status_code for answer in waiting] == [200, 200]
    assert backend.predict(tasks).status_code == 200, "and it goes on"


def test_a_request_with_many_tasks_is_not_refused_for_its_size(start) -> None:
    backend = start(queue_limit=1)
    tasks = [
        {"id": n, "data": {"image": "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()}} for n in range(300)
    ]
    items = backend.predict(tasks).json()["results"]
    assert [len(item["result"]) for item in items] == [1] * 300


# --- versions ---------------------------------------------------------------------------------------


def test_a_project_without_a_model_is_told_what_to_do(start, studio) -> None:
    backend = start(models=("cars", "dogs"))
    assert backend.setup(5, studio=studio) == "no-model"
    (item,) = backend.predict(uploads(studio, 1), project=5).json()["results"]
    assert "result" not in item
    assert "labelloop models use 5 NAME" in item["error"]


def test_assigning_another_model_reaches_a_running_server(start, studio) -> None:
    backend = start(models=("cars", "dogs"))
    backend.parts.store.registry.bind(1, "cars")
    backend.wait(lambda: backend.setup(1, studio=studio).startswith("cars@1."))
    before = backend.setup(1)
    begun = time.monotonic()
    backend.parts.store.registry.bind(1, "dogs")
    backend.wait(lambda: backend.setup(1).startswith("dogs@1."))
    assert time.monotonic() - begun < 5
    (item,) = backend.predict(uploads(studio, 1)).json()["results"]
    assert item["model_version"] == backend.setup(1) != before


def test_the_old_version_serves_while_the_new_one_loads(start, studio) -> None:
    let_go = threading.Event()

    def load(version: Any) -> FakeEngine:
        assert version.name == "cars" or let_go.wait(10)
        return FakeEngine()

    backend = start(load=load, models=("cars", "dogs"))
    try:
        backend.parts.store.registry.bind(1, "cars")
        backend.wait(lambda: backend.setup(1, studio=studio).startswith("cars"))
        backend.wait_ready()
        backend.parts.store.registry.bind(1, "dogs")
        backend.wait(lambda: "dogs@1" in backend.http.get("/ready").json()["models"])
        (item,) = backend.predict(uploads(studio, 1)).json()["results"]
        assert item["model_version"] == backend.setup(1)
        assert item["model_version"].startswith("cars")
    finally:
        let_go.set()
    backend.wait(lambda: backend.setup(1).startswith("dogs"))


def test_the_version_changes_exactly_when_the_answer_could(start) -> None:
    backend = start()
    version = backend.setup(1)
    assert backend.setup(1) == backend.setup(2) == version
    assert backend.setup(1, config=CONFIG.replace("<View>", '<View><Header value="hi"/>')) == version
    assert backend.setup(1, config=CONFIG.replace('toName="img"', 'toName="img" score_threshold="0.7"')) != version
    assert backend.http.get("/versions").json()["versions"]


# --- the other calls --------------------------------------------------------------------------------


def test_events_become_rows_without_people_or_secrets(start, recordings) -> None:
    backend = start()
    body = recordings["webhook_annotation_created"]["body"]
    assert backend.http.post("/webhook", json=body).status_code == 201
    with backend.parts.store.events._engine.connect() as connection:
        (row,) = connection.execute(select(schema.events)).all()
    assert (row.action, row.project_id, row.task_ids, row.annotation_ids) == ("ANNOTATION_CREATED", 1, [2], [2])
    assert row.handled_at is None
    assert body["project"]["token"] not in str(row)


def test_start_training_is_answered_at_once(start, recordings) -> None:
    backend = start()
    answer = backend.http.post("/webhook", json=recordings["webhook_start_training"]["body"]).json()
    assert isinstance(answer["job"], str)
    old = backend.http.post("/train", json=recordings["train_legacy_flag_off"]["body"]).json()
    assert old["job"] != answer["job"]


def test_old_calls_are_answered(start) -> None:
    backend = start()
    backend.parts.store.registry.bind(1, "cars")
    backend.wait(lambda: 1 in backend.parts.projects.catalogue.bindings)
    assert backend.http.post("/validate", json={"config": CONFIG}).status_code == 200
    assert backend.http.post("/validate", json={"config": "<View>"}).status_code == 400
    assert backend.http.post("/duplicate_model", json={"project_src": "1.1", "project_dst": "2.1"}).status_code == 200
    assert backend.parts.store.registry.catalogue().bindings[2].name == "cars"
    assert backend.http.post("/job_status", json={"job": "1"}).status_code == 200
    assert backend.http.post("/delete", json={"project": "1.1"}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"ann:wrong").decode()}, 401),
        ({"Authorization": "Bearer abc"}, 401),
        ({"Authorization": "Basic ???"}, 401),
        ({"Authorization": "Basic " + base64.b64encode("änn:paß".encode()).decode()}, 200),
    ],
    ids=["nothing", "wrong password", "another scheme", "not base64", "right"],
)
def test_basic_auth(start, headers: dict[str, str], status: int) -> None:
    backend = start(basic_auth_user="änn", basic_auth_pass="paß")
    assert backend.http.get("/health").status_code == 200, "health stays open"
    for method, path in (("GET", "/"), ("POST", "/setup"), ("GET", "/api/models"), ("GET", "/metrics")):
        answer = backend.http.request(method, path, json={} if method == "POST" else None, headers=headers)
        assert answer.status_code == status, path

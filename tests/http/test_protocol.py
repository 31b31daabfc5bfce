"""Label Studio's calls against a real server: the recordings, odd input, load, and what happens while models load."""

from __future__ import annotations

import base64
import json
import socket
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from labelloop.core.errors import ModelError
from labelloop.core.regions import Box, Region
from labelloop.http.auth import BasicAuth
from labelloop.learning.memory import recall
from labelloop.learning.pool import Observation
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


TWO = (
    '<View><Image name="a" value="$image"/><Image name="b" value="$other"/>'
    '<RectangleLabels name="on_a" toName="a"><Label value="Car"/></RectangleLabels>'
    '<RectangleLabels name="on_b" toName="b"><Label value="Car"/></RectangleLabels></View>'
)
PAGES = CONFIG.replace('value="$image"', 'valueList="$image"')


def click(name: str, *, page: int | None = None) -> dict[str, Any]:
    mark = {
        "id": "p", "type": "keypointlabels", "from_name": "kp", "to_name": name, "is_positive": True,
        "original_width": 80, "original_height": 40, "value": {"x": 50, "y": 50, "width": 0.3, "keypointlabels": ["Car"]},
    }  # fmt: skip
    return {"result": [mark if page is None else mark | {"item_index": page}]}


def test_a_click_on_one_of_two_pictures_is_about_that_one(start, studio) -> None:
    backend = start()
    backend.setup(1, studio=studio)
    first, second = (task["data"]["image"] for task in uploads(studio, 2))
    task = {"id": 1, "data": {"image": first, "other": second}}
    (both,) = backend.predict([task], config=TWO).json()["results"]
    assert sorted(region["from_name"] for region in both["result"]) == ["on_a", "on_b"]
    (one,) = backend.predict([task], config=TWO, context=click("b")).json()["results"]
    assert [region["from_name"] for region in one["result"]] == ["on_b"]


def test_a_click_on_a_page_looks_at_that_page_only(start, studio) -> None:
    looked: list[int] = []

    def find(picture: Any) -> tuple[Region, ...]:
        looked.append(picture.size.width)
        return (Region(Box((1, 1, 79, 39)), "car", 0.9),)

    backend = start(engine=FakeEngine(find))
    backend.setup(1, studio=studio)
    backend.wait_ready()
    looked.clear()
    pages = [task["data"]["image"] for task in uploads(studio, 3)]
    (item,) = backend.predict([{"id": 1, "data": {"image": pages}}], config=PAGES, context=click("img", page=1)).json()[
        "results"
    ]
    assert looked == [81]
    assert [region["item_index"] for region in item["result"]] == [1]


def test_a_click_that_fails_still_gets_a_result(start, studio) -> None:
    backend = start(models=("cars", "dogs"))
    (item,) = backend.predict(uploads(studio, 1), context=click("img")).json()["results"]
    assert item["result"] == [], "no model is assigned"
    backend.parts.store.registry.bind(1, "cars")
    backend.wait(lambda: backend.setup(1, studio=studio).startswith("cars"))
    (item,) = backend.predict([{"id": 1, "data": {"image": "file:///x"}}], context=click("img")).json()["results"]
    assert item["result"] == []


def test_a_task_without_pages_says_so(start) -> None:
    (item,) = start().predict([{"id": 1, "data": {"image": []}}], config=PAGES).json()["results"]
    assert item["result"] == []
    assert "list of pages 'image' is empty" in item["error"]


# --- while models load ------------------------------------------------------------------------------


def test_setup_and_health_answer_while_weights_load(start, studio) -> None:
    let_go = threading.Event()

    def load(_version: Any) -> FakeEngine:
        assert let_go.wait(60)
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


def test_a_task_with_a_page_that_came_too_late_is_left_for_later(start, studio) -> None:
    engine = FakeEngine(max_batch=1)
    backend = start(engine=engine, predict_deadline_s=1)
    backend.setup(1, studio=studio)
    backend.wait_ready()
    original, done = engine.predict, []

    def first_only(batch: Any) -> Any:
        done.append(1)
        if len(done) > 1:
            engine.gate.clear()
        return original(batch)

    engine.predict = first_only  # type: ignore[method-assign]
    pages = [task["data"]["image"] for task in uploads(studio, 2)]
    (item,) = backend.predict([{"id": 1, "data": {"image": pages}}], config=PAGES).json()["results"]
    assert "result" not in item, "half a task stored would count as done"


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


def test_a_refusal_does_not_wait_for_the_body(start) -> None:
    backend = start(queue_limit=1)
    backend.setup(1)
    backend.wait_ready()
    backend.engine.gate.clear()
    backend.engine.entered.clear()
    picture = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(backend.predict, [{"id": 1, "data": {"image": picture}}])
        assert backend.engine.entered.wait(10)

        host, port = backend.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=10) as line:
            line.sendall(f"POST /predict HTTP/1.1\r\nHost: {host}\r\nContent-Length: 99999999\r\n\r\n{{".encode())
            assert line.recv(100).startswith(b"HTTP/1.1 503"), "although the body has only begun"
        backend.engine.gate.set()
        assert waiting.result(10).status_code == 200


def test_a_caller_who_left_leaves_the_queue(start) -> None:
    backend = start(queue_limit=1)
    backend.setup(1)
    backend.wait_ready()
    backend.engine.gate.clear()
    backend.engine.entered.clear()
    picture = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(
            backend.url + "/predict",
            json={"tasks": [{"id": 1, "data": {"image": picture}}], "project": "1", "label_config": CONFIG},
            timeout=1,
            trust_env=False,
        )
    backend.wait(lambda: "labelloop_predict_in_flight 0.0" in backend.http.get("/metrics").text)


def test_a_large_answer_does_not_keep_health_waiting(start, studio) -> None:
    def find(_picture: Any) -> tuple[Region, ...]:
        return tuple(Region(Box((n % 40, 1.0, n % 40 + 9, 9.0)), "car", 0.9) for n in range(100))

    backend = start(engine=FakeEngine(find))
    backend.setup(1, studio=studio)
    (task,) = uploads(studio, 1)
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(backend.predict, [task] * 200)
        while not answer.done():
            assert httpx.get(backend.url + "/health", timeout=1, trust_env=False).status_code == 200
        items = answer.result().json()["results"]
    assert [len(item["result"]) for item in items] == [100] * 200


def test_a_store_that_is_busy_costs_no_answer(start, studio) -> None:
    backend = start(predict_deadline_s=5)
    backend.setup(1, studio=studio)
    backend.wait_ready()
    tasks = [{"id": 2**70, "data": {"image": "file:///x"}}, *uploads(studio, 1)]
    with sqlite3.connect(backend.home / "labelloop.db") as connection:
        connection.execute("BEGIN EXCLUSIVE")
        begun = time.monotonic()
        items = backend.predict(tasks).json()["results"]
        assert [len(item["result"]) for item in items] == [0, 1]
        assert backend.http.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 1}}).status_code == 503
        assert time.monotonic() - begun < 5
        connection.rollback()
    assert backend.http.post("/webhook", json={"action": "TASKS_CREATED", "project": {"id": 1}}).status_code == 201


# --- versions ---------------------------------------------------------------------------------------


def test_a_project_without_a_model_is_told_what_to_do(start, studio) -> None:
    backend = start(models=("cars", "dogs"))
    assert backend.setup(5, studio=studio) == "no-model"
    (item,) = backend.predict(uploads(studio, 1), project=5).json()["results"]
    assert "result" not in item
    assert "labelloop models use 5 NAME" in item["error"]


@pytest.mark.parametrize(
    ("classes", "step"),
    [(("lorry", "van"), 'predicted_values="CLASS"'), (("class_0", "class_1"), "--labels names.txt (or coco)")],
    ids=["other names", "no names"],
)
def test_a_model_that_fits_no_label_is_told_what_to_do(start, studio, classes: tuple[str, ...], step: str) -> None:
    backend = start(engine=FakeEngine(classes=classes))
    backend.setup(1, studio=studio)
    (item,) = backend.predict(uploads(studio, 1)).json()["results"]
    assert "No class of cars@1 maps to a label of this project." in item["error"]
    assert step in item["error"]


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
        assert version.name == "cars" or let_go.wait(60)
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
        ({"Origin": "https://evil.example", "Content-Type": "text/plain"}, 403),
        ({"Origin": "http://rebind.example", "Host": "rebind.example"}, 403),
        ({"Host": "rebind.example:9090"}, 403),
        ({"Host": "[::1]:9090"}, 200),
        ({"Host": "localhost"}, 200),
    ],
    ids=["a foreign page", "a page whose name points here", "a name of another machine", "a number", "localhost"],
)
def test_web_pages_cannot_use_the_server_of_the_person_who_looks_at_them(
    start, headers: dict[str, str], status: int
) -> None:
    backend = start()
    answer = backend.http.post("/setup", content=b'{"project": "1.1", "schema": "<View/>"}', headers=headers)
    assert answer.status_code == status


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Basic " + base64.b64encode(b"ann:wrong").decode()}, 401),
        ({"Authorization": "Bearer abc"}, 401),
        ({"Authorization": "Basic ???"}, 401),
        ({"Authorization": "Basic " + base64.b64encode("änn:paß".encode()).decode()}, 200),
        ({"Authorization": "Basic " + base64.b64encode("änn:paß".encode("latin-1")).decode()}, 200),
    ],
    ids=["nothing", "wrong password", "another scheme", "not base64", "right", "right, as Label Studio writes it"],
)
def test_basic_auth(start, headers: dict[str, str], status: int) -> None:
    backend = start(basic_auth_user="änn", basic_auth_pass="paß")
    assert backend.http.get("/health").status_code == 200, "health stays open"
    for method, path in (("GET", "/"), ("POST", "/setup"), ("GET", "/api/models"), ("GET", "/metrics")):
        answer = backend.http.request(method, path, json={} if method == "POST" else None, headers=headers)
        assert answer.status_code == status, path


def test_letters_that_label_studio_cannot_send_are_no_question_marks() -> None:
    guess = b"Basic " + base64.b64encode(b"ann:??????")
    assert not BasicAuth("ann", "пароль").allows("/predict", [(b"authorization", guess)])


def test_what_is_answered_is_remembered_after_the_answer(start) -> None:
    backend = start(
        engine=FakeEngine(lambda _: (Region(Box((8, 8, 40, 30)), "car", 0.9), Region(Box((0, 0, 9, 9)), "car", 0.2)))
    )
    version = backend.setup(7)
    inline = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    tasks = [{"id": 1, "data": {"image": inline}}, {"id": 2, "data": {"image": "data:,x"}}, {"data": {"image": inline}}]
    answer = backend.predict(tasks, project=7).json()
    assert answer["results"][0]["score"] == pytest.approx(1 - (1 - abs(2 * 0.9 - 1)) ** 2)
    backend.predict([{"id": 3, "data": {"image": inline}}], project=7, context={"result": []})
    backend.parts.recorder.flush()
    (seen,) = backend.parts.store.scores.all(7, version)
    assert recall(seen) == Observation(1, (0.9,), ("Car",), hidden=0.2)

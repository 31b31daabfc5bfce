"""Texts through the same path as pictures: HTTP in, choices out, and nothing is fetched that is there already."""

from __future__ import annotations

import http.server
import threading
from pathlib import Path

import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.engines.text_file import TextModel
from labelloop.serving.models import add_model, load_engine


def config(*, tag: str = "Text", extra: str = "", choice: str = "single") -> str:
    return (
        f'<View><{tag} name="t" value="$review" {extra}/><Choices name="mood" toName="t" choice="{choice}">'
        '<Choice value="Good"/><Choice value="Bad"/></Choices></View>'
    )


@pytest.fixture
def backend(start, tmp_path: Path):
    """A server with one text classifier: "fine" is good, "awful" is bad."""
    file = tmp_path / "reviews.npz"
    weights = np.array([[6.0, -6.0], [-6.0, 6.0]], np.float32)
    TextModel(("good", "bad"), False, ("fine", "awful"), np.ones(2), weights, np.zeros(2)).write(file)
    settings = read_settings(home=tmp_path / "home")
    server = start(models=(), load=lambda version: load_engine(server.parts.store.registry, settings, version))
    add_model(server.parts.store.registry, file, ModelCard(name="reviews"), settings)
    server.parts.projects.refresh()
    server.wait_ready()
    return server


@pytest.mark.parametrize(
    ("tag", "review", "mood"),
    [
        ("Text", "it was fine", "Good"),
        ("Text", "awful, just awful", "Bad"),
        ("HyperText", "<style>awful</style><p>fi<b>ne</b></p>", "Good"),
        ("Text", "http://127.0.0.1:9/awful is where it says so", "Bad"),
    ],
    ids=["good", "bad", "markup is read as it is seen", "a text that begins with an address"],
)
def test_a_text_gets_its_choice(backend, tag: str, review: str, mood: str) -> None:
    version = backend.setup(1, config=config(tag=tag))
    (item,) = backend.predict([{"id": 5, "data": {"review": review}}], config=config(tag=tag)).json()["results"]
    assert item["model_version"] == version
    (result,) = item["result"]
    assert (result["from_name"], result["to_name"], result["type"]) == ("mood", "t", "choices")
    assert result["value"] == {"choices": [mood]}
    assert 0.9 < result["score"] <= 1
    assert item["score"] > 0.8, "a person is hardly needed"


def test_a_doubtful_text_has_a_lower_score(backend) -> None:
    tasks = [{"id": n, "data": {"review": text}} for n, text in enumerate(["fine", "fine but awful"])]
    sure, torn = (item["score"] for item in backend.predict(tasks, config=config()).json()["results"])
    assert torn < 0.2 < 0.8 < sure


def test_one_task_without_its_text_does_not_cost_the_others(backend) -> None:
    tasks = [{"id": 1, "data": {"review": "fine"}}, {"id": 2, "data": {}}, {"id": 3, "data": {"review": "awful"}}]
    first, second, third = backend.predict(tasks, config=config()).json()["results"]
    assert first["result"][0]["value"]["choices"] == ["Good"]
    assert "no 'review'" in second["error"]
    assert third["result"][0]["value"]["choices"] == ["Bad"]


def test_a_text_behind_an_address_is_fetched(backend, studio) -> None:
    project = studio.add_project("reviews", config(extra='valueType="url"'))
    path = studio.add_upload(project, "review.txt", "so awful".encode("utf-16"))
    asked = config(extra='valueType="url"')
    backend.setup(project, config=asked, studio=studio)
    (item,) = backend.predict([{"id": 5, "data": {"review": path}}], config=asked, project=project).json()["results"]
    assert item["result"][0]["value"]["choices"] == ["Bad"]


def test_texts_never_ask_the_network(backend) -> None:
    """What looks like an address is read as a text, unless the config says that it is one."""
    asked = threading.Event()

    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.set()
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Site) as site:
        threading.Thread(target=site.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{site.server_port}/fine"
        (item,) = backend.predict([{"id": 5, "data": {"review": url}}], config=config()).json()["results"]
        site.shutdown()
    assert item["result"][0]["value"]["choices"] == ["Good"]
    assert not asked.is_set()

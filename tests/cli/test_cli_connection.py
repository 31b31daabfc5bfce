"""`labelloop connect` and `labelloop doctor` as people type them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from labelloop.cli import app
from labelloop.core.cards import ModelCard
from labelloop.core.errors import ProjectElsewhere, SettingsError
from labelloop.core.settings import read_settings
from labelloop.serving.models import open_registry, open_store
from labelloop.testing import FakeBackend, FakeLabelStudio

CONFIG = """<View><Image name="picture" value="$photo"/>
<RectangleLabels name="thing" toName="picture"><Label value="Car"/></RectangleLabels></View>"""


@pytest.fixture(autouse=True)
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_API_KEY", "LABEL_STUDIO_TOKEN", "LABEL_STUDIO_HOST"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as server:
        number = server.add_project("Street", CONFIG)
        server.add_tasks(number, [{"photo": server.add_upload(number, "a.jpg", b"no picture")}])
        yield server


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_connect_then_doctor_remembers_the_address(studio: FakeLabelStudio) -> None:
    token = studio.personal_access_token
    registry = open_registry(read_settings())
    registry.add(None, ModelCard(name="cars", engine="empty", labels=("car", "bus")))
    with FakeBackend(model_version="cars@1.abcdef01") as backend:
        backend.answers["/ready"] = (200, {"ready": True, "models": {"cars@1": "ready"}})
        typed = ("connect", "street", "--url", studio.url, "--token", token, "--backend-url", backend.url)
        done = run(*typed, "--model", "cars")
        assert done.exit_code == 0, done.output
        assert "cars@1 serves project 1 (Street)." in done.output
        assert "added the backend 'labelloop'" in done.output
        assert "Classes of cars@1 without a label, so never shown: bus." in done.output
        assert f"Project 1 is connected: {studio.url}/projects/1/data" in done.output
        again = run(*typed)
        assert "was connected already" in again.output
        checked = run("doctor", "--backend-url", backend.url)
    assert checked.exit_code == 1
    assert "Street (project 1)" in checked.output
    assert "Task 1:" in checked.output  # the file is no picture, and nothing else is wrong
    assert "1 failed" in checked.output
    assert not any(secret in text.output for text in (done, again, checked) for secret in (token, studio.token))
    assert registry.connections() == [(studio.url, token)]
    assert registry.catalogue().bindings[1].number is None


def test_a_second_label_studio_with_the_same_project_number_needs_a_choice(studio: FakeLabelStudio) -> None:
    store = open_store(read_settings())
    registry = store.registry
    registry.add(None, ModelCard(name="cars", engine="empty", labels=("car",)))
    store.values.set("cars", "1", "kept", "of the first")
    with FakeBackend(model_version="cars@1.abcdef01") as backend, FakeLabelStudio() as second:
        backend.answers["/ready"] = (200, {"ready": True, "models": {"cars@1": "ready"}})
        typed = ("--backend-url", backend.url, "--model", "cars")
        assert run("connect", "1", "--url", studio.url, "--token", studio.token, *typed).exit_code == 0
        second.advance(1000)
        assert second.add_project("Rivers", CONFIG) == 1
        there = ("--url", second.url, "--token", second.token)
        for command in (
            ("connect", "1", *there, *typed),
            ("prelabel", "Rivers", *there, "--detach"),
            ("loop", "1", "on", *there),
            ("order", "1", *there),
            ("watch", "1", *there),
        ):
            refused = run(*command)
            assert isinstance(refused.exception, ProjectElsewhere), (command, refused.output)
            assert f"in {studio.url}" in str(refused.exception)
            assert "labelloop connect 1 --take-over" in str(refused.exception)
        assert [url for url, _ in registry.connections()] == [studio.url]
        assert not second.state.backends, "nothing was changed over there"
        same = run("connect", "1", "--url", studio.url, "--token", studio.token, *typed, "--take-over")
        assert same.exit_code == 0
        assert store.values.get("cars", "1", "kept"), "nothing to take over: nothing is forgotten"
        assert run("connect", "1", *there, *typed, "--take-over").exit_code == 0
        assert registry.connections()[0][0] == second.url
        assert store.values.get("cars", "1", "kept") is None, "what was known of the first one is gone"
        back = run("connect", "1", "--url", studio.url, "--token", studio.token, *typed)
        assert isinstance(back.exception, ProjectElsewhere)


def test_connect_fails_with_a_reason_and_code_1(studio: FakeLabelStudio) -> None:
    with pytest.raises(SettingsError, match="LABEL_STUDIO_URL"):
        CliRunner().invoke(app, ["connect", "1"], catch_exceptions=False)
    failed = run("connect", "1", "--url", studio.url, "--token", studio.token, "--backend-url", "http://127.0.0.1:1")
    assert failed.exit_code == 1
    assert "→ Start the backend: labelloop serve" in failed.output


def test_doctor_without_anything_says_what_to_give() -> None:
    told = run("doctor", "--backend-url", "http://127.0.0.1:1")
    assert told.exit_code == 1
    assert "Pass --url http://host:8080 or set LABEL_STUDIO_URL." in told.output
    assert "labelloop serve" in told.output
    assert "2 failed, 0 fine." in told.output

"""The demo's project: made once, completed, connected, filled, and looked at, against the fake Label Studio."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import LabelStudioError
from labelloop.core.settings import read_settings
from labelloop.demo.check import find_problems
from labelloop.demo.project import attach, ensure_project, picture_tasks, pre_annotate
from labelloop.demo.scenario import OCR_CONFIG, Scenario
from labelloop.labelstudio.client import Client
from labelloop.serving.models import add_model, open_registry
from labelloop.store.registry import ModelVersion
from labelloop.testing import FakeBackend, FakeLabelStudio

Answer = dict[str, Any]
VERSION = "ocr@1"
SIZE = (200, 100)


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as server:
        yield server


@pytest.fixture
def client(studio: FakeLabelStudio) -> Iterator[Client]:
    with Client(studio.url, studio.personal_access_token, attempts=1) as made:
        yield made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    settings = read_settings(home=tmp_path_factory.mktemp("home"))
    card = ModelCard(name="ocr", engine="empty", task="ocr", labels=("Text",))
    return add_model(open_registry(settings), None, card, settings)


@pytest.fixture
def scenario(tmp_path: Path, model: ModelVersion) -> Scenario:
    """Two pictures, a word on each."""
    texts = {"one.png": ("first",), "two spaced.png": ("second",)}
    for name, (word,) in texts.items():
        picture = np.full((SIZE[1], SIZE[0], 3), 255, np.uint8)
        cv2.putText(picture, word, (25, 60), cv2.FONT_HERSHEY_SIMPLEX, 1.2, (0, 0, 0), 3)
        cv2.imwrite(str(tmp_path / name), picture)
    return Scenario("Two words", OCR_CONFIG, tuple(tmp_path / name for name in texts), model=model, texts=texts)


def prediction(word: str, *, label: str = "Text", x: float = 10, y: float = 30, width: float = 75) -> Answer:
    """One line of text as Label Studio wants it: three regions with one id."""
    place = {"x": x, "y": y, "width": width, "height": 40, "rotation": 0}
    same = {"id": "r1", "to_name": "image", "original_width": SIZE[0], "original_height": SIZE[1], "image_rotation": 0}
    result = [
        {"from_name": "bbox", "type": "rectangle", "value": place, **same},
        {"from_name": "label", "type": "labels", "value": {**place, "labels": [label]}, **same},
        {"from_name": "transcription", "type": "textarea", "value": {**place, "text": [word]}, **same},
    ]
    return {"result": result, "score": 0.9, "model_version": VERSION}


def word_of(task: Answer) -> str:
    return "first" if "one" in task["data"]["image"] else "second"


def prepare(client: Client, scenario: Scenario, predict: Callable[[Answer], Answer]) -> tuple[str, int]:
    """Run the demo's steps against a backend that answers with `predict`; the version and how many tasks lack one."""
    with FakeBackend(model_version=VERSION, predict=predict) as backend:
        project = ensure_project(client, scenario)
        version = attach(client, project, backend.url)
        return version, pre_annotate(client, project, version, tell=lambda _: None)


def problems(client: Client, scenario: Scenario) -> list[str]:
    project = ensure_project(client, scenario)
    return find_problems(client, picture_tasks(client, project, scenario), scenario, VERSION)


def test_right_predictions_on_the_right_tasks_have_no_problems(client: Client, scenario: Scenario) -> None:
    assert prepare(client, scenario, lambda task: prediction(word_of(task))) == (VERSION, 0)
    assert problems(client, scenario) == []


@pytest.mark.parametrize(
    ("predict", "says"),
    [
        (lambda task: prediction({"first": "second", "second": "first"}[word_of(task)]), "read ('second',)"),
        (lambda task: prediction(word_of(task) + "x"), "drawn ('first',)"),
        (lambda task: prediction(word_of(task), x=60), "outside the picture"),
        (lambda task: prediction(word_of(task), y=0.5, width=10, x=85), "nothing is drawn where"),
        (lambda task: prediction(word_of(task), label="Handwriting"), "labels that the project does not have"),
        (lambda task: {"result": [], "score": 0.0, "model_version": VERSION}, "nothing was found on any picture"),
        (lambda task: {"error": "no picture"}, "has 0 predictions"),
    ],
    ids=["swapped", "misread", "outside", "on bare paper", "unknown label", "empty", "none"],
)
def test_what_is_wrong_is_found(
    client: Client, scenario: Scenario, predict: Callable[[Answer], Answer], says: str
) -> None:
    prepare(client, scenario, predict)
    assert says in "; ".join(problems(client, scenario))


def test_a_second_prediction_is_found(client: Client, scenario: Scenario) -> None:
    prepare(client, scenario, lambda task: prediction(word_of(task)))
    project = ensure_project(client, scenario)
    first = picture_tasks(client, project, scenario)[0]
    client.import_predictions(project.id, [{"task": first.id, **prediction("first")}])
    assert problems(client, scenario) == [f"task {first.id} has 2 predictions of {VERSION}"]


def test_a_second_run_reuses_the_project_and_uploads_only_what_is_new(
    client: Client, scenario: Scenario, tmp_path: Path
) -> None:
    first = ensure_project(client, scenario)
    assert ensure_project(client, scenario).id == first.id
    assert client.tasks(first.id).total == 2
    cv2.imwrite(str(tmp_path / "three.png"), np.zeros((10, 10, 3), np.uint8))
    more = msgspec.structs.replace(scenario, pictures=(*scenario.pictures, tmp_path / "three.png"))
    assert ensure_project(client, more).id == first.id
    names = [task.picture.name for task in picture_tasks(client, first, more)]
    assert names == ["one.png", "two spaced.png", "three.png"]
    assert len(client.projects()) == 1


def test_another_port_replaces_the_row_and_the_webhook_of_the_run_before(client: Client, scenario: Scenario) -> None:
    for _ in range(2):
        prepare(client, scenario, lambda task: prediction(word_of(task)))
    project = ensure_project(client, scenario)
    assert len(client.backends(project.id)) == len(client.webhooks(project.id)) == 1
    assert client.tasks(project.id).total_predictions == 2, "what has a prediction of this version is not asked again"


def test_a_task_that_fails_is_asked_for_twice_and_counted(client: Client, scenario: Scenario) -> None:
    asked: list[str] = []

    def only_first(task: Answer) -> Answer:
        asked.append(word_of(task))
        return prediction("first") if word_of(task) == "first" else {"error": "cannot be read"}

    assert prepare(client, scenario, only_first) == (VERSION, 1)
    assert sorted(asked) == ["first", "second", "second"]


def test_a_backend_that_is_not_there_is_an_error_with_the_fix(client: Client, scenario: Scenario) -> None:
    project = ensure_project(client, scenario)
    with pytest.raises(LabelStudioError, match="labelloop serve"):
        attach(client, project, "http://127.0.0.1:9")

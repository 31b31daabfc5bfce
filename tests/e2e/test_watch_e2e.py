"""`labelloop watch` against the real Label Studio: tasks are predicted, annotations become events, by whatever way."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from labelloop.app import open_watch
from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.labelstudio.changes import changes_since
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.wire import moment_of
from labelloop.serving.models import Store, add_model, open_store
from labelloop.testing import FakeEngine
from reference.running_server import CONFIG
from reference.waiting import wait

pytestmark = pytest.mark.e2e

Told = list[tuple[str, tuple[int, ...], tuple[int, ...]]]


class Scene:
    """A project with three pictures, watched twice a second with a model that finds something on each."""

    def __init__(self, client: Client, store: Store, project: int, pictures: list[Path]) -> None:
        self.client = client
        self.store = store
        self.project = project
        self.pictures = pictures

    def ask(self, method: str, path: str, body: Any = None, **params: Any) -> Any:
        kind: Any = type(None) if method == "DELETE" else dict
        return self.client._ask(method, path, kind, body=body, params=params or None)

    def task_ids(self) -> list[int]:
        return [row["id"] for row in self.client.tasks(self.project, include=("id",)).tasks]

    def predicted(self) -> list[int]:
        return [len(self.client.predictions(task)) for task in self.task_ids()]

    def told(self) -> Told:
        found = self.store.events.after(0, project_id=self.project)
        return [(event.action, event.task_ids, event.annotation_ids) for event in found]


@pytest.fixture
def scene(label_studio: Any, shared: Path, tmp_path: Path) -> Iterator[Scene]:
    pictures = sorted((shared / "data" / "datasets" / "coco32").rglob("*.jpg"))
    settings = read_settings(
        home=tmp_path, label_studio_url=label_studio.url, label_studio_token=label_studio.personal_access_token
    )
    settings = settings.model_copy(update={"watch_interval_s": 0.5})
    store = open_store(settings)
    add_model(store.registry, None, ModelCard(name="cars", engine="empty", labels=("car",)), settings)
    with Client(label_studio.url, label_studio.token) as client:
        project = client.create_project(f"watch {time.time_ns()}", CONFIG).id
        client.upload_files(project, pictures[:3])
        with open_watch(settings, [str(project)], load=lambda _: FakeEngine()) as watching:
            thread = threading.Thread(target=watching.run)
            thread.start()
            yield Scene(client, store, project, pictures)
            watching.stop()
            thread.join(30)
        client.delete_project(project)


def test_what_is_new_is_predicted_and_what_people_do_is_told(scene: Scene) -> None:
    wait(lambda: scene.predicted() == [1, 1, 1])
    scene.client.upload_files(scene.project, scene.pictures[3:5])
    begun = time.monotonic()
    wait(lambda: scene.predicted() == [1] * 5)
    seconds = time.monotonic() - begun
    print(f"five seconds are promised at an interval of five; at half a second it took {seconds:.1f} s")
    first, second, third, *_ = scene.task_ids()
    rows = scene.client.tasks(scene.project, include=("id", "updated_at")).tasks
    since = moment_of(max(row["updated_at"] for row in rows))
    assert since is not None

    expected: Told = []

    def then(action: str, tasks: tuple[int, ...], annotations: tuple[int, ...]) -> None:
        expected.append((action, tasks, annotations))
        wait(lambda: len(scene.told()) >= len(expected))
        assert scene.told() == expected

    made = scene.ask("POST", f"/api/tasks/{first}/annotations/", {"result": []})["id"]
    then("ANNOTATION_CREATED", (first,), (made,))
    scene.ask("PATCH", f"/api/annotations/{made}", {"was_cancelled": True})
    then("ANNOTATION_UPDATED", (first,), (made,))
    scene.ask("DELETE", f"/api/annotations/{made}")
    then("ANNOTATIONS_DELETED", (first,), (made,))

    chosen = {"project": scene.project, "selectedItems": {"all": False, "included": [second]}}
    scene.ask("POST", "/api/dm/actions", chosen, id="predictions_to_annotations", project=scene.project)
    then("ANNOTATION_CREATED", (second,), (made + 1,))
    scene.ask("POST", "/api/dm/actions", chosen, id="delete_tasks_annotations", project=scene.project)
    then("ANNOTATIONS_DELETED", (second,), (made + 1,))

    # no webhook is sent for annotations inside an import
    data = scene.client.tasks(scene.project, include=("id", "data")).tasks[0]["data"]
    body = [{"data": data, "annotations": [{"result": []}]}]
    (imported,) = scene.client.import_tasks(scene.project, body).task_ids
    (again,) = scene.client.task(imported)["annotations"]
    # an import takes the highest id there is plus one: that of a deleted annotation, of this project or of another
    assert again["id"] <= made, "an import gives ids again; when it does not any more, docs and comments can say so"
    then("ANNOTATION_CREATED", (imported,), (again["id"],))
    wait(lambda: scene.predicted() == [1] * 6)

    found = changes_since(scene.client, scene.project, since, known={made: first})
    assert (found.changed, found.withdrawn) == ({again["id"]}, {made})
    assert {first, second, imported} <= found.task_ids
    assert third not in found.task_ids

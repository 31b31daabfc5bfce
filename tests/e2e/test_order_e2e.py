"""The order on a real Label Studio: its tab, its stream of tasks, and people who work meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.jobs.order import SAMPLING, TAB, Ordered, Wish, reorder
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.learning.acquisition import Acquisition
from labelloop.serving.models import add_model, open_store
from labelloop.serving.projects import Lens, View
from labelloop.store.scores import Scores
from reference.running_server import CONFIG

pytestmark = pytest.mark.e2e

MARGIN = Acquisition("margin", "max")
COUNT = 30


class Project:
    """Thirty tasks, predicted with one box each but for every tenth, which has none. Nobody opens their pictures."""

    def __init__(self, client: Client, scores: Scores, view: View) -> None:
        self.client = client
        self.scores = scores
        self.view = view
        self.id = client.create_project(f"order {time.time_ns()}", CONFIG).id
        self.tasks = client.import_tasks(self.id, [{"image": f"/{n}.jpg"} for n in range(COUNT)]).task_ids
        rng = np.random.default_rng(4)
        self.sure = dict(zip(self.tasks, rng.permutation(np.linspace(0.51, 0.99, COUNT)).tolist(), strict=True))
        self.empty = set(self.tasks[5::10])
        assert client.import_predictions(self.id, [self._item(task) for task in self.tasks]).dropped == 0

    def _item(self, task: int) -> dict[str, Any]:
        sure = self.sure[task]
        value = {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "rectanglelabels": ["Car"]}
        region = {"from_name": "box", "to_name": "img", "type": "rectanglelabels", "score": sure, "value": value}
        region |= {"id": "r", "original_width": 100, "original_height": 100}
        # what nearly was drawn on a picture without a box
        sent = sure if task in self.empty else 1 - (1 - abs(2 * sure - 1)) ** 2
        result = [] if task in self.empty else [region]
        return {"task": task, "result": result, "score": sent, "model_version": self.view.name}

    def order(self, **wish: Any) -> Ordered:
        patience = Patience(60, check=lambda: None, tell=lambda _level, text: pytest.fail(text))
        return reorder(
            self.client,
            self.id,
            self.view,
            self.scores,
            wish=Wish(**{"acquisition": MARGIN} | wish),
            patience=patience,
        )

    def shown(self, tab: int) -> list[int]:
        page = self.client.tasks(self.id, view=tab, include=("id",), page_size=100)
        return [row["id"] for row in page.tasks]

    def expected(self, *without: int) -> list[int]:
        """Most doubtful first, and the pictures without a box at the places 5, 15 and 25."""
        doubtful = sorted(self.tasks, key=lambda task: self.sure[task])
        found = [task for task in doubtful if task not in self.empty and task not in without]
        for place, task in enumerate(task for task in doubtful if task in self.empty):
            found.insert(5 + 10 * place, task)
        return found

    def predictions(self) -> dict[int, list[dict[str, Any]]]:
        return {task: self.client.predictions(task) for task in self.tasks}


@pytest.fixture(scope="module")
def client(label_studio: Any) -> Iterator[Client]:
    with Client(label_studio.url, label_studio.token) as made:
        yield made


@pytest.fixture
def project(client: Client, tmp_path: Path) -> Iterator[Project]:
    settings = read_settings(home=tmp_path / "home")
    store = open_store(settings)
    model = add_model(store.registry, None, ModelCard(name="cars", engine="empty", labels=("car",)), settings)
    made = Project(client, store.scores, Lens().view(model, CONFIG))
    yield made
    client.delete_project(made.id)
    store.engine.dispose()


def test_the_tab_shows_the_order_and_a_second_run_changes_nothing(project: Project) -> None:
    before = project.predictions()
    done = project.order()
    assert project.shown(done.tab) == project.expected()
    assert 0 < done.changed <= 8, "the pictures without a box, and what is in their way"
    after = project.predictions()
    same = ("id", "result", "model_version")
    for task in project.tasks:
        assert [[row[name] for name in same] for row in after[task]] == [
            [row[name] for name in same] for row in before[task]
        ], "only the score of a prediction changes"
    again = project.order()
    assert (again.changed, again.tab, again.read_back) == (0, done.tab, 0)
    assert [view.title for view in project.client.views(project.id)] == ["Default", TAB]
    assert project.predictions() == after

    random = project.order(acquisition=Acquisition("random", seed=1))
    assert random.tab == done.tab
    assert project.shown(done.tab) != project.expected()
    project.order()
    assert project.shown(done.tab) == project.expected(), "and back"


def test_what_people_annotated_or_skipped_is_left_alone(project: Project, label_studio: Any) -> None:
    labelled, skipped, *_ = project.expected()
    with httpx.Client(base_url=label_studio.url, headers={"Authorization": f"Token {label_studio.token}"}) as http:
        for task, cancelled in ((labelled, False), (skipped, True)):
            body = {"result": [], "was_cancelled": cancelled}
            assert http.post(f"/api/tasks/{task}/annotations/", json=body).status_code == 201
    before = project.predictions()
    done = project.order(acquisition=Acquisition("random", seed=2))
    assert done.ranked == COUNT - 2
    after = project.predictions()
    assert [after[task] for task in (labelled, skipped)] == [before[task] for task in (labelled, skipped)]
    project.order()
    assert project.shown(done.tab) == project.expected(labelled, skipped)


def test_the_stream_follows_and_who_has_a_task_open_can_submit(project: Project, label_studio: Any) -> None:
    done = project.order(acquisition=Acquisition("random", seed=3))
    assert done.sampled
    found = project.client.project(project.id)
    assert (found.sampling, found.model_version) == (SAMPLING, project.view.name)
    first = project.client.next_task(project.id)
    assert first is not None
    assert (first["id"], first["queue"]) == (project.shown(done.tab)[0], "Active learning or random queue")
    (opened,) = first["predictions"]

    project.order()  # while somebody looks at that task
    with httpx.Client(base_url=label_studio.url, headers={"Authorization": f"Token {label_studio.token}"}) as http:
        body = {"result": opened["result"], "parent_prediction": opened["id"]}
        answer = http.post(f"/api/tasks/{first['id']}/annotations/", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["parent_prediction"] == opened["id"]
    following = project.client.next_task(project.id)
    assert following is not None
    assert following["id"] == project.shown(done.tab)[0]

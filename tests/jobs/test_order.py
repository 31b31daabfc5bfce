"""The order of a project: what it is made of, what Label Studio shows of it, and what happens when it is cut off."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from jobs.desk import Desk, refusal
from labelloop.core.errors import JobError, LabelloopError
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region
from labelloop.core.tasks import Task
from labelloop.jobs.order import SAMPLING, TAB, Ordered, Wish, reorder
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.learning.acquisition import Acquisition
from labelloop.learning.select import Diversity
from labelloop.serving.projects import Lens, View
from labelloop.testing import FakeEngine
from reference.running_server import CONFIG

RESULT = {
    "from_name": "box", "to_name": "img", "type": "rectanglelabels", "original_width": 100, "original_height": 100,
    "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rotation": 0, "rectanglelabels": ["Car"]},
}  # fmt: skip
ONE_BOX = Acquisition("margin", "max")


class Planner:
    """Puts the desk's project into order."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.studio = desk.studio
        self.scores = desk.store.scores
        self.view: View = Lens().view(desk.model, CONFIG)
        self.client = Client(desk.studio.url, desk.studio.token)
        self.told: list[str] = []
        self.stages: list[tuple[str, int, int]] = []

    def predict(self, *scores: float | None, version: str = "") -> list[int]:
        """Tasks whose predictions have one box with this score, or none; each sent with one minus its doubt."""
        tasks = self.desk.add_tasks(len(scores))
        for task, score in zip(tasks, scores, strict=True):
            result = [] if score is None else [{**RESULT, "id": "r", "score": score}]
            sent = 1.0 if score is None else 1 - (1 - abs(2 * score - 1)) ** 2
            item = {"result": result, "score": sent, "model_version": version or self.view.name}
            self.studio.state.add_prediction(self.studio.state.tasks[task], item, touch=False)
        return tasks

    def order(self, looks: Any = None, **wish: Any) -> Ordered:
        self.stages.clear()
        patience = Patience(20, check=lambda: None, tell=lambda _level, text: self.told.append(text), first_s=0.05)
        return reorder(
            self.client,
            self.desk.project,
            self.view,
            self.scores,
            wish=Wish(**{"acquisition": ONE_BOX} | wish),
            patience=patience,
            looks=looks,
            progress=lambda *stage: self.stages.append(stage),
        )

    def shown(self) -> list[int]:
        """The tasks of the tab, as Label Studio sorts them."""
        (tab,) = [view for view in self.client.views(self.desk.project) if view.title == TAB]
        page = self.client.tasks(self.desk.project, view=tab.id, include=("id",), page_size=1000)
        return [row["id"] for row in page.tasks]

    def changes(self) -> int:
        return sum(path.startswith("PATCH /api/predictions/") for path in self.studio.paths())

    def stored(self) -> dict[int, list[float]]:
        return {task: [row["score"] for row in self.studio.predictions(task)] for task in self.desk.tasks}


@pytest.fixture
def planner(desk: Desk) -> Iterator[Planner]:
    made = Planner(desk)
    yield made
    made.client.close()


def test_most_uncertain_first_and_nothing_is_written_that_stands_already(planner: Planner) -> None:
    a, b, c, d = planner.predict(0.9, 0.5, 0.99, 0.6)
    done = planner.order()
    assert planner.shown() == [b, d, a, c]
    assert (done.ranked, done.changed, done.read_back, done.unpredicted) == (4, 0, 4, 0)
    assert planner.changes() == 0
    assert done.sampled
    project = planner.client.project(planner.desk.project)
    assert (project.model_version, project.sampling) == (planner.view.name, SAMPLING)
    following = planner.client.next_task(planner.desk.project)
    assert following is not None
    assert following["id"] == b


def test_another_strategy_moves_them(planner: Planner) -> None:
    a, b, c, d = planner.predict(0.9, 0.5, 0.99, 0.31)
    done = planner.order(acquisition=Acquisition("least_confidence", "max"))
    assert planner.shown() == [d, b, a, c]
    assert done.changed == 1
    first = planner.stored()
    again = planner.order(acquisition=Acquisition("least_confidence", "max"))
    assert (again.changed, again.read_back, planner.stored()) == (0, 0, first)
    assert planner.order(acquisition=Acquisition("random", seed=3)).changed
    random_order = planner.shown()
    assert sorted(random_order) == [a, b, c, d]
    planner.order(acquisition=Acquisition("random", seed=3))
    assert planner.shown() == random_order


def test_pictures_without_findings_get_their_places(planner: Planner) -> None:
    found = planner.predict(*np.linspace(0.5, 0.95, 18))
    empty = planner.predict(None, None)
    planner.order(empty_quota=0.1)
    shown = planner.shown()
    assert [shown.index(task) for task in found] == [place for place in range(20) if place not in (5, 15)]
    assert {shown[5], shown[15]} == set(empty)
    planner.order(empty_quota=0.0)
    assert set(planner.shown()[-2:]) == set(empty)


def test_what_people_have_touched_is_left_alone(planner: Planner) -> None:
    labelled, skipped, left, sure = planner.predict(0.5, 0.51, 0.6, 0.95)
    planner.studio.state.add_annotation(planner.studio.state.tasks[labelled], {"result": [RESULT]})
    planner.studio.state.add_annotation(planner.studio.state.tasks[skipped], {"result": [], "was_cancelled": True})
    before = planner.stored()
    done = planner.order(acquisition=Acquisition("random", seed=1))
    done = planner.order(acquisition=Acquisition("random", seed=2)) if not done.changed else done
    assert done.ranked == 2
    assert set(planner.shown()) == {left, sure}
    after = planner.stored()
    assert [after[task] for task in (labelled, skipped)] == [before[task] for task in (labelled, skipped)]


def test_tasks_without_a_prediction_are_counted_and_come_last(planner: Planner) -> None:
    (sure,) = planner.predict(0.9)
    bare = planner.desk.add_tasks(2)
    (doubtful,) = planner.predict(0.5)
    done = planner.order()
    assert (done.ranked, done.unpredicted) == (2, 2)
    assert planner.shown() == [doubtful, sure, *bare]


def test_predictions_of_other_versions_count_for_nothing(planner: Planner) -> None:
    a, b = planner.predict(0.9, 0.6)
    for task in (a, b):
        row = {"result": [], "score": 0.01 if task == a else 0.99, "model_version": "old@1"}
        planner.studio.state.add_prediction(planner.studio.state.tasks[task], row, touch=False)
    planner.predict(0.5, version="old@1")
    done = planner.order()
    assert (done.ranked, done.unpredicted) == (2, 1)
    assert planner.shown()[:2] == [b, a]


@pytest.mark.parametrize("version", [None, "old@1"], ids=["none at all", "of another version"])
def test_without_predictions_it_says_what_to_run(planner: Planner, version: str | None) -> None:
    planner.desk.add_tasks(2)
    if version:
        planner.predict(0.5, version=version)
    with pytest.raises(JobError, match=f"labelloop prelabel {planner.desk.project}"):
        planner.order()
    assert planner.client.views(planner.desk.project) == []


def test_a_project_that_shows_a_live_backend_is_switched_to_the_version(planner: Planner) -> None:
    planner.predict(0.9, 0.5)
    planner.studio.state.projects[planner.desk.project].model_version = "labelloop"
    assert planner.order().switched_from == "labelloop"
    assert planner.order().switched_from is None


def test_what_is_remembered_wins_over_what_is_stored(planner: Planner, desk: Desk) -> None:
    """A bulk job remembers more than it stores: how near the model came to drawing something."""
    hidden = dict(zip(desk.add_tasks(4), (0.05, 0.25, 0.15, 0.2), strict=True))
    answers = iter([0.0, *hidden.values()])  # a model is warmed up with one picture

    def find(picture: Picture) -> tuple[Region, ...]:
        return (Region(Box((0, 0, 9, 9)), "car", next(answers)),)

    desk.engine = FakeEngine(find, max_batch=1)
    desk.settings = desk.settings.model_copy(update={"media_workers": 1})
    desk.run(desk.job())
    done = planner.order()
    assert (done.ranked, done.read_back, done.changed) == (4, 0, 0)
    doubts = [row["score"] for task in planner.shown() for row in planner.studio.predictions(task)]
    assert doubts == pytest.approx([0.75, 0.8, 0.85, 0.95])


def test_a_prediction_without_a_score_gets_one(planner: Planner) -> None:
    a, b, c = planner.predict(0.9, 0.5, 0.7)
    planner.studio.predictions(b)[0]["score"] = None
    assert planner.order().changed == 1
    assert planner.shown() == [b, c, a]


def test_two_predictions_of_one_version_are_one_place(planner: Planner) -> None:
    a, b = planner.predict(0.9, 0.5)
    twin = {"result": [], "score": 1.0, "model_version": planner.view.name}
    planner.studio.state.add_prediction(planner.studio.state.tasks[b], twin, touch=False)
    planner.order(acquisition=Acquisition("least_confidence", "max"), empty_quota=0.0)
    shown, stored = planner.shown(), planner.stored()
    assert set(shown) == {a, b}
    assert planner.order(acquisition=Acquisition("least_confidence", "max"), empty_quota=0.0).changed == 0
    assert (planner.shown(), planner.stored()) == (shown, stored)


def test_it_goes_on_where_it_was_cut_off(planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelloop.jobs.order.WRITTEN", 4)
    tasks = planner.predict(*np.linspace(0.5, 0.99, 30))
    written: list[str] = []

    def around(ask: Any, path: str, answer: Callable[[], Any]) -> Any:
        if ask.method == "PATCH" and path.startswith("/api/predictions/"):
            if len(written) >= 10:
                return refusal(400, "cut off")
            written.append(path)
        return answer()

    wish = {"acquisition": Acquisition("random", seed=5)}
    planner.studio.around = around
    with pytest.raises(LabelloopError, match="cut off"):
        planner.order(**wish)
    planner.studio.around = lambda _ask, _path, answer: answer()
    before = planner.changes()
    left = planner.order(**wish).changed
    assert planner.changes() - before == left
    assert left < 30 - 6
    shown = planner.shown()
    assert sorted(shown) == tasks
    assert planner.order(**wish).changed == 0
    assert len([row for task in tasks for row in planner.studio.predictions(task)]) == 30, "none is lost or doubled"


def test_label_studio_may_be_away_for_a_while(planner: Planner) -> None:
    planner.predict(*np.linspace(0.5, 0.99, 12))
    refused: list[str] = []

    def around(_ask: Any, path: str, answer: Callable[[], Any]) -> Any:
        if len(refused) < 30 and len(planner.studio.requests) % 5 == 0:
            refused.append(path)
            return refusal(503)
        return answer()

    planner.studio.around = around
    assert planner.order(acquisition=Acquisition("random")).ranked == 12
    assert refused
    planner.studio.around = lambda _ask, _path, answer: answer()
    assert planner.order(acquisition=Acquisition("random")).changed == 0


def test_what_people_do_meanwhile_is_theirs(planner: Planner, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelloop.jobs.order.WRITTEN", 5)
    tasks = planner.predict(*np.linspace(0.5, 0.99, 20))
    happened: list[int] = []

    def around(ask: Any, path: str, answer: Callable[[], Any]) -> Any:
        if ask.method == "PATCH" and path.startswith("/api/predictions/") and not happened:
            for task in tasks:  # whichever of them would have been next
                if planner.studio.predictions(task)[0]["id"] != ask.ids["prediction"] and len(happened) < 18:
                    happened.append(task)
            desk.delete(*happened[:9])
            for task in happened[9:]:
                planner.studio.state.add_annotation(planner.studio.state.tasks[task], {"result": [RESULT]})
        return answer()

    before = planner.stored()
    planner.studio.around = around
    planner.order(acquisition=Acquisition("random", seed=2))
    planner.studio.around = lambda _ask, _path, answer: answer()
    later = [task for task in happened[9:] if planner.stored()[task] == before[task]]
    assert len(later) >= 4, "only those that were on their way already were changed"
    assert planner.order(acquisition=Acquisition("random", seed=2)).ranked == 2


def test_only_the_first_ones_are_put_in_their_places(planner: Planner) -> None:
    tasks = planner.predict(*np.linspace(0.52, 0.99, 40))
    done = planner.order(acquisition=Acquisition("random", seed=5), first=3)
    assert done.changed <= 3
    shown = planner.shown()
    rest = shown[3:]
    assert rest == sorted(rest), "the others stand as they stood"
    planner.order(acquisition=Acquisition("random", seed=5))
    assert planner.shown()[:3] == shown[:3]
    assert sorted(shown) == tasks


def test_the_sampling_of_the_project_may_stay(planner: Planner) -> None:
    planner.predict(0.9, 0.5)
    assert not planner.order(sampling=False).sampled
    assert planner.client.project(planner.desk.project).sampling == "Sequential sampling"
    planner.order()
    assert planner.order(sampling=False).sampled


def test_pages_and_gaps(planner: Planner, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelloop.jobs.listing.LISTED", 7)
    monkeypatch.setattr("labelloop.jobs.listing.READ", 4)
    tasks = planner.predict(*np.linspace(0.99, 0.5, 30))
    desk.delete(*tasks[5:9])
    planner.order()
    assert planner.shown() == [*tasks[:8:-1], *tasks[4::-1]]
    assert ("reading tasks", 26, 26) in planner.stages
    assert ("reading predictions", 26, 26) in planner.stages
    later = planner.predict(0.55)
    assert planner.order().read_back == 1
    assert later[0] in planner.shown()[:5]


class Eyes:
    """Looks that a test decides, and that count."""

    def __init__(self, doubts: Mapping[int, float] = {}, places: Mapping[int, Sequence[float]] = {}) -> None:
        self.doubts, self.places = doubts, places
        self.looked: list[int] = []

    def inconsistencies(self, tasks: Sequence[Task]) -> dict[int, float]:
        self.looked += [task.id or 0 for task in tasks]
        return {task.id: self.doubts[task.id] for task in tasks if task.id in self.doubts}

    def embeddings(self, tasks: Sequence[Task]) -> dict[int, NDArray[np.floating[Any]]]:
        self.looked += [task.id or 0 for task in tasks]
        return {task.id: np.asarray(self.places[task.id]) for task in tasks if task.id in self.places}


def test_pictures_that_look_different_in_the_mirror_come_first(planner: Planner) -> None:
    a, b, c = planner.predict(0.95, 0.96, 0.97)
    eyes = Eyes(doubts={a: 0.0, c: 0.9})
    done = planner.order(eyes, flip=True)
    assert planner.shown() == [c, a, b]
    assert done.unseen == 1
    assert ("looking twice", 3, 3) in planner.stages
    planner.order(eyes, flip=True)
    assert eyes.looked == [a, b, c, b], "what was found is kept"


def test_a_diverse_choice_comes_first_and_covers_what_is_labelled(planner: Planner) -> None:
    """Three scenes; the four most doubtful pictures show the first one."""
    tasks = planner.predict(0.50, 0.51, 0.52, 0.53, 0.60, 0.61, 0.70, 0.71)
    scenes = [0, 0, 0, 0, 1, 1, 2, 2]
    places = {
        task: np.eye(3)[scene] * 10 + number / 100
        for number, (task, scene) in enumerate(zip(tasks, scenes, strict=True))
    }
    eyes = Eyes(places=places)
    diversity = Diversity(budget=3)
    planner.order(eyes, diversity=diversity)
    assert {scenes[tasks.index(task)] for task in planner.shown()[:3]} == {0, 1, 2}
    assert planner.shown()[0] == tasks[0], "the most uncertain one"
    assert len(eyes.looked) == 8

    planner.studio.state.add_annotation(planner.studio.state.tasks[tasks[0]], {"result": [RESULT]})
    planner.order(eyes, diversity=Diversity(budget=2))
    assert len(eyes.looked) == 8, "embeddings are kept"
    assert {scenes[tasks.index(task)] for task in planner.shown()[:2]} == {1, 2}, "scene 0 has been labelled"


def test_pictures_that_cannot_be_compared(planner: Planner) -> None:
    tasks = planner.predict(0.50, 0.60, 0.61, 0.62)
    eyes = Eyes(places={task: [float(number), 0.0] for number, task in enumerate(tasks[1:])})
    done = planner.order(eyes, diversity=Diversity(budget=4))
    assert done.unseen == 1
    assert sorted(planner.shown()) == tasks
    planner.scores.forget(planner.desk.project, keep=())
    with pytest.raises(JobError, match="doctor"):
        planner.order(Eyes(), diversity=Diversity(budget=4))


def test_nothing_is_left_to_order(planner: Planner) -> None:
    (only,) = planner.predict(0.5)
    planner.studio.state.add_annotation(planner.studio.state.tasks[only], {"result": [RESULT]})
    done = planner.order(Eyes(), diversity=Diversity(budget=4), flip=True)
    assert (done.ranked, done.changed) == (0, 0)
    assert planner.shown() == []

"""Whole projects through models that write results themselves, under the name that such a model gives itself."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest
from starlette.responses import Response

from jobs.desk import IMPORT, Desk, refusal
from labelloop.core.errors import JobError
from labelloop.core.regions import Raw, Region, Size
from labelloop.engines.base import Question, Said
from labelloop.jobs.shown import show_serving
from labelloop.jobs.watchers import Views
from labelloop.labelstudio.client import Client
from labelloop.store.loops import Loops
from labelloop.store.values import VERSION, Values
from labelloop.testing import FakeLabelStudio

BOX = {
    "from_name": "box", "to_name": "img", "type": "rectanglelabels", "original_width": 32, "original_height": 24,
    "value": {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0, "rectanglelabels": ["Car"]},
}  # fmt: skip


class Talker:
    """Calls itself `name` from the moment on that it meets a project; it learns, and has another name, when it was
    asked `learns_after` times."""

    needs_file = False
    wants: Literal["task"] = "task"
    classes: tuple[str, ...] = ()
    input_size: Size | None = None
    max_batch, parallel = 4, 1

    def __init__(self, values: Values, *, learns_after: int | None = None) -> None:
        self.name = "Talker-1"
        self._values = values
        self._left = learns_after

    def introduce(self, project: str, label_config: str) -> None:
        assert "<RectangleLabels" in label_config
        self._values.set("cars", project, VERSION, self.name)

    def prepare(self, question: Question) -> Question:
        return question

    def predict(self, batch: Sequence[Question]) -> list[Said | Exception]:
        if self._left is not None:
            self._left -= 1
            self.name = "Talker-2" if self._left < 0 else self.name
            self.introduce(batch[0].project, batch[0].label_config)
        return [Said((Region(Raw({**BOX, "id": str(one.task["id"])})),), 0.5, self.name) for one in batch]


@pytest.fixture
def hosted(studio: FakeLabelStudio, tmp_path: Path, picture: str) -> Desk:
    desk = Desk(studio, tmp_path / "home", picture, task="raw", labels=())
    desk.engine = Talker(desk.store.values)  # type: ignore[assignment]
    return desk


def lose_the_answer_of_the_second_import(desk: Desk) -> None:
    count = 0

    def around(_ask: Any, path: str, answer: Any) -> Response:
        nonlocal count
        count += path.endswith(IMPORT)
        found: Response = answer()
        return refusal(504) if path.endswith(IMPORT) and count == 2 else found

    desk.studio.around = around


def test_a_model_that_no_project_has_met_yet_names_the_predictions_of_its_job(hosted: Desk) -> None:
    hosted.add_tasks(35)
    lose_the_answer_of_the_second_import(hosted)
    job = hosted.job()
    assert job.version.startswith("cars@1."), "nobody knows better when it is queued"
    done = hosted.run(job)
    assert done.version == "Talker-1"
    assert hosted.versions() == [["Talker-1"]] * 35, "what arrived without an answer was found again by this name"
    assert hosted.studio.predictions(hosted.tasks[0])[0]["result"][0]["value"] == BOX["value"]
    hosted.version = "Talker-1"
    again = hosted.job()
    assert again.id != job.id
    hosted.run(again)
    assert hosted.progress(again).stored == 0


def test_a_model_that_learns_meanwhile_keeps_its_name_within_the_job(hosted: Desk) -> None:
    hosted.add_tasks(35)
    hosted.engine = Talker(hosted.store.values, learns_after=3)  # type: ignore[assignment]
    lose_the_answer_of_the_second_import(hosted)
    job = hosted.job()
    with hosted.open(job) as work:
        work.advance()
    with hosted.open(job) as work:  # another worker goes on, to whom it has another name
        while work.advance():
            pass
    assert hosted.versions() == [["Talker-1"]] * 35
    assert "calls itself Talker-2 by now; this job goes on as Talker-1" in hosted.log(job)


def test_two_jobs_for_what_turns_out_to_be_the_same_version(hosted: Desk) -> None:
    hosted.add_tasks(3)
    early = hosted.job()
    hosted.version = "Talker-1"
    hosted.job()
    with pytest.raises(JobError, match="Another job makes the predictions of Talker-1"), hosted.open(early):
        pass


def test_everything_that_looks_at_a_project_knows_the_model_by_its_own_name(hosted: Desk) -> None:
    """The watch, which starts jobs and looks for tasks without a prediction, and what is shown after the pointer
    moved."""
    hosted.add_tasks(2)
    registry = hosted.store.registry
    registry.bind(hosted.project, hosted.model.id, reason="test")
    views = Views(hosted.settings, lambda project: registry.catalogue().serving(project), registry.catalogue)
    with Client(hosted.studio.url, hosted.studio.token) as client:
        project = client.project(hosted.project)
        assert views.of(project).name == hosted.version, "it has not said anything yet"
        hosted.run(hosted.job())
        assert views.of(project).name == "Talker-1"
        said = show_serving(hosted.settings, registry, Loops(hosted.store.engine), hosted.project)
        assert said.startswith("Label Studio shows the predictions of Talker-1")
        assert client.project(hosted.project).model_version == "Talker-1"

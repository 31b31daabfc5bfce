"""The project that learns: what the simulated annotator draws, whom it draws it for, and what is said of a run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from labelloop.core.outlines import bounding_box
from labelloop.demo import belt
from labelloop.demo.annotator import Annotator
from labelloop.demo.lesson import Follower, Lesson, annotate, find_problems
from labelloop.demo.project import ensure_project
from labelloop.demo.scenario import Show, boxes_config
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.wire import decode_regions
from labelloop.testing import FakeLabelStudio

CONFIG = boxes_config(belt.LABELS)


@pytest.fixture
def lesson(tmp_path: Path) -> Iterator[Lesson]:
    """Three pictures of the belt in a project without predictions."""
    scenes = [belt.draw_scene(0, number) for number in (1, 2, 3)]
    for scene in scenes:
        (tmp_path / scene.name).write_bytes(scene.jpeg)
    show = Show("Belt", CONFIG, tuple(tmp_path / scene.name for scene in scenes), fields={"description": "generated"})
    with (
        FakeLabelStudio() as studio,
        Client(studio.url, studio.personal_access_token, attempts=1) as client,
        httpx.Client(base_url=studio.url) as api,
    ):
        project = ensure_project(client, show)
        annotator = Annotator(client, CONFIG, {scene.name: scene.parts for scene in scenes})
        yield Lesson(client, api, project, show, annotator)


def run(**values: Any) -> dict[str, Any]:
    """A run as the JSON API tells it."""
    options = {"budget_s": 60.0}
    begun = {"job_id": "5", "stage": "pull", "trainer": "", "base": "", "candidate": "", "counts": {}, "metrics": {}}
    return begun | {"options": options, "verdict": "", "outcome": None, "ended_at": None} | values


def test_the_annotator_draws_what_is_there_to_a_tenth_of_a_pixel(lesson: Lesson) -> None:
    task = lesson.untouched()[1]
    assert lesson.annotator.annotate(task) == len(lesson.annotator.parts_of(task)) > 0
    (annotation,) = lesson.client.task(task.id)["annotations"]
    drawn = decode_regions(annotation["result"], parse_config(CONFIG))
    for region, part in zip(drawn, lesson.annotator.parts_of(task), strict=True):
        box = bounding_box(region.shape)
        assert box is not None
        assert region.label == part.label
        assert box.xyxy == pytest.approx(part.xyxy, abs=0.1)


def test_the_most_uncertain_come_first_and_what_is_annotated_does_not_come_again(lesson: Lesson) -> None:
    first, second, third = (task.id for task in lesson.untouched())
    rows = [
        {"task": task, "result": [], "score": score, "model_version": "belt@1"}
        for task, score in ((first, 0.9), (second, 0.1), (third, 0.5))
    ]
    lesson.client.import_predictions(lesson.project.id, rows)
    lesson.client.set_project(lesson.project.id, model_version="belt@1")
    assert [task.id for task in lesson.untouched()] == [second, third, first]
    said: list[str] = []
    annotate(lesson, 2, tell=said.append)
    assert [task.id for task in lesson.untouched()] == [first]
    assert "simulated annotator" in said[0]


def test_what_a_run_does_is_said_once_each(lesson: Lesson, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    follower = Follower(lesson, said.append)
    steps = [
        None,
        run(),
        run(stage="train", trainer="scratch", counts={"train": 30, "val": 10}),
        run(stage="refresh", trainer="scratch", verdict="AP50 0.5: promoted.", outcome="promoted", candidate="p@1"),
    ]
    for step in steps * 2:
        monkeypatch.setattr(Lesson, "state", lambda _, step=step: {"run": step, "job": None})
        follower.look()
    assert [line.partition(":")[0] for line in said] == [
        "Training from nothing on 30 pictures, 10 held out",
        "AP50 0.5",
        "p@1 is live; new predictions are on the way",
    ]


@pytest.mark.parametrize(
    ("runs", "says"),
    [
        ([], "no first model went live"),
        ([run(outcome="refused", verdict="it finds nothing")], "no first model went live"),
        ([run(outcome="declined", verdict="nobody has drawn a box")], "nobody has drawn a box"),
        ([run(outcome="promoted", trainer="head", candidate="p@1")], "trained by head"),
        ([run(outcome="promoted", trainer="scratch", candidate="p@1")], "shows no version, and p@1 is live"),
    ],
    ids=["no run", "refused", "declined", "another trainer", "not shown"],
)
def test_what_went_wrong_is_found(lesson: Lesson, runs: list[dict[str, Any]], says: str) -> None:
    assert says in "; ".join(find_problems(lesson, runs))

"""Annotations out of a Label Studio with everything that people do in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from labelloop.core.errors import LabelConfigError, LabelStudioError
from labelloop.jobs import pull as pulling
from labelloop.jobs.pull import pull
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.records import TaskPage
from labelloop.learning.manifest import Dropped, LeftOut, Options
from labelloop.testing import FakeLabelStudio
from reference.running_server import CONFIG


@pytest.fixture
def client(studio: FakeLabelStudio) -> Iterator[Client]:
    with Client(studio.url, studio.token) as made:
        yield made


def rectangle(x: float, *, label: str = "Car", **value: Any) -> dict[str, Any]:
    shape = {"x": x, "y": 10, "width": 20, "height": 30, "rotation": 0, "rectanglelabels": [label]} | value
    return {
        "id": f"r{x}", "from_name": "box", "to_name": "img", "type": "rectanglelabels",
        "original_width": 200, "original_height": 100, "image_rotation": 0, "value": shape,
    }  # fmt: skip


def annotate(studio: FakeLabelStudio, task: int, *result: dict[str, Any], **fields: Any) -> int:
    state = studio.state
    return int(state.add_annotation(state.tasks[task], {"result": list(result), **fields})["id"])


@pytest.fixture
def project(studio: FakeLabelStudio) -> int:
    return studio.add_project("cells", CONFIG)


def test_what_people_did_becomes_a_manifest(studio: FakeLabelStudio, client: Client, project: int) -> None:
    one, empty, skipped, untouched, twice = studio.add_tasks(project, ({"image": f"/data/{n}.jpg"} for n in range(5)))
    first = annotate(studio, one, rectangle(10), rectangle(50, label="Bus"))
    annotate(studio, empty)
    annotate(studio, skipped, was_cancelled=True)
    annotate(studio, twice, rectangle(1))
    annotate(studio, twice, rectangle(2), ground_truth=True)
    annotate(studio, twice, rectangle(3))
    manifest = pull(client, client.project(project), Options())
    assert (manifest.project_id, manifest.labels) == (project, ("Car",))
    assert [(item.task_id, [d.xyxy for d in item.drawn]) for item in manifest.items] == [
        (one, [(20, 10, 60, 40)]),
        (empty, []),
        (twice, [(4, 10, 44, 40)]),
    ]
    assert (manifest.items[0].uri, manifest.items[0].size, manifest.items[0].annotation_ids) == (
        "/data/0.jpg",
        (200, 100),
        (first,),
    )
    assert manifest.left_out == (LeftOut(skipped, "skipped", "everybody passed it on"),)
    assert manifest.dropped == (Dropped("unknown-label", "Bus", 1),)
    assert untouched not in {item.task_id for item in manifest.items}


def test_many_tasks_come_in_pages_by_id_while_others_work(
    studio: FakeLabelStudio, client: Client, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "PAGE_SIZE", 10)
    tasks = studio.add_tasks(project, ({"image": f"/data/{n}.jpg"} for n in range(35)))
    for task in tasks:
        annotate(studio, task, rectangle(task % 50))
    sizes: list[int] = []

    def ask(request: Callable[[], TaskPage]) -> TaskPage:
        page = request()
        sizes.append(len(page.tasks))
        if len(sizes) == 1:  # moves what a page number would mean
            studio.state.remove_task(tasks[0])
            studio.state.projects[project].task_ids.remove(tasks[0])
        return page

    manifest = pull(client, client.project(project), Options(), ask=ask)
    assert [item.task_id for item in manifest.items] == tasks, "none twice, none lost"
    assert sizes == [10, 10, 10, 5, 0, 0]


def test_an_annotation_that_is_not_ours_to_understand_does_not_stop_the_others(
    studio: FakeLabelStudio, client: Client, project: int
) -> None:
    one, other = studio.add_tasks(project, ({"image": "/a.jpg"}, {"image": "/b.jpg"}))
    annotate(
        studio,
        one,
        {"id": "?", "type": "brushlabels", "from_name": 3, "value": {"rle": [1]}},
        rectangle(10, width="wide"),
    )
    annotate(studio, other, rectangle(10))
    manifest = pull(client, client.project(project), Options())
    assert [len(item.drawn) for item in manifest.items] == [0, 1]
    assert sum(dropped.regions for dropped in manifest.dropped) == 2


def test_a_list_that_leaves_out_what_was_drawn_is_no_list_of_empty_pictures(
    studio: FakeLabelStudio, client: Client, project: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    (one,) = studio.add_tasks(project, [{"image": "/a.jpg"}])
    annotate(studio, one, rectangle(10))
    tasks, whole = client.tasks, client.task

    def bare(*arguments: Any, **options: Any) -> TaskPage:
        page = tasks(*arguments, **options)
        return TaskPage(tuple(row | {"annotations": [{"id": 1, "is_stub": True}]} for row in page.tasks), page.total)

    monkeypatch.setattr(client, "tasks", bare)
    assert [len(item.drawn) for item in pull(client, client.project(project), Options()).items] == [1]
    monkeypatch.setattr(client, "task", lambda number: whole(number) | {"annotations": [{"id": 1}]})
    with pytest.raises(LabelStudioError, match=f"does not say what people drew on task {one}"):
        pull(client, client.project(project), Options())


def test_a_relation_is_no_region(studio: FakeLabelStudio, client: Client, project: int) -> None:
    (one,) = studio.add_tasks(project, [{"image": "/a.jpg"}])
    annotate(
        studio,
        one,
        rectangle(10),
        rectangle(50),
        {"type": "relation", "from_id": "r10", "to_id": "r50", "direction": "right"},
    )
    manifest = pull(client, client.project(project), Options())
    assert (len(manifest.items[0].drawn), manifest.dropped) == (2, ())


def test_a_project_that_teaches_nothing_says_so(studio: FakeLabelStudio, client: Client) -> None:
    config = '<View><Image name="i" value="$image"/><TextArea name="c" toName="i"/></View>'
    with pytest.raises(LabelConfigError, match="no labels for boxes"):
        pull(client, client.project(studio.add_project("choices", config)), Options())

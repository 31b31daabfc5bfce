"""Events with several annotations, one by one."""

from __future__ import annotations

from typing import Any

import pytest

from labelloop.labelstudio.events import deleted_ids, one_by_one
from reference.stand import recording

PROJECT = {"id": 1}


def test_a_bulk_event_of_label_studio_becomes_one_for_each_annotation_with_its_task(shared: Any) -> None:
    body = recording(shared, "webhook_annotations_created_bulk")
    found = list(one_by_one(body["action"], body))
    assert [action for action, _ in found] == ["ANNOTATION_CREATED"] * len(body["annotation"])
    single = recording(shared, "webhook_annotation_created")
    for (_, payload), annotation in zip(found, body["annotation"], strict=True):
        assert payload["annotation"] == annotation
        assert payload["task"]["id"] == annotation["task"]
        assert "data" in payload["task"]
        assert set(payload) == set(single), "nothing that a model reads is missing or new"
        assert payload["project"] == body["project"]


@pytest.mark.parametrize(
    ("annotation", "task", "expected"),
    [
        ([{"id": 8, "task": 2}, {"id": 9, "task": 1}], [{"id": 1}, {"id": 2}], [(8, {"id": 2}), (9, {"id": 1})]),
        ([{"id": 8, "task": 7}], [{"id": 1}], [(8, {"id": 7})]),
        ([{"id": 8, "task": 7}], None, [(8, {"id": 7})]),
        ({"id": 8, "task": 7}, {"id": 7, "data": {}}, [(8, {"id": 7, "data": {}})]),
        ([None, "x", {"id": 8, "task": 1}], [None, {"id": 1}], [(8, {"id": 1})]),
        (None, None, []),
    ],
    ids=["in another order", "its task is missing", "no tasks", "one, as it is for one", "rubbish between", "nothing"],
)
def test_what_a_bulk_event_may_look_like(annotation: Any, task: Any, expected: list[Any]) -> None:
    payload = {"annotation": annotation, "task": task, "project": PROJECT}
    found = [(one["annotation"]["id"], one["task"]) for _, one in one_by_one("ANNOTATIONS_CREATED", payload)]
    assert found == expected


def test_deleted_annotations_are_told_one_by_one_with_the_task_where_it_is_known(shared: Any) -> None:
    body = recording(shared, "webhook_annotations_deleted")
    (number,) = deleted_ids(body)
    ((action, payload),) = one_by_one(body["action"], body, {number: 7})
    assert action == payload["action"] == "ANNOTATION_DELETED"
    assert payload["annotation"] == {"id": number, "task": 7}
    assert payload["task"] == {"id": 7}
    assert payload["project"] == body["project"]
    several = {"annotations": [{"id": 8}, None, {"id": True}, {"id": 2**64}, {}, {"id": 9}], "project": PROJECT}
    found = [one for _, one in one_by_one("ANNOTATIONS_DELETED", several, {9: 3})]
    assert [one["annotation"] for one in found] == [{"id": 8}, {"id": 9, "task": 3}]
    assert ["task" in one for one in found] == [False, True]
    assert list(one_by_one("ANNOTATIONS_DELETED", {"project": PROJECT})) == []


def test_other_events_stay_as_they_are() -> None:
    payload = {"action": "START_TRAINING", "project": PROJECT}
    assert list(one_by_one("START_TRAINING", payload)) == [("START_TRAINING", payload)]

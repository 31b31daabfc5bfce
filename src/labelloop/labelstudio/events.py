"""Webhook events with several annotations, as those with one: that is what code written for the official SDK reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from labelloop.labelstudio.wire import LARGEST_ID

CREATED = "ANNOTATION_CREATED"
SEVERAL_CREATED = "ANNOTATIONS_CREATED"
"""The Data Manager's "Create Annotations From Predictions"; `annotation` and `task` are lists in it."""
DELETED = "ANNOTATION_DELETED"
"""What the official SDK lists among the events of `fit`. Label Studio sends none of this name."""
SEVERAL_DELETED = "ANNOTATIONS_DELETED"
"""Of one annotation too; `annotations` are bare ids in it, and no task is named (PROTOCOL finding 16)."""


def one_by_one(
    action: str, payload: Mapping[str, Any], owners: Mapping[int, int] | None = None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Action and payload of each event that this one means: of several annotations one for each, with the task that it
    names; every other event as it is. Entries that are no objects are left out.

    `owners` are the tasks of deleted annotations, as far as they are known. The others come without one.
    """
    if action == SEVERAL_CREATED:
        yield from _created(payload)
    elif action == SEVERAL_DELETED:
        yield from _deleted(payload, owners or {})
    else:
        yield action, dict(payload)


def deleted_ids(payload: Mapping[str, Any]) -> list[int]:
    """The annotations that an event says are gone."""
    found = [annotation.get("id") for annotation in _objects(payload.get("annotations"))]
    return [number for number in found if type(number) is int and 0 <= number <= LARGEST_ID]


def _created(payload: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    annotations, tasks = payload.get("annotation"), payload.get("task")
    by_id = {task.get("id"): task for task in _objects(tasks)}
    for annotation in _objects(annotations):
        named = annotation.get("task")
        task = by_id.get(named, {"id": named})
        yield CREATED, {**payload, "action": CREATED, "annotation": annotation, "task": task}


def _deleted(payload: Mapping[str, Any], owners: Mapping[int, int]) -> Iterator[tuple[str, dict[str, Any]]]:
    kept = {name: value for name, value in payload.items() if name != "annotations"}
    for number in deleted_ids(payload):
        task = owners.get(number)
        named = {} if task is None else {"annotation": {"id": number, "task": task}, "task": {"id": task}}
        yield DELETED, {**kept, "action": DELETED, "annotation": {"id": number}, **named}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]

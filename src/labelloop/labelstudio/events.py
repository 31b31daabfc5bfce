"""Webhook events with several annotations, as those with one: that is what code written for the official SDK reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

CREATED = "ANNOTATION_CREATED"
SEVERAL_CREATED = "ANNOTATIONS_CREATED"
"""The Data Manager's "Create Annotations From Predictions"; `annotation` and `task` are lists in it."""


def one_by_one(action: str, payload: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Action and payload of each event that this one means: of several annotations one for each, with the task that it
    names; every other event as it is. Entries that are no objects are left out."""
    if action != SEVERAL_CREATED:
        yield action, dict(payload)
        return
    annotations, tasks = payload.get("annotation"), payload.get("task")
    by_id = {task.get("id"): task for task in _objects(tasks)}
    for annotation in _objects(annotations):
        named = annotation.get("task")
        task = by_id.get(named, {"id": named})
        yield CREATED, {**payload, "action": CREATED, "annotation": annotation, "task": task}


def _objects(value: Any) -> list[dict[str, Any]]:
    return [item for item in (value if isinstance(value, list) else [value]) if isinstance(item, dict)]

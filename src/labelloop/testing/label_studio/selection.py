"""Filters and ordering of the Data Manager, as far as PROTOCOL 6.2 and 9 verified them."""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

from labelloop.testing.label_studio.exchange import Refused
from labelloop.testing.label_studio.rows import list_task_row, predictions_score
from labelloop.testing.label_studio.state import Project, State, Task, timestamp

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "equal": operator.eq,
    "not_equal": operator.ne,
    "less": operator.lt,
    "greater": operator.gt,
    "less_or_equal": operator.le,
    "greater_or_equal": operator.ge,
}


def select(state: State, project: Project, query: dict[str, Any]) -> Sequence[int]:
    """Ids of the selected tasks in order. `query` has `filters`, `ordering` and `selectedItems`; without them this is
    a list that exists already, which keeps paging through 100,000 tasks cheap."""
    picked: Sequence[int] = project.task_ids
    items = query.get("filters", {}).get("items", [])
    if items:
        joined = all if query["filters"].get("conjunction") == "and" else any
        picked = [task for task in picked if joined(_passes(state, state.tasks[task], item) for item in items)]
    chosen = query.get("selectedItems") or {"all": True}
    if not chosen["all"]:
        wanted = set(chosen["included"])
        picked = [task for task in picked if task in wanted]
    elif excluded := set(chosen.get("excluded", ())):
        picked = [task for task in picked if task not in excluded]
    for column in reversed(query.get("ordering") or []):
        picked = _ordered(state, picked, column)
    return picked


def query_of(state: State, parameters: dict[str, str]) -> dict[str, Any]:
    """From `query=<JSON>` or from a stored view."""
    if "view" in parameters:
        view = state.views.get(int(parameters["view"]))
        if view is None:
            raise Refused(404, "No View matches the given query.")
        return dict(view["data"])
    return dict(json.loads(parameters.get("query") or "{}"))


def _passes(state: State, task: Task, item: dict[str, Any]) -> bool:
    column = item["filter"].removeprefix("filter:tasks:")
    name, wanted = item["operator"], item["value"]
    if column == "annotations_ids" and name in ("contains", "not_contains"):
        # a list of ids in one text; any of them will do
        ids = {int(part) for part in re.split("[,; ]", wanted) if part.isdigit()}
        return any(row["id"] in ids for row in state.annotations.get(task.id, ())) is (name == "contains")
    value = _value(state, task, column)
    if value is None:
        return bool(name.startswith("not_"))
    if name in ("contains", "not_contains"):
        has: bool = any(str(part) in value for part in (wanted if isinstance(wanted, list) else [wanted]))
        return has is (name == "contains")
    return bool(_COMPARE[name](value, wanted))


def _value(state: State, task: Task, column: str) -> Any:
    if column == "id":
        return task.id
    if column.startswith("data."):
        return task.data.get(column.removeprefix("data."))
    if column == "total_annotations":
        return sum(not row["was_cancelled"] for row in state.annotations.get(task.id, ()))
    if column == "predictions_score":
        return predictions_score(state, task)
    if column == "predictions_model_versions":
        return {row["model_version"] for row in state.predictions.get(task.id, ())}
    if column == "updated_at":
        return timestamp(task.updated_s)
    row = list_task_row(state, task, everything=True)
    if column not in row:
        raise Refused(500, f"Cannot resolve keyword '{column}' into field.")
    return row[column]


def _ordered(state: State, tasks: Sequence[int], ordering: str) -> list[int]:
    """Tasks without a value come last in both directions."""
    column, down = ordering.removeprefix("-").removeprefix("tasks:"), ordering.startswith("-")
    values = {task: _value(state, state.tasks[task], column) for task in tasks}
    known = sorted((task for task in tasks if values[task] is not None), key=lambda task: values[task], reverse=down)
    return known + [task for task in tasks if values[task] is None]

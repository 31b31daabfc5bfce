"""Filters of the Data Manager: which tasks a call is about (PROTOCOL 6.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from labelloop.core.errors import LabelStudioError

Filters = Mapping[str, Any]
"""`{"conjunction": "and" | "or", "items": [...]}`."""

_OPERATORS = {
    "!=": "not_equal",
    ">=": "greater_or_equal",
    "<=": "less_or_equal",
    "!~": "not_contains",
    "=": "equal",
    ">": "greater",
    "<": "less",
    "~": "contains",
}
_EXPRESSION = re.compile(r"\s*(?:tasks:)?([\w.$-]+)\s*(!=|>=|<=|!~|=|>|<|~)\s*(.*?)\s*")
_LISTS = ("predictions_model_versions",)


class BadFilter(LabelStudioError):
    code = "bad-filter"


def item(column: str, operator: str, kind: str, value: Any) -> dict[str, Any]:
    """One condition, in Label Studio's words."""
    return {"filter": f"filter:tasks:{column}", "operator": operator, "type": kind, "value": value}


def without_version(version: str) -> dict[str, Any]:
    """Tasks without a prediction of this version. Label Studio compares parts of names: a task with a prediction of
    "big-cars@1" has one of "cars@1" as well."""
    return item("predictions_model_versions", "not_contains", "List", [version])


def after(task_id: int) -> dict[str, Any]:
    """Tasks with a greater id. It comes first in a filter: it is the cheapest to check."""
    return item("id", "greater", "Number", task_id)


def untouched() -> list[dict[str, Any]]:
    """Tasks that nobody annotated and nobody skipped."""
    return [item(column, "equal", "Number", 0) for column in ("total_annotations", "cancelled_annotations")]


def query_of(conditions: Sequence[Mapping[str, Any]], *, filters: Filters | None = None) -> dict[str, Any]:
    """The `query` of a task list in the order of ids: all `conditions`, and `filters`. Raises BadFilter for filters
    joined by "or", which Label Studio cannot nest."""
    own = list(filters["items"]) if filters else []
    if filters and filters.get("conjunction", "and") != "and" and len(own) > 1:
        raise BadFilter('Conditions joined by "or" cannot be used here.', hint="Run one job per condition.")
    return {"filters": {"conjunction": "and", "items": [*conditions, *own]}, "ordering": ["tasks:id"]}


def chosen(task_ids: Sequence[int]) -> dict[str, Any]:
    """The `query` that means exactly these tasks. They travel in the address: send about a hundred at a time."""
    return {"selectedItems": {"all": False, "included": list(task_ids)}, "ordering": ["tasks:id"]}


def parse_moment(text: str) -> datetime:
    """A day (midnight UTC) or a moment in ISO 8601 (UTC without an offset). Raises BadFilter."""
    try:
        moment = datetime.fromisoformat(text.strip())
        return moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError) as error:  # OverflowError: the year 1, east of Greenwich
        hint = "Write for instance 2026-11-01 or 2026-11-01T08:30:00+01:00."
        raise BadFilter(f"{text[:40]!r} is not a date.", hint=hint) from error


def moment_value(moment: datetime) -> str:
    """As Label Studio reads moments in filters; any other form is a 500."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def parse_filters(expressions: Sequence[str]) -> Filters | None:
    """`COLUMN OPERATOR VALUE` with = != < <= > >= ~ (contains) !~, or one JSON object as Label Studio writes it. None
    without any. Raises BadFilter."""
    items: list[Any] = []
    for text in expressions:
        items += _parse_json(text) if text.lstrip().startswith(("{", "[")) else [_parse(text)]
    return {"conjunction": "and", "items": items} if items else None


def filters_of(given: Sequence[str] | Mapping[str, Any]) -> Filters | None:
    """Filters from a program: expressions, or one object in Label Studio's own form. Raises BadFilter."""
    return parse_filters([msgspec.json.encode(given).decode()] if isinstance(given, Mapping) else given)


def _parse(text: str) -> dict[str, Any]:
    match = _EXPRESSION.fullmatch(text)
    if not match or not match[3]:
        hint = "Write for instance total_annotations=0 or 'updated_at > 2026-11-01' or data.city=Oslo."
        raise BadFilter(f"{text!r} is not a filter.", hint=hint)
    column, operator, value = match[1], _OPERATORS[match[2]], match[3]
    if column in _LISTS:
        return item(column, operator, "List", [value])
    if re.fullmatch(r"-?\d+(\.\d+)?", value):
        return item(column, operator, "Number", float(value) if "." in value else int(value))
    if value in ("true", "false"):
        return item(column, operator, "Boolean", value == "true")
    if column.endswith("_at") and not column.startswith("data."):
        return item(column, operator, "Datetime", moment_value(parse_moment(value)))
    return item(column, operator, "String", value)


def _parse_json(text: str) -> list[Any]:
    try:
        content = msgspec.json.decode(text)
        content = content.get("filters", content) if isinstance(content, dict) else content
        items = content["items"] if isinstance(content, dict) else content
        joined = content.get("conjunction", "and") if isinstance(content, dict) else "and"
    except (msgspec.DecodeError, KeyError) as error:
        raise BadFilter(f"This filter cannot be read: {error}.", hint='It is {"conjunction", "items"}.') from error
    if not isinstance(items, list) or not all(isinstance(one, dict) for one in items):
        raise BadFilter("This filter is no list of conditions.", hint='It is {"conjunction", "items"}.')
    if joined != "and" and len(items) > 1:
        raise BadFilter('Conditions joined by "or" cannot be used here.', hint="Run one job per condition.")
    return list(items)

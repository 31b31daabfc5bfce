"""What changed in a project since a moment, asked of Label Studio itself: events are lost, and imports send none.

A task's `updated_at` moves when one of its annotations is made, changed, skipped or deleted, by whatever way, and when
the task is imported (seen on 1.23.2). It does not move for drafts and for predictions imported in bulk. A deleted task
is only missed by counting.

The id of a deleted annotation may come again: on SQLite an import of tasks numbers its annotations from the highest id
that is left (seen on 1.23.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import chosen, item
from labelloop.labelstudio.wire import moment_of

PAGE = 500
_ASK_AT = 100
"""Tasks asked about in one request: their ids travel in its address."""


class Touched(msgspec.Struct, frozen=True):
    """A task as a listing tells it; `annotations` counts skipped ones too."""

    id: int
    updated_at: datetime
    annotations: int


class Said(msgspec.Struct, frozen=True):
    """One annotation, without what it says."""

    id: int
    task_id: int
    updated_at: datetime
    was_cancelled: bool = False


class Changes(msgspec.Struct, frozen=True):
    """What people did since a moment. `changed` are annotations made or changed that count (not skipped), `withdrawn`
    those that were known and are gone or skipped now. `until` is the newest change of all, None for none."""

    changed: frozenset[int] = frozenset()
    withdrawn: frozenset[int] = frozenset()
    task_ids: frozenset[int] = frozenset()
    until: datetime | None = None

    def __len__(self) -> int:
        return len(self.changed) + len(self.withdrawn)


def touched(client: Client, project_id: int, *, since: datetime) -> Iterator[list[Touched]]:
    """Pages of tasks whose `updated_at` is greater than `since`, the highest id first.

    By ids, because what changes while we read moves page numbers. The first page holds what was imported last; all its
    moments lie before its request, so they are where the next look may begin.
    """
    below: int | None = None
    while True:
        conditions = [item("updated_at", "greater", "Datetime", text_of(since))]
        conditions += [item("id", "less", "Number", below)] if below is not None else []
        query = {"filters": {"conjunction": "and", "items": conditions}, "ordering": ["-tasks:id"]}
        include = ("id", "updated_at", "total_annotations", "cancelled_annotations")
        rows = client.tasks(project_id, page_size=PAGE, include=include, query=query).tasks
        if rows or below is None:
            yield [_touched(row) for row in rows]
        if len(rows) < PAGE:
            return
        below = rows[-1]["id"]


def annotations_on(client: Client, project_id: int, task_ids: Sequence[int]) -> dict[int, list[Said]]:
    """The annotations of these tasks, by task; tasks that are gone are left out."""
    found: dict[int, list[Said]] = {}
    for start in range(0, len(task_ids), _ASK_AT):
        query = chosen(task_ids[start : start + _ASK_AT])
        found |= _annotations(client, project_id, query, page_size=_ASK_AT)
    return found


def all_annotations(client: Client, project_id: int) -> Iterator[dict[int, list[Said]]]:
    """The annotations of every task that has any, by task, page by page."""
    for column in ("total_annotations", "cancelled_annotations"):
        last = 0
        while True:
            conditions = [item("id", "greater", "Number", last), item(column, "greater", "Number", 0)]
            query = {"filters": {"conjunction": "and", "items": conditions}, "ordering": ["tasks:id"]}
            found = _annotations(client, project_id, query, page_size=PAGE)
            if found:
                yield found
            if len(found) < PAGE:
                break
            last = max(found)


def changes_since(
    client: Client, project_id: int, since: datetime, *, known: Mapping[int, int] | None = None
) -> Changes:
    """What people did after `since` (a moment that Label Studio said). `known` are annotations that a training used,
    with their tasks: of those, the withdrawn ones are found unless the whole task is gone.

    One request when nothing happened; else one more per hundred tasks that were touched.
    """
    known = known or {}
    tasks = [task for page in touched(client, project_id, since=since) for task in page]
    asked = sorted({task.id for task in tasks if task.annotations} | {task.id for task in tasks} & set(known.values()))
    there = [said for rows in annotations_on(client, project_id, asked).values() for said in rows]
    valid = [said for said in there if not said.was_cancelled]
    changed = frozenset(said.id for said in valid if said.updated_at > since)
    # with its task, because an id is no name for ever: the same may come again
    left = {(said.id, said.task_id) for said in valid}
    looked_at = {task.id for task in tasks}
    withdrawn = frozenset(pair[0] for pair in known.items() if pair[1] in looked_at and pair not in left)
    until = max((task.updated_at for task in tasks), default=None)
    return Changes(changed, withdrawn, frozenset(task.id for task in tasks), until)


def text_of(moment: datetime) -> str:
    """As Label Studio's filters take it."""
    return moment.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _annotations(client: Client, project_id: int, query: Mapping[str, Any], *, page_size: int) -> dict[int, list[Said]]:
    # `include` holds for the annotations inside a task too, so that their results stay where they are
    include = ("id", "updated_at", "was_cancelled", "annotations")
    rows = client.tasks(project_id, page_size=page_size, include=include, query=query, everything=True).tasks
    return {row["id"]: [_said(one, row["id"]) for one in row["annotations"]] for row in rows}


def _touched(row: Mapping[str, Any]) -> Touched:
    count = row.get("total_annotations", 0) + row.get("cancelled_annotations", 0)
    return Touched(row["id"], moment(row["updated_at"]), count)


def _said(row: Mapping[str, Any], task_id: int) -> Said:
    return Said(row["id"], task_id, moment(row["updated_at"]), bool(row.get("was_cancelled")))


def moment(text: str) -> datetime:
    """A moment as Label Studio writes it. Raises ValueError."""
    found = moment_of(text)
    if found is None:
        raise ValueError(f"Label Studio calls {text!r} a moment")
    return found

"""Annotated tasks, page by page: what people submitted, and the stored predictions that they may have begun with.

The editor copies the shown prediction into the annotation with the ids of its regions, names it as `parent_prediction`,
and notes for each region where it is from (`origin`). Deleting a prediction clears `parent_prediction` and leaves the
origins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

import msgspec

from labelloop.core.regions import Region
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import LabelConfig
from labelloop.labelstudio.filters import after, item, moment_value, query_of
from labelloop.labelstudio.wire import decode_regions, name_of

PAGE = 200
"""Tasks in one answer. It brings every version's prediction of each, so a page is a few megabytes at worst."""

# `include` also chooses the keys of the annotations inside the tasks, though not those of their predictions.
_TASK_KEYS = ("id", "annotations", "predictions")
_ANNOTATION_KEYS = ("result", "was_cancelled", "parent_prediction", "lead_time", "updated_by", "updated_at")


class Submission(msgspec.Struct, frozen=True):
    """A submitted annotation; `result` as Label Studio stores it. `parent_prediction` is the id of the prediction that
    it began with: None for nothing, and for one that was deleted since. `looked_at`: a person had it on the screen, so
    it is not one that "Create Annotations From Predictions" made and nobody touched."""

    id: int
    result: tuple[dict[str, Any], ...]
    parent_prediction: int | None
    updated_at: datetime | None
    looked_at: bool

    def regions(self, config: LabelConfig) -> tuple[Region, ...]:
        """In pixels, with the project's labels."""
        return tuple(decode_regions(list(self.result), config))

    def origins(self) -> dict[str, str]:
        """By region id, what the editor noted: "prediction", "prediction-changed" or "manual"."""
        found: dict[str, str] = {}
        for one in self.result:
            name, origin = name_of(one), one.get("origin")
            if name is not None and isinstance(origin, str):
                found.setdefault(name, origin)
        return found


class StoredPrediction(msgspec.Struct, frozen=True):
    """A prediction that Label Studio holds; `result` as it stores it."""

    id: int
    version: str
    result: tuple[dict[str, Any], ...]

    def regions(self, config: LabelConfig) -> tuple[Region, ...]:
        """In pixels, with the project's labels."""
        return tuple(decode_regions(list(self.result), config))


class AnnotatedTask(msgspec.Struct, frozen=True):
    """A task with everything that people submitted about it, every annotator apart; skips are left out."""

    id: int
    submissions: tuple[Submission, ...]
    predictions: Mapping[int, StoredPrediction]


class AnnotatedPage(msgspec.Struct, frozen=True):
    """Tasks in the order of their ids. `left` is how many there are from this page on."""

    tasks: tuple[AnnotatedTask, ...]
    left: int


def annotated_pages(
    client: Client, project_id: int, *, since: datetime | None = None, page_size: int = PAGE
) -> Iterator[AnnotatedPage]:
    """Every task with a submitted annotation, a page at a time and nothing kept. Read by ids, so that what is annotated
    or deleted meanwhile moves no task from one page to another. With `since`, only annotations saved from then on."""
    last = 0
    while True:
        page = client.tasks(
            project_id,
            page_size=page_size,
            include=(*_TASK_KEYS, *_ANNOTATION_KEYS),
            query=query_of([after(last), *_conditions(since)]),
            everything=True,
        )
        if not page.tasks:
            return
        last = max(row["id"] for row in page.tasks)
        yield AnnotatedPage(tuple(_task(row, since) for row in page.tasks), page.total)
        if len(page.tasks) >= page.total:
            return


def _conditions(since: datetime | None) -> list[dict[str, Any]]:
    """Tasks with an annotation. A task is saved after its annotation, so by its own time none is missed."""
    annotated = [item("total_annotations", "greater", "Number", 0)]
    if since is None:
        return annotated
    return [*annotated, item("updated_at", "greater_or_equal", "Datetime", moment_value(since))]


def _task(row: Mapping[str, Any], since: datetime | None) -> AnnotatedTask:
    read = [_submission(one) for one in row.get("annotations") or () if not one.get("was_cancelled")]
    return AnnotatedTask(
        row["id"],
        tuple(one for one in read if since is None or (one.updated_at is not None and one.updated_at >= since)),
        {one["id"]: _prediction(one) for one in row.get("predictions") or ()},
    )


def _submission(row: Mapping[str, Any]) -> Submission:
    result, parent = _regions_of(row), row.get("parent_prediction")
    # The editor notes time, user and origins; "Create Annotations From Predictions" writes rows without any of them.
    signs = (row.get("lead_time"), row.get("updated_by"), *(one.get("origin") for one in result))
    untouched = parent is not None and all(sign is None for sign in signs)
    return Submission(row["id"], result, parent, _moment(row.get("updated_at")), looked_at=not untouched)


def _prediction(row: Mapping[str, Any]) -> StoredPrediction:
    return StoredPrediction(row["id"], row.get("model_version") or "", _regions_of(row))


def _regions_of(row: Mapping[str, Any]) -> tuple[dict[str, Any], ...]:
    """What was drawn or said; relations between regions are not regions."""
    result = row.get("result")
    found = result if isinstance(result, list) else ()
    return tuple(one for one in found if isinstance(one, dict) and one.get("type") != "relation")


def _moment(value: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return None

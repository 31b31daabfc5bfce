"""Annotations out of Label Studio, page by page, on their way into a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from labelloop.core.errors import LabelStudioError
from labelloop.core.tasks import Task
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import LabelConfig, parse_config
from labelloop.labelstudio.filters import after, item, query_of
from labelloop.labelstudio.records import Project, TaskPage
from labelloop.labelstudio.vocabulary import Vocabulary, vocabulary
from labelloop.labelstudio.wire import decode_annotation, media_refs
from labelloop.learning.dataset import Annotated, freeze
from labelloop.learning.manifest import Manifest, Options

PAGE_SIZE = 100
"""Tasks in memory at a time: a brush stroke's result has megabytes."""

Ask = Callable[[Callable[[], TaskPage]], TaskPage]
"""Runs one request; a job's Patience waits for a Label Studio that is away."""

ANNOTATED = item("total_annotations", "greater", "Number", 0)
ONLY_SKIPPED = (item("total_annotations", "equal", "Number", 0), item("cancelled_annotations", "greater", "Number", 0))


def pull(client: Client, project: Project, options: Options, *, ask: Ask | None = None) -> Manifest:
    """The data set of a project as it is now; its pictures are not fetched (`jobs/folder`).

    Raises LabelConfigError for a project that has nothing a model could learn, and LabelStudioErrors.
    """
    config = parse_config(project.label_config)
    words = vocabulary(config)
    tasks = annotated(client, project.id, config, words, ask=ask)
    return freeze(tasks, project_id=project.id, vocabulary=words, options=options)


def annotated(
    client: Client, project_id: int, config: LabelConfig, words: Vocabulary, *, ask: Ask | None = None
) -> Iterator[Annotated]:
    """Every task with an annotation, or that somebody skipped. One page is in memory at a time."""
    for conditions in ((ANNOTATED,), ONLY_SKIPPED):
        for row in _rows(client, project_id, conditions, ask or (lambda request: request())):
            task = Task(row["id"], row["data"], project_id)
            yield Annotated(
                task_id=row["id"],
                refs=tuple(media_refs(task, words.fields)),
                annotations=tuple(
                    decode_annotation(_about(one, words), config, task_id=row["id"]) for one in _said(client, row)
                ),
            )


def _about(row: Mapping[str, Any], words: Vocabulary) -> Mapping[str, Any]:
    """An annotation with nothing but what is learned: another <Choices> may offer the same words."""
    if not words.control:
        return row
    kept = [one for one in row.get("result") or () if isinstance(one, dict) and one.get("from_name") == words.control]
    return {**row, "result": kept}


def _said(client: Client, row: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """The annotations of a task with what they say. A list may leave that out, and an annotation without it must not
    count as one that says: nothing is there."""
    rows: Sequence[Mapping[str, Any]] = row.get("annotations") or ()
    if any("result" not in one for one in rows):
        rows = client.task(row["id"])["annotations"]
    if any("result" not in one for one in rows):
        raise LabelStudioError(
            f"Label Studio does not say what people drew on task {row['id']}.", hint="Is this release older than 1.23?"
        )
    return rows


def _rows(
    client: Client, project_id: int, conditions: Sequence[Mapping[str, Any]], ask: Ask
) -> Iterator[dict[str, Any]]:
    """By ids, never by page number: people annotate meanwhile, and what moves pages cannot move ids."""
    last = 0
    while True:
        page = ask(partial(_page, client, project_id, query_of([after(last), *conditions])))
        if not page.tasks:
            return
        last = max(row["id"] for row in page.tasks)
        yield from page.tasks


def _page(client: Client, project_id: int, query: Mapping[str, Any]) -> TaskPage:
    # `include` chooses the keys of the annotations inside the tasks as well: what decode_annotation reads
    own = ("result", "completed_by", "was_cancelled", "ground_truth", "updated_at")
    include = ("id", "data", "annotations", *own)
    return client.tasks(project_id, page_size=PAGE_SIZE, include=include, query=query, everything=True)

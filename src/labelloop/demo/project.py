"""The demo's project in Label Studio: made once, completed on later runs, then filled with predictions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import msgspec

from labelloop.connection.connect import connect
from labelloop.core.errors import LabelStudioError
from labelloop.demo.scenario import Show
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.records import Project

Tell = Callable[[str], None]

TASKS_AT_A_TIME = 20
"""Label Studio waits 100 s for one request, whatever number of tasks is in it."""


class PictureTask(msgspec.Struct, frozen=True):
    """One task and the file it was made from."""

    id: int
    picture: Path


def ensure_project(client: Client, show: Show) -> Project:
    """The project with this title, made when there is none; pictures that it lacks are uploaded."""
    same = [project for project in client.projects(title=show.title) if project.title == show.title]
    project = same[0] if same else client.create_project(show.title, show.label_config, **show.fields)
    there = {_key(name) for name in _names_by_task(client, project.id).values()}
    missing = [picture for picture in show.pictures if _key(picture.name) not in there]
    if missing:
        client.upload_files(project.id, missing)
    return project


def picture_tasks(
    client: Client, project: Project, show: Show, *, query: Mapping[str, Any] | None = None
) -> list[PictureTask]:
    """The project's tasks that were made from these pictures, in the order of `query` or oldest first."""
    pictures = {_key(picture.name): picture for picture in show.pictures}
    names = _names_by_task(client, project.id, query=query).items()
    named = names if query else sorted(names)
    return [PictureTask(task, pictures[_key(name)]) for task, name in named if _key(name) in pictures]


def attach(client: Client, project: Project, backend_url: str) -> str:
    """Connect the backend; returns the version string that its predictions carry.

    The project is the demo's own, so rows of a run on another port are removed: Label Studio would ask the oldest.
    """
    for row in client.backends(project.id):
        if row.url != backend_url:
            client.delete_backend(row.id)
    for hook in client.webhooks(project.id):
        if hook.url != f"{backend_url}/webhook":
            client.delete_webhook(hook.id)
    report = connect(client, project.id, backend_url=backend_url)
    problems = [finding for finding in report.findings if finding.status == "fail"]
    if problems or report.backend is None or not report.backend.model_version:
        first = problems[0] if problems else None
        raise LabelStudioError(
            first.message if first else "The backend names no model.", hint=first.fix if first else ""
        )
    return report.backend.model_version


def pre_annotate(client: Client, project: Project, version: str, *, tell: Tell) -> int:
    """Let Label Studio fetch predictions for every task that has none of `version`; returns how many are still without.

    A task that could not be done in time is asked for again once: Label Studio gives up on a request after 100 s.
    """
    for _ in range(2):
        waiting = _without_prediction(client, project.id, version)
        for start in range(0, len(waiting), TASKS_AT_A_TIME):
            tell(f"Pre-annotating: {start} of {len(waiting)} pictures")
            client.retrieve_predictions(project.id, waiting[start : start + TASKS_AT_A_TIME])
    return len(_without_prediction(client, project.id, version))


def _without_prediction(client: Client, project_id: int, version: str) -> Sequence[int]:
    lacking = {
        "filter": "filter:tasks:predictions_model_versions",
        "operator": "not_contains",
        "type": "List",
        "value": [version],
    }
    query = {"filters": {"conjunction": "and", "items": [lacking]}}
    pages = client.task_pages(project_id, include=("id",), query=query)
    return sorted(task["id"] for page in pages for task in page.tasks)


def _names_by_task(client: Client, project_id: int, *, query: Mapping[str, Any] | None = None) -> dict[int, str]:
    """Task id -> name of the uploaded file, as Label Studio stored it."""
    pages = client.task_pages(project_id, include=("id", "data"), query=query)
    return {task["id"]: _uploaded_name(task["data"]) for page in pages for task in page.tasks}


def _uploaded_name(data: dict[str, Any]) -> str:
    """`/data/upload/1/5531a9a4-im%C3%A9.jpg` -> `imé.jpg`."""
    return unquote(str(data.get("image", "")).rpartition("/")[2]).partition("-")[2]


def _key(name: str) -> str:
    """Label Studio replaces spaces and signs in file names, so only letters and digits are compared."""
    return re.sub(r"[\W_]+", "", name.casefold())

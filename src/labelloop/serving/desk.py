"""What the house does for models that are other people's code: it keeps their values, fetches their media, and tells
them where Label Studio is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from labelloop.core.errors import LabelStudioError
from labelloop.core.regions import MediaKey
from labelloop.core.tasks import MediaRef
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import after, item, query_of
from labelloop.labelstudio.wire import project_id_of
from labelloop.media.load import MediaLoader
from labelloop.serving.origins import Origins
from labelloop.store.values import VERSION, Values

ANNOTATED = item("total_annotations", "greater", "Number", 0)
ABOUT_ANNOTATIONS = (
    "result",
    "completed_by",
    "was_cancelled",
    "ground_truth",
    "created_at",
    "updated_at",
    "lead_time",
    "parent_prediction",
)
WANTED = ("id", "data", "meta", "annotations", *ABOUT_ANNOTATIONS)
"""Of the tasks and, in the same breath, of the annotations inside them."""
PAGE_SIZE = 100

MEDIA_BYTES = 1_000_000_000
"""What one model's fetched files may take; the oldest go."""


class HouseDesk:
    """A Desk over the parts of one process. `media` is asked for when it is needed: it is made after the models'
    loader. `on_version` hears when a model said another version."""

    def __init__(
        self,
        home: Path,
        values: Values,
        origins: Origins,
        media: Callable[[], MediaLoader],
        *,
        on_version: Callable[[], object] = lambda: None,
    ) -> None:
        self._home = home
        self._values = values
        self._origins = origins
        self._media = media
        self.on_version = on_version

    def folder(self, model: str) -> Path:
        path = self._home / "hosted" / model
        path.mkdir(parents=True, exist_ok=True)
        return path

    def get(self, model: str, project: str, key: str) -> Any:
        return self._values.get(model, project[:40], key[:200])

    def set(self, model: str, project: str, key: str, value: Any) -> None:
        self._values.set(model, project[:40], key[:200], value)
        if key == VERSION:
            self.on_version()

    def connection(self, project: str) -> tuple[str, str]:
        number = project_id_of(project)
        return self._origins.connection(number if number is not None else -1)

    def local_path(self, model: str, project: str, uri: str, task_id: int | None) -> Path:
        body = self._media().fetch(MediaRef(uri, MediaKey(""), task_id, project_id_of(project)))
        folder = self.folder(model) / "media"
        folder.mkdir(exist_ok=True)
        path = folder / f"{hashlib.sha256(body).hexdigest()[:32]}{_suffix(uri)}"
        if path.exists():
            path.touch()
        else:
            partial = path.with_name(f"{path.name}.partial")
            partial.write_bytes(body)
            partial.replace(path)
            _trim(folder)
        return path

    def annotated(self, project: str) -> list[dict[str, Any]]:
        url, token = self.connection(project)
        number = project_id_of(project)
        if number is None or not url or not token:
            raise LabelStudioError(
                f"There is no token for the Label Studio of project {project}.",
                hint=f"Run: labelloop connect {project} --url … --token …",
            )
        return annotated_tasks(url, token, number)


def annotated_tasks(url: str, token: str, project_id: int) -> list[dict[str, Any]]:
    """Tasks with their annotations, as an export has them. Raises LabelStudioError."""
    client = Client(url, token)
    found: list[dict[str, Any]] = []
    try:
        while True:  # by ids, never by page number: people annotate meanwhile
            query = query_of([after(found[-1]["id"] if found else 0), ANNOTATED])
            page = client.tasks(project_id, page_size=PAGE_SIZE, include=WANTED, query=query, everything=True)
            if not page.tasks:
                return found
            found += sorted(page.tasks, key=lambda row: int(row["id"]))
    finally:
        client.close()


def _suffix(uri: str) -> str:
    """ ".jpg" of a reference: models open files by their names."""
    if uri[:5].lower() == "data:":
        return ""
    parts = urlsplit(uri)
    for text in (parts.path, parts.query):
        suffix = Path(text).suffix
        if suffix[1:].isalnum() and len(suffix) < 8:
            return suffix.lower()
    return ""


def _trim(folder: Path) -> None:
    files = sorted(((path.stat(), path) for path in folder.iterdir()), key=lambda one: one[0].st_mtime, reverse=True)
    total = 0
    for stat, path in files:
        total += stat.st_size
        if total > MEDIA_BYTES:
            path.unlink(missing_ok=True)

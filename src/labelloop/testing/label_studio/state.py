"""What the fake Label Studio remembers. Rows are small mutable records; `rows.py` turns them into its JSON."""

from __future__ import annotations

import itertools
import secrets
import threading
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote


def timestamp(seconds: float) -> str:
    """Label Studio's form: 2026-11-20T12:03:29.289364Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


@dataclass
class Project:
    id: int
    title: str
    label_config: str
    created_s: float
    model_version: str | None = ""
    show_collab_predictions: bool = True
    evaluate_predictions_automatically: bool = False
    sampling: str = "Sequential sampling"
    description: str = ""
    min_annotations_to_start_training: int = 0
    token: str = field(default_factory=lambda: secrets.token_urlsafe(30)[:40])
    task_ids: list[int] = field(default_factory=list)

    @property
    def uid(self) -> str:
        """How backends are told about it."""
        return f"{self.id}.{int(self.created_s)}"


@dataclass(slots=True)
class Task:
    """One of possibly 100,000: nothing is kept that can be said when it is asked for."""

    id: int
    project_id: int
    inner_id: int
    data: dict[str, Any]
    created_s: float
    updated_s: float
    file_upload: int | None = None


@dataclass
class Backend:
    id: int
    url: str
    project_id: int
    title: str
    created_s: float
    state: str = "DI"
    error_message: str | None = None
    is_interactive: bool = False
    auth_method: str = "NONE"
    basic_auth_user: str = ""
    basic_auth_pass: str = ""
    description: str = ""
    extra_params: Any = None
    model_version: str | None = ""
    timeout: float = 100.0
    auto_update: bool = True

    @property
    def auth(self) -> tuple[str, str] | None:
        """Sent whenever both are stored, whatever `auth_method` says."""
        return (self.basic_auth_user, self.basic_auth_pass) if self.basic_auth_user and self.basic_auth_pass else None


@dataclass
class Webhook:
    id: int
    url: str
    project_id: int | None
    created_s: float
    send_payload: bool = True
    send_for_all_actions: bool = True
    headers: dict[str, str] = field(default_factory=dict)
    is_active: bool = True
    actions: list[str] = field(default_factory=list)


@dataclass
class Upload:
    id: int
    project_id: int
    name: str
    content: bytes

    @property
    def address(self) -> str:
        """As tasks name it: relative and percent-encoded."""
        return f"/data/upload/{self.project_id}/{quote(self.name)}"


@dataclass
class State:
    """All rows. `lock` guards changes and is never held while the backend is called: it may call back for pictures."""

    clock: Callable[[], float]
    projects: dict[int, Project] = field(default_factory=dict)
    tasks: dict[int, Task] = field(default_factory=dict)
    predictions: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    annotations: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    backends: dict[int, Backend] = field(default_factory=dict)
    webhooks: dict[int, Webhook] = field(default_factory=dict)
    uploads: dict[int, Upload] = field(default_factory=dict)
    storages: dict[int, dict[str, Any]] = field(default_factory=dict)
    views: dict[int, dict[str, Any]] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    """What the storages hold: local path (below the document root) or cloud URI -> content."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    _ids: dict[str, itertools.count[int]] = field(default_factory=dict)

    def new_id(self, table: str) -> int:
        """Ids are never used twice, as in a database."""
        with self.lock:
            return next(self._ids.setdefault(table, itertools.count(1)))

    def add_project(self, title: str, label_config: str, **fields: Any) -> Project:
        row = Project(self.new_id("project"), title, label_config, self.clock(), **fields)
        self.projects[row.id] = row
        return row

    def add_tasks(
        self, project: Project, data: Iterable[dict[str, Any]], uploads: Iterable[int | None] = ()
    ) -> list[int]:
        now, made = self.clock(), []
        with self.lock:
            for item, upload in itertools.zip_longest(data, uploads):
                row = Task(self.new_id("task"), project.id, len(project.task_ids) + 1, item, now, now, upload)
                self.tasks[row.id] = row
                project.task_ids.append(row.id)
                made.append(row.id)
        return made

    def add_upload(self, project: Project, name: str, content: bytes) -> Upload:
        """Names get eight hex digits in front, as in Label Studio."""
        upload = Upload(self.new_id("upload"), project.id, f"{secrets.token_hex(4)}-{name.replace(' ', '_')}", content)
        self.uploads[upload.id] = upload
        return upload

    def add_prediction(self, task: Task, item: dict[str, Any], *, touch: bool) -> dict[str, Any]:
        """`touch` moves the task's `updated_at`: single predictions do that, the bulk import does not."""
        now = self.clock()
        row = {
            "id": self.new_id("prediction"),
            "result": item["result"],
            "model_version": item.get("model_version") or "undefined",
            "created_ago": "0\u00a0minutes",
            "score": item.get("score"),
            "cluster": None,
            "neighbors": None,
            "mislabeling": 0.0,
            "created_at": timestamp(now),
            "updated_at": timestamp(now),
            "model": None,
            "model_run": None,
            "task": task.id,
            "project": task.project_id,
        }
        with self.lock:
            self.predictions.setdefault(task.id, []).append(row)
        if touch:
            task.updated_s = now
        return row

    def remove_prediction(self, prediction_id: int) -> bool:
        """False when there is none."""
        with self.lock:
            for rows in self.predictions.values():
                for row in rows:
                    if row["id"] == prediction_id:
                        rows.remove(row)
                        self.forget_parents(row["task"], {prediction_id})
                        return True
        return False

    def forget_parents(self, task_id: int, predictions: set[int]) -> None:
        """Annotations that began with one of these predictions do not name it any more."""
        for row in self.annotations.get(task_id, ()):
            if row["parent_prediction"] in predictions:
                row["parent_prediction"] = None

    def has_prediction(self, prediction_id: int) -> bool:
        with self.lock:
            return any(row["id"] == prediction_id for rows in self.predictions.values() for row in rows)

    def change_prediction(self, prediction_id: int, fields: dict[str, Any]) -> dict[str, Any] | None:
        """The row with these fields, unchecked, and its task's `updated_at` moved; None when there is none."""
        with self.lock:
            for task, rows in self.predictions.items():
                for row in rows:
                    if row["id"] == prediction_id:
                        known = {name: value for name, value in fields.items() if name in row and name != "id"}
                        row |= known | {"updated_at": timestamp(self.clock())}
                        self.tasks[task].updated_s = self.clock()
                        return dict(row)
        return None

    def add_annotation(self, task: Task, item: dict[str, Any], *, imported: bool = False) -> dict[str, Any]:
        """`imported`: on SQLite the real one counts on from the highest id that is left, so that ids come again."""
        now = timestamp(self.clock())
        left = [row["id"] for rows in self.annotations.values() for row in rows] if imported else []
        row = {
            "id": max(left, default=0) + 1 if imported else self._unused_annotation_id(),
            "result": item.get("result", []),
            "was_cancelled": bool(item.get("was_cancelled")),
            "ground_truth": bool(item.get("ground_truth")),
            "created_at": now,
            "updated_at": now,
            "draft_created_at": None,
            "lead_time": item.get("lead_time"),
            "prediction": {},
            "result_count": len({region.get("id") for region in item.get("result", [])}),
            "unique_id": str(uuid.uuid4()),
            "import_id": None,
            "last_action": None,
            "bulk_created": False,
            "task": task.id,
            "project": task.project_id,
            "completed_by": 1,
            "updated_by": 1,
            "parent_prediction": item.get("parent_prediction"),
            "parent_annotation": None,
            "last_created_by": None,
        }
        with self.lock:
            self.annotations.setdefault(task.id, []).append(row)
        task.updated_s = self.clock()
        return row

    def _unused_annotation_id(self) -> int:
        """An id that no import has given meanwhile."""
        with self.lock:
            taken = {row["id"] for rows in self.annotations.values() for row in rows}
            return next(number for number in iter(lambda: self.new_id("annotation"), None) if number not in taken)

    def annotation(self, annotation_id: int) -> dict[str, Any] | None:
        rows = (row for rows in self.annotations.values() for row in rows)
        return next((row for row in rows if row["id"] == annotation_id), None)

    def change_annotation(self, task: Task, row: dict[str, Any], item: dict[str, Any]) -> dict[str, Any]:
        """The task's `updated_at` moves as well, a moment later."""
        with self.lock:
            for name in ("result", "was_cancelled", "ground_truth", "lead_time"):
                row[name] = item.get(name, row[name])
            row["updated_at"] = timestamp(self.clock())
        task.updated_s = self.clock()
        return row

    def remove_annotation(self, task: Task, row: dict[str, Any]) -> None:
        with self.lock:
            self.annotations[task.id].remove(row)
        task.updated_s = self.clock()

    def remove_project(self, project: Project) -> None:
        with self.lock:
            del self.projects[project.id]
            for task_id in project.task_ids:
                self.remove_task(task_id)
            for table in (self.backends, self.webhooks):
                for key in [key for key, row in table.items() if row.project_id == project.id]:
                    del table[key]

    def remove_task(self, task_id: int) -> None:
        with self.lock:
            self.tasks.pop(task_id, None)
            self.predictions.pop(task_id, None)
            self.annotations.pop(task_id, None)

    def backends_of(self, project_id: int) -> list[Backend]:
        return [row for row in self.backends.values() if row.project_id == project_id]

    def webhooks_of(self, project_id: int) -> list[Webhook]:
        return [row for row in self.webhooks.values() if row.project_id == project_id]

    def versions_of(self, project: Project) -> dict[str, list[dict[str, Any]]]:
        """Version -> its stored predictions, newest version first."""
        found: dict[str, list[dict[str, Any]]] = {}
        for task_id in project.task_ids:
            for row in self.predictions.get(task_id, ()):
                found.setdefault(row["model_version"], []).append(row)
        return dict(sorted(found.items(), key=lambda item: -item[1][-1]["id"]))

"""Task, prediction, annotation, import and file calls of the fake."""

from __future__ import annotations

import base64
import mimetypes
import random
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from starlette.responses import JSONResponse, RedirectResponse, Response

from labelloop.testing.label_studio.api_projects import ProjectsApi
from labelloop.testing.label_studio.exchange import Ask, Call, Refused
from labelloop.testing.label_studio.outgoing import Outgoing
from labelloop.testing.label_studio.rows import (
    error_row,
    list_task_row,
    next_task_row,
    predictions_score,
    webhook_task_row,
)
from labelloop.testing.label_studio.selection import query_of, select
from labelloop.testing.label_studio.state import Project, State, Task
from labelloop.testing.label_studio.validation import is_valid, objects_in


class TasksApi:
    """`calls()` is what it answers."""

    def __init__(self, state: State, projects: ProjectsApi, outgoing: Outgoing) -> None:
        self._state = state
        self._projects = projects
        self._outgoing = outgoing

    def calls(self) -> list[Call]:
        return [
            Call(["GET"], "/api/tasks", self._tasks),
            Call(["GET", "DELETE"], "/api/tasks/{task:int}", self._task),
            Call(["POST"], "/api/tasks/{task:int}/annotations/", self._annotate),
            Call(["PATCH", "DELETE"], "/api/annotations/{annotation:int}", self._annotation),
            Call(["DELETE"], "/api/projects/{project:int}/tasks/", self._delete_all),
            Call(["GET"], "/api/projects/{project:int}/next", self._next),
            Call(["POST"], "/api/projects/{project:int}/import", self._import),
            Call(["POST"], "/api/projects/{project:int}/import/predictions", self._import_predictions),
            Call(["GET", "POST"], "/api/predictions", self._predictions),
            Call(["PATCH", "DELETE"], "/api/predictions/{prediction:int}", self._prediction),
            Call(["POST"], "/api/dm/actions", self._action),
            Call(["GET"], "/data/upload/{project:int}/{name}", self._upload),
            Call(["GET"], "/data/local-files/", self._local_file),
            Call(["GET"], "/tasks/{task:int}/resolve/", self._resolve),
            Call(["GET"], "/tasks/{task:int}/presign/", self._resolve),
        ]

    # --- reading ------------------------------------------------------------------------------------

    def _tasks(self, ask: Ask) -> dict[str, Any]:
        project = self._projects.find(ask.query.get("project"))
        picked = select(self._state, project, query_of(self._state, ask.query))
        size = int(ask.query.get("page_size", 100))
        size = 100 if size < 1 else size
        start = (int(ask.query.get("page", 1)) - 1) * size
        page = picked[start : start + size]
        if start and not page:
            raise Refused(404, "Invalid page.")
        tasks = [self._state.tasks[task] for task in page]
        if ask.query.get("fields") == "all" and project.evaluate_predictions_automatically:
            self._live(project, [task for task in tasks if not self._state.predictions.get(task.id)])
        rows = [self._list_row(task, ask) for task in tasks]
        known = self._state.annotations, self._state.predictions
        totals = [sum(len(rows.get(task, ())) for task in picked) if rows else 0 for rows in known]
        return {"total_annotations": totals[0], "total_predictions": totals[1], "total": len(picked), "tasks": rows}

    def _list_row(self, task: Task, ask: Ask) -> dict[str, Any]:
        names = [name for name in ask.query.get("include", "").split(",") if name]
        if names == ["id", "data"] and ask.query.get("fields") != "all":
            return {"id": task.id, "data": task.data}
        row = list_task_row(self._state, task, everything=ask.query.get("fields") == "all")
        if names and "annotations" in row:  # `include` holds for the annotations inside as well
            row["annotations"] = [_only(names, annotation) for annotation in row["annotations"]]
        return _only(names, row) if names else row

    def _find(self, task_id: Any) -> Task:
        task = self._state.tasks.get(task_id)
        if task is None:
            raise Refused(404, "No Task matches the given query.")
        return task

    def _task(self, ask: Ask) -> Any:
        task = self._find(ask.ids["task"])
        project = self._state.projects[task.project_id]
        if ask.method == "DELETE":
            self._state.remove_task(task.id)
            project.task_ids.remove(task.id)
            self._outgoing.emit(project, "TASKS_DELETED", {"tasks": [{"id": task.id}]})
            return 204, None
        wanted = project.show_collab_predictions or project.evaluate_predictions_automatically
        if wanted and not self._state.predictions.get(task.id):
            self._live(project, [task])
        return list_task_row(self._state, task, everything=True)

    def _next(self, ask: Ask) -> dict[str, Any]:
        project = self._projects.find(ask.ids["project"])
        left = [task for task in project.task_ids if not self._state.annotations.get(task)]
        if left and project.sampling == "Uncertainty sampling":
            return self._given(project, self._state.tasks[self._doubtful(left)], "Active learning or random queue")
        if left:
            return self._given(project, self._state.tasks[left[0]], "Sequence queue")
        raise Refused(404, f"There are no tasks for {project.title}")

    def _doubtful(self, tasks: Sequence[int]) -> int:
        """The lowest score of the selected version, which a title has none of: then any task."""
        scores = {task: predictions_score(self._state, self._state.tasks[task]) for task in tasks}
        known = {task: score for task, score in scores.items() if score is not None}
        return min(known, key=lambda task: known[task]) if known else random.choice(tasks)  # noqa: S311

    def _given(self, project: Project, task: Task, queue: str) -> dict[str, Any]:
        titles = [row.title for row in self._state.backends_of(project.id)]
        if project.show_collab_predictions and project.model_version in titles:
            self._live(project, [task])
        return next_task_row(self._state, task, queue=queue)

    def _live(self, project: Project, tasks: Sequence[Task]) -> None:
        """Only the first backend of a project is asked, whichever title is selected."""
        backends = self._state.backends_of(project.id)
        if not backends or not tasks:
            return
        try:
            self._outgoing.predict(min(backends, key=lambda row: row.id), tasks)
        except ValueError as error:
            raise Refused(400, "Validation error", [str(error)]) from error

    # --- writing ------------------------------------------------------------------------------------

    def _annotate(self, ask: Ask) -> Any:
        task, body = self._find(ask.ids["task"]), ask.json()
        parent = body.get("parent_prediction")
        if parent is not None and not self._state.has_prediction(parent):
            errors = {"parent_prediction": [f'Invalid pk "{parent}" - object does not exist.']}
            raise Refused(400, "Validation error", errors)
        row = self._state.add_annotation(task, body)
        payload = {"annotation": row, "task": webhook_task_row(self._state, task)}
        self._outgoing.emit(self._state.projects[task.project_id], "ANNOTATION_CREATED", payload)
        return 201, row

    def _annotation(self, ask: Ask) -> Any:
        found = self._state.annotation(ask.ids["annotation"])
        if found is None:
            raise Refused(404, "No Annotation matches the given query.")
        task = self._state.tasks[found["task"]]
        project = self._state.projects[task.project_id]
        if ask.method == "DELETE":
            self._state.remove_annotation(task, found)
            self._outgoing.emit(project, "ANNOTATIONS_DELETED", {"annotations": [{"id": found["id"]}]})
            return 204, None
        row = self._state.change_annotation(task, found, ask.json())
        payload = {"annotation": row, "task": webhook_task_row(self._state, task)}
        self._outgoing.emit(project, "ANNOTATION_UPDATED", payload)
        return row

    def _delete_all(self, ask: Ask) -> Any:
        """All tasks of a project; no event is sent."""
        project = self._projects.find(ask.ids["project"])
        for task in list(project.task_ids):
            self._state.remove_task(task)
        project.task_ids.clear()
        return 204, None

    def _import(self, ask: Ask) -> Any:
        started = time.perf_counter()
        project = self._projects.find(ask.ids["project"])
        files = ask.files()
        uploads = [self._state.add_upload(project, name, content) for name, content in files]
        key = _data_key(project)
        items = [{"data": {key: upload.address}} for upload in uploads] if files else _items(ask.json())
        ids = self._state.add_tasks(project, [item["data"] for item in items], [upload.id for upload in uploads])
        predicted = self._import_parts(project, ids, items)
        rows = [webhook_task_row(self._state, self._state.tasks[task]) for task in ids]
        self._outgoing.emit(project, "TASKS_CREATED", {"tasks": rows})
        answer = {
            "task_count": len(ids),
            "annotation_count": sum(len(item.get("annotations", ())) for item in items),
            "prediction_count": predicted,
            "duration": time.perf_counter() - started,
            "file_upload_ids": [upload.id for upload in uploads],
            "could_be_tasks_list": False,
            "found_formats": {f".{name.rpartition('.')[2]}": len(files) for name, _ in files} if files else [],
            "data_columns": [key] if files else [],
        }
        return 201, answer | ({"task_ids": ids} if ask.query.get("return_task_ids") == "true" else {})

    def _import_parts(self, project: Project, ids: list[int], items: list[dict[str, Any]]) -> int:
        """Annotations and predictions inside imported tasks; no event is sent for them."""
        predicted = 0
        for task_id, item in zip(ids, items, strict=True):
            for annotation in item.get("annotations", ()):
                self._state.add_annotation(self._state.tasks[task_id], annotation, imported=True)
            for prediction in item.get("predictions", ()):
                row = self._state.add_prediction(self._state.tasks[task_id], prediction, touch=False)
                project.model_version = project.model_version or row["model_version"]
                predicted += 1
        return predicted

    def _import_predictions(self, ask: Ask) -> Any:
        project, items = self._projects.find(ask.ids["project"]), ask.json()
        if not isinstance(items, list):
            raise TypeError("a body that is not a list")
        for item in items:
            task = self._state.tasks.get(item.get("task")) if isinstance(item.get("task"), int) else None
            if task is None or task.project_id != project.id:
                text = (
                    f'{item} contains invalid "task" field: corresponding task ID couldn\'t be retrieved '
                    f"from project {project.title} (id={project.id}) tasks"
                )
                raise Refused(400, "Validation error", {"non_field_errors": [text]})
        valid = [item for item in items if is_valid(item, project.label_config)]
        for item in valid:
            self._state.add_prediction(self._state.tasks[item["task"]], item, touch=False)
        return 201, {"created": len(valid)}

    def _predictions(self, ask: Ask) -> Any:
        if ask.method == "GET":
            rows = self._state.predictions
            if "task" in ask.query:
                return rows.get(int(ask.query["task"]), [])
            project = self._projects.find(ask.query.get("project"))
            return [row for task in project.task_ids for row in rows.get(task, ())]
        body = ask.json()
        task = self._find(body.get("task"))
        body["result"] = body["result"] if isinstance(body.get("result"), list) else None
        return 201, self._state.add_prediction(task, body, touch=True)

    def _prediction(self, ask: Ask) -> Any:
        if ask.method == "DELETE":
            gone = self._state.remove_prediction(ask.ids["prediction"])
            row = None
        else:
            row = self._state.change_prediction(ask.ids["prediction"], ask.json())
            gone = row is not None
        if not gone:
            raise Refused(404, "No Prediction matches the given query.")
        return (204, None) if row is None else row

    def _action(self, ask: Ask) -> Any:
        """`retrieve_tasks_predictions` (always 200), `predictions_to_annotations` and `next_task` (ordered, ignores
        locks)."""
        project, body = self._projects.find(ask.query.get("project")), ask.json()
        tasks = [self._state.tasks[task] for task in select(self._state, project, body)]
        if ask.query.get("id") == "retrieve_tasks_predictions":
            self._live(project, tasks)
            return {"processed_items": len(tasks), "detail": f"Retrieved {len(tasks)} predictions"}
        if ask.query.get("id") == "predictions_to_annotations":
            return self._annotate_all(project, tasks, version=body.get("model_version"))
        if ask.query.get("id") == "next_task":
            for task in tasks:
                if not self._state.annotations.get(task.id):
                    return self._given(project, task, "Data manager queue")
            raise Refused(404, f"There are no tasks for {project.title}")
        raise Refused(404, f"No action {ask.query.get('id')}")

    def _annotate_all(self, project: Project, tasks: Sequence[Task], *, version: str | None) -> dict[str, Any]:
        """Annotations that nobody looked at: no origin, no time, no user."""
        made = []
        for task in tasks:
            shown = [row for row in self._state.predictions.get(task.id, ()) if version in (None, row["model_version"])]
            if shown:
                item = {"result": shown[-1]["result"], "parent_prediction": shown[-1]["id"]}
                row = self._state.add_annotation(task, item)
                row["updated_by"] = None
                made.append((task, row))
        payload = {
            "annotation": [row for _, row in made],
            "task": [webhook_task_row(self._state, task) for task, _ in made],
        }
        self._outgoing.emit(project, "ANNOTATIONS_CREATED", payload)
        return {"detail": f"Created {len(made)} annotations"}

    # --- files --------------------------------------------------------------------------------------

    def _upload(self, ask: Ask) -> Response:
        """A missing file is a 500, not a 404."""
        name = unquote(ask.ids["name"])
        for upload in self._state.uploads.values():
            if upload.name == name and upload.project_id == ask.ids["project"]:
                return _content(ask, upload.name, upload.content)
        return JSONResponse(error_row(500, f"[Errno 2] No such file or directory: {name!r}"), 500)

    def _local_file(self, ask: Ask) -> Response:
        path = ask.query.get("d", "")
        if path not in self._state.objects:
            raise Refused(404, f"{path} is not found")
        return _content(ask, path, self._state.objects[path])

    def _resolve(self, ask: Ask) -> Response:
        """303 to the presigned address, or the content itself when the storage does not presign."""
        task = self._find(ask.ids["task"])
        uri = base64.urlsafe_b64decode(ask.query.get("fileuri", "")).decode()
        rows = [row for row in self._state.storages.values() if row["project"] == task.project_id]
        storage = next((row for row in rows if _holds(row, uri)), None)
        if storage is None or (uri not in self._state.objects):
            raise Refused(404, "No storage or object for this address.")
        if storage.get("presign", True):
            return RedirectResponse(f"/presigned/{quote(uri, safe='')}", 303)
        return _content(ask, uri, self._state.objects[uri])

    def presigned(self, ask: Ask) -> Response:
        """The address that `resolve` points at: a real cloud refuses a request with an Authorization header."""
        uri = unquote(ask.ids["uri"])
        if "authorization" in ask.headers:
            return Response("Only one auth mechanism allowed", 400)
        return _content(ask, uri, self._state.objects[uri]) if uri in self._state.objects else Response(status_code=404)


def _only(names: Sequence[str], row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in names if name in row}


def _items(body: Any) -> list[dict[str, Any]]:
    rows = body if isinstance(body, list) else [body]
    return [row if isinstance(row.get("data"), dict) else {"data": row} for row in rows]


def _data_key(project: Project) -> str:
    """Uploaded files get the key of the config's first object tag."""
    values = [value for _, value in objects_in(project.label_config).values()]
    return values[0].removeprefix("$") if values else "$undefined$"


def _holds(storage: dict[str, Any], uri: str) -> bool:
    scheme = {"s3": "s3", "gcs": "gs", "azure": "azure-blob", "redis": "redis"}.get(storage["type"])
    place = storage.get("bucket") or storage.get("container") or storage.get("host") or ""
    return scheme is not None and uri.startswith(f"{scheme}://{place}")


def _content(ask: Ask, name: str, content: bytes) -> Response:
    """The file, or the range that was asked for."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    asked = ask.headers.get("range", "")
    if asked.startswith("bytes="):
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first or 0)
        end = min(int(last) if last else len(content) - 1, len(content) - 1)
        if start <= end:
            head = {"Content-Range": f"bytes {start}-{end}/{len(content)}", "Accept-Ranges": "bytes"}
            return Response(content[start : end + 1], 206, head, media_type=kind)
    return Response(content, media_type=kind)

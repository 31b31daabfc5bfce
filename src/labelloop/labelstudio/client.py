"""Label Studio's HTTP API, as far as labelloop uses it. One method per call, nothing decided here.

Every method raises LabelStudioUnreachable, LabelStudioAuthError or LabelStudioRejected (core/errors), each with the
next step. Reading is repeated when the network hiccups; what creates rows is not, because Label Studio does not
deduplicate.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import httpx
import msgspec

from labelloop.core.errors import LabelStudioAuthError, LabelStudioRejected
from labelloop.labelstudio.records import (
    Backend,
    Imported,
    JwtSettings,
    ModelVersion,
    PredictionImport,
    Project,
    Storage,
    TaskPage,
    User,
    Version,
    View,
    Webhook,
)
from labelloop.labelstudio.session import NOT_A_URL, Session
from labelloop.labelstudio.tokens import Credentials

ANNOTATION_EVENTS = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED", "ANNOTATIONS_DELETED")

_FILES_PER_UPLOAD = 50
_IMPORT_TIMEOUT_S = 300.0
_PREDICT_TIMEOUT_S = 600.0
"""Label Studio waits 100 s for a backend and then stores about seven predictions per second."""


class _Projects(msgspec.Struct, frozen=True):
    results: tuple[Project, ...]
    next: str | None = None


class _Created(msgspec.Struct, frozen=True):
    created: int


class _Versions(msgspec.Struct, frozen=True):
    static: tuple[ModelVersion, ...] | None = None


class _Deleted(msgspec.Struct, frozen=True):
    deleted_predictions: int = 0


class _Processed(msgspec.Struct, frozen=True):
    processed_items: int = 0


class Client:
    """A synchronous client; one may be shared between threads.

    `token` is a legacy token, a personal access token or an access token (labelstudio/tokens). `base_url` may have
    a sub-path. `attempts=1` turns repeating off.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.credentials = Credentials(base_url, token, transport=transport)
        self.base_url = self.credentials.base_url
        self._session = Session(self.credentials, timeout_s=timeout_s, attempts=attempts, transport=transport)
        self._ask = self._session.ask

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._session.close()

    # --- the server and the user --------------------------------------------------------------------

    def version(self) -> str:
        """The release, for instance 1.23.2. Needs no token."""
        return self._ask("GET", "/api/version", Version, public=True).release

    def health(self) -> bool:
        """Whether the server says it is up. Needs no token; raises when it does not answer."""
        return self._ask("GET", "/health", dict[str, Any], public=True).get("status") == "UP"

    def is_at_api(self) -> bool:
        """Whether `base_url` has the right path: /api/version and /health answer below any other as well. No token."""
        try:
            self._ask("GET", "/api/current-user/whoami", User, public=True)
        except LabelStudioAuthError:
            return True
        except LabelStudioRejected:
            return False
        return True

    def whoami(self) -> User:
        return self._ask("GET", "/api/current-user/whoami", User)

    def jwt_settings(self) -> JwtSettings:
        return self._ask("GET", "/api/jwt/settings", JwtSettings)

    def set_jwt_settings(self, settings: JwtSettings) -> JwtSettings:
        return self._ask("POST", "/api/jwt/settings", JwtSettings, body=settings)

    # --- projects -----------------------------------------------------------------------------------

    def projects(self, *, title: str = "") -> list[Project]:
        """All projects of the user's organisation; `title` keeps those that contain it, in any case."""
        found: list[Project] = []
        for page in count(1):
            params = {"page": page, "page_size": 100} | ({"title": title} if title else {})
            answer = self._ask("GET", "/api/projects", _Projects, params=params)
            found += answer.results
            if not answer.next:
                break
        return found

    def project(self, project_id: int) -> Project:
        return self._ask("GET", f"/api/projects/{project_id}", Project)

    def find_project(self, id_or_title: int | str) -> Project:
        """By id, else by title (exact, then in any case). Raises LabelStudioRejected (404) naming the near titles,
        or (409) naming the ids when several projects have the title."""
        wanted = str(id_or_title).strip()
        if wanted.isascii() and wanted.isdigit() and len(wanted) < 19:  # what a database could hold as an id
            try:
                return self.project(int(wanted))
            except LabelStudioRejected as error:
                if error.status != 404 or isinstance(id_or_title, int):
                    raise
        return _pick(wanted, self.projects(title=wanted) or self.projects())

    def create_project(self, title: str, label_config: str, **fields: Any) -> Project:
        """`title` has 3 to 50 characters; `fields` are Label Studio's own names, for instance `sampling`."""
        return self._ask(
            "POST", "/api/projects", Project, body={"title": title, "label_config": label_config, **fields}
        )

    def set_project(self, project_id: int, **fields: Any) -> Project:
        return self._ask("PATCH", f"/api/projects/{project_id}", Project, body=fields)

    def delete_project(self, project_id: int) -> None:
        self._ask("DELETE", f"/api/projects/{project_id}", type(None), timeout_s=_IMPORT_TIMEOUT_S)

    # --- ML backends --------------------------------------------------------------------------------

    def backends(self, project_id: int) -> list[Backend]:
        """Lowest id first: that one answers predictions. Label Studio asks each for /health and /setup first."""
        rows = self._ask("GET", "/api/ml", list[Backend], params={"project": project_id})
        return sorted(rows, key=lambda row: row.id)

    def backend(self, backend_id: int) -> Backend:
        """Label Studio calls /health and /setup first, so `state` is what it sees now."""
        return self._ask("GET", f"/api/ml/{backend_id}", Backend)

    def add_backend(self, project_id: int, url: str, *, title: str, **fields: Any) -> Backend:
        """Label Studio asks /health and /setup twice. A refused webhook address gives 403 and leaves the row behind."""
        return self._ask("POST", "/api/ml", Backend, body={"project": project_id, "url": url, "title": title, **fields})

    def update_backend(self, backend: Backend, **fields: Any) -> Backend:
        """Change `fields` and repeat the rest: Label Studio answers 500 without `url`, and it validates with only what
        the request says, so credentials and `extra_params` that are left out would not be sent to the backend."""
        kept: dict[str, Any] = {"url": backend.url, "project": backend.project, "extra_params": backend.extra_params}
        if backend.auth_method == "BASIC_AUTH":
            # An empty password means: the stored one.
            kept |= {"auth_method": "BASIC_AUTH", "basic_auth_user": backend.basic_auth_user, "basic_auth_pass": ""}
        return self._ask("PATCH", f"/api/ml/{backend.id}", Backend, body=kept | fields)

    def check_backend_address(self, url: str) -> None:
        """Ask whether Label Studio would call `url`, storing nothing: the request lacks a project, and the address is
        checked first. Raises LabelStudioRejected: 403 while ML_BLOCK_LOCAL_IP forbids it, 500 for an unknown host."""
        self._dry_run("/api/ml", {"url": url})

    def check_webhook_address(self, url: str) -> None:
        """The same for event webhooks: 403 while SSRF_PROTECTION_ENABLED forbids it, 400 for a host name without a dot,
        for which Label Studio also makes no webhook of its own and does not say so."""
        self._dry_run("/api/webhooks", {"url": url, "actions": ["-"]})

    def _dry_run(self, path: str, body: Mapping[str, Any]) -> None:
        try:
            self._ask("POST", path, dict[str, Any], body=body)
        except LabelStudioRejected as error:
            if error.status != 400 or NOT_A_URL in error.message:
                raise

    def delete_backend(self, backend_id: int) -> None:
        """Its predictions and its webhook stay."""
        self._ask("DELETE", f"/api/ml/{backend_id}", type(None))

    # --- webhooks -----------------------------------------------------------------------------------

    def webhooks(self, project_id: int) -> list[Webhook]:
        return self._ask("GET", "/api/webhooks", list[Webhook], params={"project": project_id})

    def create_webhook(self, project_id: int, url: str, **fields: Any) -> Webhook:
        body = {"project": project_id, "url": url, **fields}
        return self._ask("POST", "/api/webhooks", Webhook, params={"project": project_id}, body=body)

    def update_webhook(self, webhook: Webhook, **fields: Any) -> Webhook:
        """`url` and `actions` always go along: without `actions` Label Studio forgets the stored ones."""
        kept = {"url": webhook.url, "actions": webhook.actions}
        return self._ask("PATCH", f"/api/webhooks/{webhook.id}", Webhook, body=kept | fields)

    def delete_webhook(self, webhook_id: int) -> None:
        self._ask("DELETE", f"/api/webhooks/{webhook_id}", type(None))

    # --- tasks --------------------------------------------------------------------------------------

    def tasks(
        self,
        project_id: int,
        *,
        page: int = 1,
        page_size: int = 100,
        include: Sequence[str] = (),
        query: Mapping[str, Any] | None = None,
        view: int | None = None,
        everything: bool = False,
    ) -> TaskPage:
        """One page, 1-based; beyond the end Label Studio answers 404. `include` keeps only these keys (much faster),
        `query` holds filters and ordering, or `view` names the tab that does; `everything` adds annotations and
        predictions (slow). Storage addresses stay raw, as the backend gets them."""
        params: dict[str, Any] = {"project": project_id, "page": page, "page_size": page_size, "resolve_uri": "false"}
        if include:
            params["include"] = ",".join(include)
        if query:
            params["query"] = msgspec.json.encode(query).decode()
        if view is not None:
            params["view"] = view
        if everything:
            params["fields"] = "all"
        return self._ask("GET", "/api/tasks", TaskPage, params=params, timeout_s=_IMPORT_TIMEOUT_S)

    def task_pages(
        self,
        project_id: int,
        *,
        page_size: int = 500,
        include: Sequence[str] = (),
        query: Mapping[str, Any] | None = None,
        everything: bool = False,
    ) -> Iterator[TaskPage]:
        """All pages in order. While a filter shrinks by your own writes, read `tasks(page=1)` repeatedly instead."""
        seen = 0
        for page in count(1):
            try:
                answer = self.tasks(
                    project_id, page=page, page_size=page_size, include=include, query=query, everything=everything
                )
            except LabelStudioRejected as error:
                # Tasks deleted while we read move the end towards us.
                if error.status == 404 and page > 1:
                    return
                raise
            if answer.tasks:
                yield answer
            seen += len(answer.tasks)
            if not answer.tasks or seen >= answer.total:
                return

    def task(self, task_id: int) -> dict[str, Any]:
        """One task with its annotations and the predictions of every version."""
        return self._ask("GET", f"/api/tasks/{task_id}", dict[str, Any])

    def next_task(self, project_id: int) -> dict[str, Any] | None:
        """What an annotator gets next, with the predictions of the selected version; None when all is done."""
        try:
            return self._ask("GET", f"/api/projects/{project_id}/next", dict[str, Any], timeout_s=_PREDICT_TIMEOUT_S)
        except LabelStudioRejected as error:
            if error.status == 404:
                return None
            raise

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> Imported:
        """`tasks` are `{"data": {...}, "predictions": [...]}` or bare data; `task_ids` come back in the same order."""
        return self._import(project_id, body=list(tasks))

    def upload_files(self, project_id: int, files: Sequence[Path]) -> Imported:
        """Upload pictures; each becomes one task. Set the label config first: it names the data key."""
        total = Imported()
        for start in range(0, len(files), _FILES_PER_UPLOAD):
            chunk = files[start : start + _FILES_PER_UPLOAD]
            parts = [(f"file{index}", (path.name, path.read_bytes())) for index, path in enumerate(chunk)]
            part = self._import(project_id, files=parts)
            total = Imported(
                task_count=total.task_count + part.task_count,
                task_ids=total.task_ids + part.task_ids,
                file_upload_ids=total.file_upload_ids + part.file_upload_ids,
            )
        return total

    def _import(self, project_id: int, **content: Any) -> Imported:
        return self._ask(
            "POST",
            f"/api/projects/{project_id}/import",
            Imported,
            params={"return_task_ids": "true"},
            timeout_s=_IMPORT_TIMEOUT_S,
            **content,
        )

    def probe_file(self, address: str, *, task_id: int | None = None) -> int:
        """Ask for the first byte of a file that a task names (`/data/…` or, with `task_id`, a cloud URI) and return the
        HTTP status: 200, 206 and 303 mean that it can be had. HEAD would do, but local files answer it with 405."""
        # Only the path goes on: an absolute address may name Label Studio by another of its names.
        path = urlsplit(address)._replace(scheme="", netloc="").geturl().removeprefix(urlsplit(self.base_url).path)
        if not address.startswith(("/", "http")):
            path = f"/tasks/{task_id}/resolve/?fileuri={base64.urlsafe_b64encode(address.encode()).decode()}"
        return self._session.status(path, headers={"Range": "bytes=0-0"})

    def storages(self, project_id: int) -> list[Storage]:
        """Source storages of all kinds."""
        return self._ask("GET", "/api/storages/", list[Storage], params={"project": project_id})

    # --- tabs of the Data Manager (views.py makes them safe to repeat) ------------------------------

    def views(self, project_id: int) -> list[View]:
        """In the order of the web page; none for a project whose Data Manager nobody opened yet."""
        return self._ask("GET", "/api/dm/views", list[View], params={"project": project_id})

    def create_view(self, project_id: int, data: Mapping[str, Any]) -> View:
        """A second tab for a title that is there already: look first. A column that does not exist is taken and makes
        the tab fail with 500 whenever it is opened."""
        return self._ask("POST", "/api/dm/views", View, body={"project": project_id, "data": data})

    def update_view(self, view: View, data: Mapping[str, Any]) -> View:
        """`data` replaces all that was there: a title that is left out is lost. Only filters and ordering stay when
        they are left out."""
        body = {"project": view.project, "data": data}
        return self._ask("PATCH", f"/api/dm/views/{view.id}", View, body=body)

    def delete_view(self, view_id: int) -> None:
        """Gone already is as good as deleted."""
        self._delete(f"/api/dm/views/{view_id}")

    # --- annotations --------------------------------------------------------------------------------

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]], **fields: Any) -> int:
        """Submit an annotation as the owner of the token, the way the editor does: webhooks are sent. Returns its id;
        `fields` are Label Studio's own names, for instance `parent_prediction`."""
        body = {"result": list(result), **fields}
        return int(self._ask("POST", f"/api/tasks/{task_id}/annotations/", dict[str, Any], body=body)["id"])

    # --- predictions --------------------------------------------------------------------------------

    def import_predictions(self, project_id: int, items: Sequence[Mapping[str, Any] | msgspec.Raw]) -> PredictionImport:
        """Store `{"task", "result", "score", "model_version"}` items, hundreds at a time. One unknown task rejects all;
        an invalid item is dropped without a word, so look at `dropped`; sending twice stores twice."""
        path = f"/api/projects/{project_id}/import/predictions"
        answer = self._ask("POST", path, _Created, body=list(items), timeout_s=_IMPORT_TIMEOUT_S)
        return PredictionImport(sent=len(items), created=answer.created)

    def predictions(self, task_id: int) -> list[dict[str, Any]]:
        """The stored predictions of one task, all versions. Asks no backend."""
        return self._ask("GET", "/api/predictions", list[dict[str, Any]], params={"task": task_id})

    def set_prediction_score(self, prediction_id: int, score: float) -> bool:
        """Give a stored prediction another score, which Label Studio does not check; it keeps its id, so an annotator
        who has it open can submit. A tenth of a second each, and the task's `updated_at` moves. False: it is gone."""
        try:
            self._ask("PATCH", f"/api/predictions/{prediction_id}", dict[str, Any], body={"score": score})
        except LabelStudioRejected as error:
            if error.status == 404:
                return False
            raise
        return True

    def delete_prediction(self, prediction_id: int) -> None:
        """Gone already is as good as deleted."""
        self._delete(f"/api/predictions/{prediction_id}")

    def _delete(self, path: str) -> None:
        try:
            self._ask("DELETE", path, type(None))
        except LabelStudioRejected as error:
            if error.status != 404:
                raise

    def retrieve_predictions(self, project_id: int, task_ids: Sequence[int] = ()) -> int:
        """The Data Manager's "Retrieve Predictions"; no ids means all tasks. Returns how many tasks were asked about:
        Label Studio says so even when the backend failed and nothing was stored."""
        picked: dict[str, Any] = {"all": False, "included": list(task_ids)}
        body = {"project": project_id, "selectedItems": picked if task_ids else {"all": True, "excluded": []}}
        params = {"id": "retrieve_tasks_predictions", "project": project_id}
        answer = self._ask(
            "POST", "/api/dm/actions", _Processed, params=params, body=body, timeout_s=_PREDICT_TIMEOUT_S
        )
        return answer.processed_items

    def model_versions(self, project_id: int) -> list[ModelVersion]:
        """Versions that have stored predictions, newest first."""
        path = f"/api/projects/{project_id}/model-versions"
        return list(self._ask("GET", path, _Versions, params={"extended": "true"}).static or ())

    def delete_model_version(self, project_id: int, version: str) -> int:
        """Delete its predictions and return their number. If it was selected, or a backend title is, Label Studio sets
        the project's `model_version` to null."""
        path = f"/api/projects/{project_id}/model-versions"
        answer = self._ask("DELETE", path, _Deleted, body={"model_version": version}, timeout_s=_IMPORT_TIMEOUT_S)
        return answer.deleted_predictions


def _pick(title: str, projects: Sequence[Project]) -> Project:
    exact = [project for project in projects if project.title == title]
    same = exact or [project for project in projects if project.title.lower() == title.lower()]
    if len(same) == 1:
        return same[0]
    if same:
        ids = ", ".join(str(project.id) for project in same)
        raise LabelStudioRejected(
            f"{len(same)} projects are called {title!r}.", status=409, hint=f"Give the number: {ids}."
        )
    titles = [project.title for project in projects]
    near = difflib.get_close_matches(title, titles, n=3) or titles[:5]
    known = ", ".join(repr(name) for name in near)
    raise LabelStudioRejected(
        f"There is no project {title!r} that this token can see.",
        status=404,
        hint=f"Did you mean {known}?" if known else "Create one in Label Studio first.",
    )

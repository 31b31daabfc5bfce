"""Server, user, token, project, webhook, view and storage calls of the fake."""

from __future__ import annotations

import itertools
import xml.etree.ElementTree as ET
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response

from labelloop.testing.label_studio.exchange import Ask, Call, Refused
from labelloop.testing.label_studio.outgoing import Blocked, Outgoing, Unresolvable, check_address
from labelloop.testing.label_studio.rows import RELEASE, project_row, user_row, webhook_row
from labelloop.testing.label_studio.state import Project, State, Webhook, timestamp
from labelloop.testing.label_studio.tokens import Tokens
from labelloop.testing.label_studio.validation import controls_in

ACTIONS = frozenset(
    {
        "PROJECT_UPDATED", "TASKS_CREATED", "TASKS_DELETED", "ANNOTATION_CREATED", "ANNOTATIONS_CREATED",
        "ANNOTATION_UPDATED", "ANNOTATIONS_DELETED",
    }
)  # fmt: skip
STORAGE_KINDS = ("localfiles", "s3", "gcs", "azure", "redis")

_PATCHABLE = (
    "title",
    "description",
    "label_config",
    "show_collab_predictions",
    "evaluate_predictions_automatically",
    "sampling",
    "min_annotations_to_start_training",
)


class ProjectsApi:
    """`calls()` is what it answers."""

    def __init__(self, state: State, tokens: Tokens, outgoing: Outgoing) -> None:
        self._state = state
        self._tokens = tokens
        self._outgoing = outgoing

    def calls(self) -> list[Call]:
        return [
            Call(["GET"], "/health", self._health, public=True),
            Call(["GET"], "/api/version", self._version, public=True),
            Call(["GET"], "/api/current-user/whoami", lambda _: user_row(0.0)),
            Call(["GET"], "/api/current-user/token", lambda _: {"token": self._tokens.legacy}),
            Call(["GET", "POST"], "/api/jwt/settings", self._jwt_settings),
            Call(["GET", "POST"], "/api/token/", self._personal_tokens),
            Call(["POST"], "/api/token/refresh", self._refresh, public=True),
            Call(["POST"], "/api/token/rotate", self._rotate),
            Call(["POST"], "/api/token/blacklist/", self._blacklist),
            Call(["GET", "POST"], "/api/projects", self._projects),
            Call(["GET", "PATCH", "DELETE"], "/api/projects/{project:int}", self._project),
            Call(["GET", "DELETE"], "/api/projects/{project:int}/model-versions", self._model_versions),
            Call(["GET", "POST"], "/api/webhooks", self._webhooks),
            Call(["GET", "PATCH", "DELETE"], "/api/webhooks/{webhook:int}", self._webhook),
            Call(["GET", "POST"], "/api/dm/views", self._views),
            Call(["GET", "PATCH", "DELETE"], "/api/dm/views/{view:int}", self._view),
            Call(["GET"], "/api/storages/", self._storages),
            *(Call(["POST"], f"/api/storages/{kind}", self._add_storage(kind)) for kind in STORAGE_KINDS),
        ]

    # --- server, user, tokens -----------------------------------------------------------------------

    def _health(self, _ask: Ask) -> Response:
        return Response('{"status": "UP"}', media_type="text/html")

    def _version(self, _ask: Ask) -> dict[str, Any]:
        return {"release": RELEASE, "label-studio-os-package": {"version": RELEASE}}

    def _jwt_settings(self, ask: Ask) -> dict[str, Any]:
        if ask.method == "POST":
            body = ask.json()
            self._tokens.api_tokens_enabled = bool(body["api_tokens_enabled"])
            self._tokens.legacy_api_tokens_enabled = bool(body["legacy_api_tokens_enabled"])
        return {
            "api_tokens_enabled": self._tokens.api_tokens_enabled,
            "legacy_api_tokens_enabled": self._tokens.legacy_api_tokens_enabled,
        }

    def _personal_tokens(self, ask: Ask) -> Any:
        known = self._tokens.personal
        if ask.method == "GET":
            return [{"token": known.rpartition(".")[0]}] if known else []
        if known:
            raise Refused(409, "You already have a valid token. Please revoke it before creating a new one.")
        return 201, {"token": self._tokens.create_personal()}

    def _refresh(self, ask: Ask) -> dict[str, Any]:
        access = self._tokens.access_for(str(ask.json().get("refresh")))
        if access is None:
            raise Refused(401, "Token is invalid")
        return {"access": access}

    def _rotate(self, ask: Ask) -> dict[str, Any]:
        if not self._tokens.personal or ask.json().get("refresh") != self._tokens.personal:
            raise Refused(400, "Token is invalid or already blacklisted.")
        return {"refresh": self._tokens.create_personal()}

    def _blacklist(self, ask: Ask) -> Any:
        if not self._tokens.personal or ask.json().get("refresh") != self._tokens.personal:
            raise Refused(404, "Token is invalid or already blacklisted.")
        self._tokens.revoke_personal()
        return 204, None

    # --- projects -----------------------------------------------------------------------------------

    def find(self, project_id: Any) -> Project:
        """Raises Refused (404)."""
        try:
            return self._state.projects[int(project_id)]
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(404, "No Project matches the given query.") from error

    def _projects(self, ask: Ask) -> Any:
        if ask.method == "POST":
            return 201, self._create(ask.json())
        title = ask.query.get("title", "").lower()
        found = [row for row in reversed(self._state.projects.values()) if title in row.title.lower()]
        size = min(int(ask.query.get("page_size", 30)), 100)
        start = (int(ask.query.get("page", 1)) - 1) * size
        page = found[start : start + size]
        if not page and start:
            raise Refused(404, "Invalid page.")
        more = f"?page={start // size + 2}" if start + size < len(found) else None
        return {
            "count": len(found),
            "next": more,
            "previous": None,
            "results": [project_row(self._state, row) for row in page],
        }

    def _create(self, body: dict[str, Any]) -> dict[str, Any]:
        self._check(body)
        fields = {name: body[name] for name in _PATCHABLE if name in body and name not in ("title", "label_config")}
        project = self._state.add_project(body["title"], body.get("label_config") or "<View></View>", **fields)
        return project_row(self._state, project)

    def _check(self, body: dict[str, Any]) -> None:
        title = body.get("title")
        if title is not None and not 3 <= len(title) <= 50:
            few = len(title) < 3
            text = f"Ensure this field has {'at least 3' if few else 'no more than 50'} characters."
            raise Refused(400, "Validation error", {"title": [text]})
        try:
            controls_in(body.get("label_config") or "<View></View>")
        except ET.ParseError as error:
            raise Refused(400, "Validation error", {"label_config": [str(error)]}) from error

    def _project(self, ask: Ask) -> Any:
        project = self.find(ask.ids["project"])
        if ask.method == "DELETE":
            self._state.remove_project(project)
            return 204, None
        if ask.method == "PATCH":
            self._patch(project, ask.json())
        return project_row(self._state, project)

    def _patch(self, project: Project, body: dict[str, Any]) -> None:
        self._check(body)
        version = body.get("model_version")
        titles = [row.title for row in self._state.backends_of(project.id)]
        if version and version not in titles and version not in self._state.versions_of(project):
            text = "Model version doesn't exist either as live model or as static predictions."
            raise Refused(400, "Validation error", {"model_version": [text]})
        for name in _PATCHABLE:
            if name in body:
                setattr(project, name, body[name])
        if "model_version" in body:
            project.model_version = version
        if body.get("show_collab_predictions") is False:
            project.model_version = ""
        self._outgoing.emit(project, "PROJECT_UPDATED", {})

    def _model_versions(self, ask: Ask) -> Any:
        project = self.find(ask.ids["project"])
        versions = self._state.versions_of(project)
        if ask.method == "DELETE":
            return self._delete_version(project, ask.json()["model_version"])
        if ask.query.get("extended") != "true":
            return {version: len(rows) for version, rows in versions.items()}
        static = [
            {"model_version": version, "count": len(rows), "latest": rows[-1]["created_at"]}
            for version, rows in versions.items()
        ]
        return {"static": static, "live": None}

    def _delete_version(self, project: Project, version: str) -> dict[str, Any]:
        gone = 0
        with self._state.lock:
            for task in project.task_ids:
                rows = self._state.predictions.get(task, [])
                kept = [row for row in rows if row["model_version"] != version]
                gone += len(rows) - len(kept)
                if rows:
                    self._state.predictions[task] = kept
                    self._state.forget_parents(task, {row["id"] for row in rows} - {row["id"] for row in kept})
        titles = [row.title for row in self._state.backends_of(project.id)]
        if project.model_version == version or project.model_version in titles:
            project.model_version = None
        return {"deleted_predictions": gone}

    # --- webhooks -----------------------------------------------------------------------------------

    def check_webhook(self, url: str) -> None:
        """Raises Refused: 400 for a host without a dot, 403 for a private address while SSRF_PROTECTION_ENABLED is on
        (and then 500 for an unknown host)."""
        host = urlsplit(url).hostname or ""
        if "." not in host and ":" not in host and host != "localhost":
            raise Refused(400, "Validation error", {"url": ["Enter a valid URL."]})
        if self._outgoing.block_webhooks:
            refuse_unless_allowed(url, block=True)

    def _webhooks(self, ask: Ask) -> Any:
        if ask.method == "GET":
            rows = self._state.webhooks.values()
            project = ask.query.get("project")
            return [self._row(row) for row in rows if project is None or row.project_id == int(project)]
        body = ask.json()
        self.check_webhook(str(body.get("url", "")))
        self._check_actions(body)
        row = Webhook(self._state.new_id("webhook"), body["url"], body.get("project"), self._state.clock())
        self._change(row, body)
        self._state.webhooks[row.id] = row
        return 201, self._row(row)

    def _webhook(self, ask: Ask) -> Any:
        row = self._state.webhooks.get(ask.ids["webhook"])
        if row is None:
            raise Refused(404, "No Webhook matches the given query.")
        if ask.method == "DELETE":
            del self._state.webhooks[row.id]
            return 204, None
        if ask.method == "PATCH":
            body = ask.json()
            if "url" in body:
                self.check_webhook(body["url"])
            self._check_actions(body)
            self._change(row, body)
        return self._row(row)

    def _check_actions(self, body: dict[str, Any]) -> None:
        unknown = [action for action in body.get("actions", []) if action not in ACTIONS]
        if unknown:
            errors = {"actions": {"0": [f'"{unknown[0]}" is not a valid choice.']}}
            raise Refused(400, "Validation error", errors)

    def _change(self, row: Webhook, body: dict[str, Any]) -> None:
        for name in ("url", "send_payload", "send_for_all_actions", "headers", "is_active"):
            if name in body:
                setattr(row, name, body[name])
        # A PATCH without actions forgets the stored ones.
        row.actions = list(body.get("actions", []))

    def _row(self, row: Webhook) -> dict[str, Any]:
        return webhook_row(row, self._state.clock())

    # --- views and storages -------------------------------------------------------------------------

    def _views(self, ask: Ask) -> Any:
        if ask.method == "GET":
            wanted = int(ask.query["project"]) if "project" in ask.query else None
            return [view for view in self._state.views.values() if wanted in (None, view["project"])]
        body = ask.json()
        view: dict[str, Any] = {
            "id": self._state.new_id("view"),
            "data": dict(body.get("data", {})),
            "order": len(self._state.views),
            "user": 1,
            "project": self.find(body["project"]).id,
        }
        self._state.views[view["id"]] = view
        return 201, view

    def _view(self, ask: Ask) -> Any:
        view = self._state.views.get(ask.ids["view"])
        if view is None:
            raise Refused(404, "No View matches the given query.")
        if ask.method == "DELETE":
            del self._state.views[view["id"]]
            return 204, None
        if ask.method == "PATCH":
            # all of it is replaced but what says which tasks, in which order: an empty ordering is no ordering
            kept = {name: view["data"][name] for name in ("filters", "ordering") if name in view["data"]}
            sent = ask.json().get("data", {})
            view["data"] = kept | {name: value for name, value in sent.items() if name != "ordering" or value}
        return view

    def _storages(self, ask: Ask) -> list[dict[str, Any]]:
        wanted = self.find(ask.query.get("project")).id
        return [row for row in self._state.storages.values() if row["project"] == wanted]

    def _add_storage(self, kind: str) -> Any:
        ids = itertools.count(1)

        def add(ask: Ask) -> Any:
            body = ask.json()
            project = self.find(body.get("project"))
            row = {
                "id": next(ids), "type": kind, "synchronizable": True, "regex_filter": body.get("regex_filter"),
                "use_blob_urls": bool(body.get("use_blob_urls")), "last_sync": None, "last_sync_count": None,
                "last_sync_job": None, "status": "initialized", "traceback": None, "meta": {},
                "title": body.get("title"), "description": None, "created_at": timestamp(self._state.clock()),
                "recursive_scan": False, "project": project.id,
            }  # fmt: skip
            own = ("path",) if kind == "localfiles" else ("bucket", "container", "prefix", "presign", "path", "host")
            row |= {name: body[name] for name in own if name in body}
            self._state.storages[self._state.new_id("storage")] = row
            return 201, row

        return add


def refuse_unless_allowed(url: str, *, block: bool) -> None:
    """Raises Refused: 403 for a private address if `block`, 500 for an unknown host."""
    try:
        check_address(url)
    except Blocked as error:
        if block:
            raise Refused(403, str(error)) from error
    except Unresolvable as error:
        raise Refused(500, str(error)) from error

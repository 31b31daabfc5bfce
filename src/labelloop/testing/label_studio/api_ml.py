"""ML backend calls of the fake: what `POST /api/ml` and its neighbours make Label Studio do."""

from __future__ import annotations

from typing import Any

from labelloop.testing.label_studio.api_projects import ProjectsApi, refuse_unless_allowed
from labelloop.testing.label_studio.exchange import Ask, Call, Refused
from labelloop.testing.label_studio.outgoing import Outgoing
from labelloop.testing.label_studio.rows import backend_row
from labelloop.testing.label_studio.state import Backend, Project, State, Webhook

_FIELDS = (
    "url",
    "title",
    "is_interactive",
    "auth_method",
    "basic_auth_user",
    "description",
    "extra_params",
    "timeout",
    "auto_update",
)


class MlApi:
    """`calls()` is what it answers."""

    def __init__(self, state: State, projects: ProjectsApi, outgoing: Outgoing) -> None:
        self._state = state
        self._projects = projects
        self._outgoing = outgoing

    def calls(self) -> list[Call]:
        return [
            Call(["GET", "POST"], "/api/ml", self._list_or_add),
            Call(["GET", "PATCH", "DELETE"], "/api/ml/{backend:int}", self._detail),
            Call(["GET"], "/api/ml/{backend:int}/versions", self._versions),
            Call(["POST"], "/api/ml/{backend:int}/train", self._train),
            Call(["POST"], "/api/ml/{backend:int}/predict/test", self._test),
            Call(["POST"], "/api/ml/{backend:int}/interactive-annotating", self._interactive),
        ]

    def _list_or_add(self, ask: Ask) -> Any:
        if ask.method == "POST":
            return 201, self._row(self._add(ask.json()))
        project = self._projects.find(ask.query.get("project"))
        rows = self._state.backends_of(project.id)
        for row in rows:
            self._outgoing.update_state(row)
        return [self._row(row) for row in rows]

    def _add(self, body: dict[str, Any]) -> Backend:
        # The address is checked first, then the other fields, and only then the backend is called.
        self._check_url(body.get("url"))
        if body.get("project") not in self._state.projects:
            raise Refused(400, "Validation error", {"project": ["This field is required."]})
        project = self._state.projects[body["project"]]
        row = Backend(0, body["url"], project.id, body.get("title") or "", self._state.clock())
        _change(row, body)
        self._validate(row, body)
        row.id = self._state.new_id("backend")
        self._state.backends[row.id] = row
        # When the webhook is refused (403) the backend row stays behind, without state and webhook.
        self._add_webhook(project, row)
        self._outgoing.update_state(row)
        if project.show_collab_predictions and not project.model_version:
            project.model_version = row.title
        return row

    def _check_url(self, url: Any) -> None:
        if not url:
            raise Refused(400, "Validation error", {"url": ["This field is required."]})
        refuse_unless_allowed(str(url), block=self._outgoing.block_backends)

    def _validate(self, row: Backend, body: dict[str, Any]) -> None:
        """Raises Refused (400) with Label Studio's text."""
        if body.get("auth_method") == "BASIC_AUTH" and not {"basic_auth_user", "basic_auth_pass"} <= body.keys():
            text = "Authentication username and password is required for Basic Authentication."
            raise Refused(400, "Validation error", {"non_field_errors": [text]})
        health = self._outgoing.health(row)
        if health.status == 401:
            text = (
                "Able to connect to ML Server, but authentication parameters were either not provided or are incorrect."
            )
            raise Refused(400, "Validation error", {"non_field_errors": [text]})
        if health.error:
            text = f"Can't connect to ML backend {row.url}, health check failed. Additional info: {health.error}"
            raise Refused(400, "Validation error", {"non_field_errors": [text]})
        setup = self._outgoing.setup(row)
        if setup.error:
            text = (
                f"Successfully connected to {row.url} but it doesn't look like a valid ML backend. "
                f"Reason: {setup.error}."
            )
            raise Refused(400, "Validation error", {"non_field_errors": [text]})

    def _add_webhook(self, project: Project, row: Backend) -> None:
        url = row.url.rstrip("/") + "/webhook"
        if any(hook.url == url for hook in self._state.webhooks_of(project.id)):
            return
        try:
            self._projects.check_webhook(url)
        except Refused as error:
            if error.status == 400:  # a host without a dot: no webhook, and not a word about it
                return
            raise
        hook = Webhook(self._state.new_id("webhook"), url, project.id, self._state.clock())
        self._state.webhooks[hook.id] = hook

    def _find(self, ask: Ask) -> Backend:
        row = self._state.backends.get(ask.ids["backend"])
        if row is None:
            raise Refused(404, "No MLBackend matches the given query.")
        return row

    def _detail(self, ask: Ask) -> Any:
        row = self._find(ask)
        self._outgoing.update_state(row)
        if ask.method == "DELETE":
            return self._delete(row)
        if ask.method == "PATCH":
            self._patch(row, ask.json())
        return self._row(row)

    def _patch(self, row: Backend, body: dict[str, Any]) -> None:
        if "url" not in body:
            raise KeyError("url")
        self._check_url(body["url"])
        # Only what the request says is used to validate: credentials that were left out are not sent.
        trial = Backend(row.id, body["url"], body.get("project", row.project_id), row.title, row.created_s)
        _change(trial, body)
        if "basic_auth_pass" in body and not body["basic_auth_pass"]:
            trial.basic_auth_pass = row.basic_auth_pass
        self._validate(trial, body)
        project = self._state.projects[row.project_id]
        selected = project.model_version == row.title
        _change(row, body)
        if selected:
            project.model_version = row.title
        self._outgoing.update_state(row)

    def _delete(self, row: Backend) -> Any:
        """Predictions and webhook stay."""
        project = self._state.projects[row.project_id]
        if project.model_version == row.title:
            project.model_version = ""
        del self._state.backends[row.id]
        return 204, None

    def _versions(self, ask: Ask) -> Any:
        row = self._find(ask)
        outcome = self._outgoing.versions(row)
        if outcome.status == 404:
            text = "Upgrade your ML backend version to latest."
            return {"versions": [row.model_version], "message": text}
        return (outcome.status or 500, {"error": outcome.error}) if outcome.error else outcome.body

    def _train(self, ask: Ask) -> Any:
        """200 and an empty body whatever the backend says."""
        self._outgoing.start_training(self._find(ask))
        return 200, None

    def _test(self, ask: Ask) -> Any:
        row = self._find(ask)
        tasks = self._state.projects[row.project_id].task_ids
        if not tasks:
            raise Refused(500, "Project has no tasks to run prediction on, import at least 1 task to run prediction")
        outcome = self._outgoing.ask(row, [self._state.tasks[tasks[0]]])
        if outcome.error:
            raise Refused(500, "ML backend did not return any predictions, check ML backend logs for more details")
        return {"status": outcome.status, "error_message": None, "response": outcome.body.get("results")}

    def _interactive(self, ask: Ask) -> dict[str, Any]:
        """No health, no setup, nothing stored; errors have status 200."""
        row, body = self._find(ask), ask.json()
        if not row.is_interactive:
            return {"errors": ["Model is not set to be used for interactive preannotations"]}
        task = self._state.tasks.get(body["task"])
        if task is None or task.project_id != row.project_id:
            raise Refused(404, "No Task matches the given query.")
        outcome = self._outgoing.ask(row, [task], context=body.get("context") or {})
        if outcome.error:
            return {"errors": [outcome.error]}
        results = outcome.body.get("results") if isinstance(outcome.body, dict) else None
        if not results:
            return {"errors": ["Incorrect response from ML service: ML backend has to return list with 1 result."]}
        return {"data": results[0]}

    def _row(self, row: Backend) -> dict[str, Any]:
        return backend_row(row, self._state.clock())


def _change(row: Backend, body: dict[str, Any]) -> None:
    for name in _FIELDS:
        if name in body:
            setattr(row, name, body[name])
    # An empty password means: keep the stored one.
    row.basic_auth_pass = body.get("basic_auth_pass") or row.basic_auth_pass

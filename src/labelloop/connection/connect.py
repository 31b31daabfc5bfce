"""Connect a project to a backend. Safe to repeat: what is right stays, what is half-made is mended, nothing doubles."""

from __future__ import annotations

import re
from typing import Any

import msgspec

from labelloop.connection import project_checks as checks
from labelloop.connection import wiring
from labelloop.connection.addresses import serve_command
from labelloop.connection.backend import BackendProbe, BasicAuth, basic_header
from labelloop.connection.findings import Finding, attempt, fail, failed, ok, warn
from labelloop.connection.server_checks import check_rules
from labelloop.core.errors import LabelStudioRejected
from labelloop.labelstudio.client import ANNOTATION_EVENTS, Client
from labelloop.labelstudio.records import Backend, Project, Webhook

DEFAULT_TITLE = "labelloop"

_CREDENTIALS_FIX = "Pass --basic-auth-user and --basic-auth-pass as the backend was started with."


class ConnectReport(msgspec.Struct, frozen=True):
    """`changes` says in words what was done in Label Studio, empty when all was right already; `backend` and `webhook`
    are None when Label Studio did not take them."""

    project: Project
    backend: Backend | None
    webhook: Webhook | None
    changes: tuple[str, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        return not failed(self.findings)


def connect(
    client: Client,
    project: int | str,
    *,
    backend_url: str,
    title: str | None = None,
    basic_auth: BasicAuth | None = None,
    interactive: bool | None = None,
    extra_params: Any = None,
) -> ConnectReport:
    """Register `backend_url` in the project (id or title) with its webhook, and check both directions.

    None leaves what is stored as it is; a new row gets the title "labelloop" and smart tools switched on. Raises
    LabelStudioError when Label Studio cannot be asked or the project is not found; that Label Studio refuses or
    cannot reach the backend is a finding of the report.
    """
    found = client.find_project(project)
    backend_url = backend_url.rstrip("/")
    answering, findings = _our_side(client, backend_url, basic_auth)
    # Asked before anything is stored: a webhook refused half way leaves a backend row without one.
    findings += check_rules(client, backend_url)
    if failed(findings):
        return ConnectReport(found, None, None, (), tuple(findings))

    changes: list[str] = []
    wanted = _wanted(
        backend_url, title=title, basic_auth=basic_auth, interactive=interactive, extra_params=extra_params
    )
    try:
        backend = _ensure_backend(client, found, wanted, changes)
    except LabelStudioRejected as error:
        findings.append(_refused(error, client, found, backend_url, answering=answering))
        return ConnectReport(found, None, None, tuple(changes), tuple(findings))

    webhook, notes = _ensure_webhook(client, backend, basic_auth, changes)
    found = _ensure_selected(client, found.id, backend, changes)
    backends = client.backends(found.id)
    backend = next(row for row in backends if row.id == backend.id)
    findings += notes
    findings.append(wiring.from_label_studio(backend, reachable_here=answering, base_url=client.base_url))
    findings += attempt("we reach the pictures", lambda: [wiring.to_pictures(client, found)])
    findings += wiring.precedence(client, found, backends, backend)
    findings.append(wiring.shown_version(client, found, backends, backend))
    findings += checks.check_model(backend, found)
    return ConnectReport(found, backend, webhook, tuple(changes), tuple(findings))


def _wanted(
    url: str, *, title: str | None, basic_auth: BasicAuth | None, interactive: bool | None, extra_params: Any
) -> dict[str, Any]:
    """The fields of the row that were asked for, by Label Studio's names."""
    fields: dict[str, Any] = {"url": url, "title": title, "is_interactive": interactive, "extra_params": extra_params}
    if basic_auth:
        user, password = basic_auth
        fields |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
    return {name: value for name, value in fields.items() if value is not None}


def _our_side(client: Client, backend_url: str, basic_auth: BasicAuth | None) -> tuple[bool, list[Finding]]:
    """The token, and whether the backend answers here. A backend elsewhere may be visible to Label Studio only, so
    that it does not answer is a warning; that it refuses the password is not."""
    check = "the backend answers"
    findings = [ok("we reach Label Studio", f"{client.base_url} accepts the token of {client.whoami().email}.")]
    probe = BackendProbe(backend_url, basic_auth=basic_auth)
    health = probe.health()
    if not health.fine:
        reason = health.error or f"/health answers {health.status}"
        fix = f"Start it with `{serve_command(backend_url)}` if it should run on this machine."
        return False, [*findings, warn(check, f"{backend_url} does not answer here: {reason}.", fix)]
    if probe.versions().status == 401:
        message = f"{backend_url} asks for {'another' if basic_auth else 'a'} user name and password."
        return True, [*findings, fail(check, message, _CREDENTIALS_FIX)]
    message = f"{backend_url} answers /health here in {health.seconds * 1000:.0f} ms."
    return True, [*findings, ok(check, message)]


def _refused(
    error: LabelStudioRejected, client: Client, project: Project, backend_url: str, *, answering: bool
) -> Finding:
    """Why POST or PATCH /api/ml was refused, by the words in Label Studio's answer."""
    check, text = "Label Studio reaches the backend", error.message
    if "authentication parameters" in text:
        return fail(check, "The backend refuses the user name and password that Label Studio sends.", _CREDENTIALS_FIX)
    row = Backend(id=0, url=backend_url, project=project.id, state="DI")
    if "valid ML backend" in text:
        reason = re.search(r"Reason: (.*?)\.*(?: Check the ML backend|$)", text)
        row = msgspec.structs.replace(row, state="ER", error_message=reason[1] if reason else text)
    elif "health check failed" not in text:
        return fail(check, text, error.hint or "Look at Label Studio's log for the reason.")
    return wiring.from_label_studio(row, reachable_here=answering, base_url=client.base_url)


# --- the backend row --------------------------------------------------------------------------------


def _ensure_backend(client: Client, project: Project, wanted: dict[str, Any], changes: list[str]) -> Backend:
    rows = wiring.ours(client.backends(project.id), wanted["url"])
    if not rows:
        fields: dict[str, Any] = {"title": DEFAULT_TITLE, "is_interactive": True} | wanted
        row = client.add_backend(project.id, **fields)
        changes.append(f"added the backend {row.title!r} at {row.url}")
        return row
    row = rows[0]
    for double in rows[1:]:
        client.delete_backend(double.id)
        changes.append(f"removed a second row of the same backend (id {double.id})")
    different = [name for name, value in wanted.items() if name != "basic_auth_pass" and getattr(row, name) != value]
    # The stored password cannot be read: it is sent again when there is none or when the backend does not accept it.
    if "basic_auth_pass" in wanted and (not row.basic_auth_pass_is_set or not row.connected):
        different.append("basic_auth_pass")
    if not different:
        return row
    changes.append(f"updated {', '.join(different)} of the backend {row.title!r}")
    return client.update_backend(row, **wanted)


def _ensure_selected(client: Client, project_id: int, backend: Backend, changes: list[str]) -> Project:
    """Label Studio selects a first backend by itself, but not one whose addition stopped half way."""
    project = client.project(project_id)
    if project.model_version or not project.show_collab_predictions:
        return project
    changes.append(f"selected {backend.title!r} for the project's predictions")
    return client.set_project(project_id, model_version=backend.title)


# --- the webhook ------------------------------------------------------------------------------------


def _ensure_webhook(
    client: Client, backend: Backend, basic_auth: BasicAuth | None, changes: list[str]
) -> tuple[Webhook | None, list[Finding]]:
    """Exactly one webhook, for annotations only: each event waits up to 1 s inside the annotator's click."""
    hooks = wiring.our_webhooks(client.webhooks(backend.project), backend.url)
    for double in hooks[1:]:
        client.delete_webhook(double.id)
        changes.append(f"removed a second webhook (id {double.id})")
    url = wiring.webhook_url(backend.url)
    wanted: dict[str, Any] = {"is_active": True, "send_payload": True}
    try:
        hook = hooks[0] if hooks else client.create_webhook(backend.project, url, **wanted, **_events(None))
    except LabelStudioRejected as error:
        message = f"{error.message} Without a webhook labelloop does not hear of annotations at once."
        return None, [warn("webhook", message, error.hint or "Add it by hand under Settings > Webhooks.")]
    if not hooks:
        changes.append(f"added the webhook {hook.url}")
    wanted |= {"url": url, "headers": _headers(hook, backend, basic_auth), **_events(hook)}
    different = [name for name, value in wanted.items() if _stored(hook, name) != value]
    if different:
        hook = client.update_webhook(hook, **wanted)
        changes.append(f"updated {', '.join(different)} of the webhook: annotation events only")
    return hook, [ok("webhook", f"Label Studio tells {hook.url} about annotations.")]


def _events(hook: Webhook | None) -> dict[str, Any]:
    """Annotation events, and what somebody has added to a narrowed list on purpose."""
    extra = [] if hook is None or hook.send_for_all_actions else [a for a in hook.actions if a not in ANNOTATION_EVENTS]
    return {"send_for_all_actions": False, "actions": sorted([*ANNOTATION_EVENTS, *extra])}


def _headers(hook: Webhook, backend: Backend, basic_auth: BasicAuth | None) -> dict[str, str]:
    """Event webhooks carry no authentication of their own, so it goes into a header. A password that no longer belongs
    to the backend is taken out."""
    if basic_auth is None and backend.basic_auth_pass_is_set:
        return hook.headers
    kept = {name: value for name, value in hook.headers.items() if not _is_basic(name, value)}
    return kept | ({"Authorization": basic_header(basic_auth)} if basic_auth else {})


def _is_basic(name: str, value: str) -> bool:
    return name.lower() == "authorization" and value.startswith("Basic ")


def _stored(hook: Webhook, name: str) -> Any:
    return sorted(hook.actions) if name == "actions" else getattr(hook, name)

"""Which rows in Label Studio are ours, and what is wrong with them: shared by connect (repairs) and doctor (tells)."""

from __future__ import annotations

from collections.abc import Sequence

from labelloop.connection.addresses import is_loopback, reachable_from_outside, same_address, serve_command
from labelloop.connection.backend import BasicAuth, basic_header
from labelloop.connection.findings import Finding, fail, ok, warn
from labelloop.labelstudio.client import ANNOTATION_EVENTS, Client
from labelloop.labelstudio.records import Backend, Project, Webhook
from labelloop.labelstudio.session import SSRF_HINT

CLOUD_SCHEMES = ("s3://", "s3s://", "gs://", "azure-blob://", "azure_spi://", "redis://")


def webhook_url(backend_url: str) -> str:
    """Where Label Studio sends the events of a backend."""
    return backend_url.rstrip("/") + "/webhook"


def ours(backends: Sequence[Backend], backend_url: str) -> list[Backend]:
    """Rows with our address, lowest id first."""
    return [row for row in backends if same_address(row.url, backend_url)]


def our_webhooks(webhooks: Sequence[Webhook], backend_url: str) -> list[Webhook]:
    """Webhooks that lead to our address, lowest id first."""
    return sorted(
        (hook for hook in webhooks if same_address(hook.url, webhook_url(backend_url))), key=lambda hook: hook.id
    )


def webhook_problems(hook: Webhook, basic_auth: BasicAuth | None) -> list[str]:
    """What keeps this webhook from telling us about annotations, in words; empty when nothing does."""
    problems = []
    if not hook.is_active:
        problems.append("it is switched off")
    if not hook.send_payload:
        problems.append("it sends no payload")
    missing = [] if hook.send_for_all_actions else [name for name in ANNOTATION_EVENTS if name not in hook.actions]
    if missing:
        problems.append(f"it does not send {', '.join(missing)}")
    if basic_auth and hook.headers.get("Authorization") != basic_header(basic_auth):
        problems.append("it does not carry the backend's user name and password (Label Studio never adds them itself)")
    return problems


def from_label_studio(backend: Backend, *, reachable_here: bool, base_url: str, allowed: bool = True) -> Finding:
    """Whether Label Studio gets through to the backend, by the state it has just written into `backend`. `allowed`:
    its address rules let it call there."""
    check = "Label Studio reaches the backend"
    if backend.connected:
        return ok(check, f"Label Studio gets answers from {backend.url} (state {backend.state}).")
    reason = f": {backend.error_message}" if backend.error_message and backend.state == "ER" else ""
    if backend.state == "ER" and "401" in reason:
        return fail(
            check,
            "The backend asks Label Studio for a user name and password, and those stored there are missing or wrong.",
            f"labelloop connect {backend.project} --basic-auth-user USER --basic-auth-pass PASSWORD",
        )
    if backend.state == "ER":
        return fail(
            check,
            f"The backend answers /health but not /setup{reason}.",
            "Look at the backend's log: /setup must answer 2xx within 3 s; 400 means that it refuses the label config.",
        )
    if not allowed:
        return fail(check, f"Label Studio's address rules keep it from calling {backend.url}.", SSRF_HINT)
    if not reachable_here:
        return fail(
            check,
            f"Label Studio cannot reach {backend.url}; from here it does not answer either.",
            f"Start the backend: {serve_command(backend.url)}",
        )
    if is_loopback(backend.url):
        return fail(
            check,
            f"{backend.url} answers here, but for Label Studio localhost is another machine or container.",
            reachable_from_outside(backend.url, base_url),
        )
    return fail(
        check,
        f"{backend.url} answers here, but Label Studio gets no answer to /health within 1 s.",
        "Open the port for Label Studio's machine (firewall, docker network) and make the backend listen on all "
        "addresses: labelloop serve --host 0.0.0.0. If the address is private, Label Studio also needs "
        "ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false.",
    )


def precedence(client: Client, project: Project, backends: Sequence[Backend], backend: Backend) -> list[Finding]:
    """Label Studio asks only the backend with the lowest id for predictions, whichever title is selected."""
    first = min(backends, key=lambda row: row.id, default=backend)
    if first.id >= backend.id:
        return []
    return [
        warn(
            "first backend",
            f"Label Studio takes predictions only from the backend with the lowest id: {first.title!r} at {first.url} "
            f"(id {first.id}), not from {backend.title!r} (id {backend.id}).",
            f"Delete {first.title!r} at {page(client, project, 'settings/ml')}, or use ours for smart tools only.",
        )
    ]


def shown_version(client: Client, project: Project, backends: Sequence[Backend], backend: Backend) -> Finding:
    """`project.model_version` is the title of a backend (live calls) or the name of stored predictions (no calls)."""
    check = "shown predictions"
    where = f"{page(client, project, 'settings/annotation')} (Use predictions to prelabel tasks)"
    if project.model_version == backend.title and project.show_collab_predictions:
        return ok(check, f"The project shows live predictions of {backend.title!r}.")
    if not project.show_collab_predictions:
        return warn(check, "The project does not show predictions to annotators.", f"Switch it on at {where}.")
    if not project.model_version:
        return warn(
            check, "The project selects no model, so tasks open empty.", f"Select {backend.title!r} at {where}."
        )
    if project.model_version in [row.title for row in backends]:
        message = f"The project has {project.model_version!r} selected, another backend, for its live predictions."
        return warn(check, message, f"Select {backend.title!r} at {where}.")
    return warn(
        check,
        f"The project shows stored predictions of {project.model_version!r} and does not ask the backend for new ones.",
        f"That is right after a bulk pre-annotation. For live predictions select {backend.title!r} at {where}.",
    )


def page(client: Client, project: Project, path: str) -> str:
    """The address of one of the project's web pages."""
    return f"{client.base_url}/projects/{project.id}/{path}"


def first_picture(client: Client, project: Project) -> tuple[int, str, str] | None:
    """(task id, data key, address) of the first text in the first task's data that names a file; None without one."""
    page = client.tasks(project.id, page_size=1, include=("id", "data"))
    for task in page.tasks:
        for key, value in task["data"].items():
            address = value[0] if isinstance(value, list) and value else value
            if isinstance(address, str) and address.startswith(("/data/", "http://", "https://", *CLOUD_SCHEMES)):
                return task["id"], key, address
    return None


def to_pictures(client: Client, project: Project) -> Finding:
    """Whether the file of one task can be had from Label Studio, without downloading it."""
    check = "we reach the pictures"
    found = first_picture(client, project)
    if found is None:
        return Finding(
            check,
            "skipped",
            "The project has no task that names a file.",
            f"Import some pictures: {page(client, project, 'data')}",
        )
    task, key, address = found
    if address.startswith("http") and not same_address(_origin(address), _origin(client.base_url)):
        return ok(check, f"Task {task} names {_origin(address)}: fetched from there, without Label Studio's token.")
    status = client.probe_file(address, task_id=task)
    if status in (200, 206, 303):
        return ok(check, f"Label Studio hands out {key!r} of task {task}.")
    fixes = {
        401: "Label Studio does not accept the token for files: use a personal access token.",
        403: "Use the token of a user who is a member of the project.",
        404: "Check the project's storage (Settings > Cloud Storage) and that the file still exists; local files "
        "need LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true.",
        500: "The uploaded file is missing on Label Studio's disk: import it again.",
    }
    return fail(
        check,
        f"Label Studio answers {status} for {key!r} of task {task}.",
        fixes.get(status, "Look at Label Studio's log."),
    )


def _origin(url: str) -> str:
    return "/".join(url.split("/", 3)[:3])

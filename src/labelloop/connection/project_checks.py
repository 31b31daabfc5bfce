"""Checks that concern one project: its rows in Label Studio, its storages, its labels, one picture, one prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from labelloop.connection import wiring
from labelloop.connection.backend import BackendProbe, BasicAuth
from labelloop.connection.findings import Finding, fail, ok, skipped, warn
from labelloop.core.errors import LabelStudioRejected, MediaError
from labelloop.core.regions import Size
from labelloop.engines.labels import NAMELESS, are_placeholders
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.labelmap import LabelMap
from labelloop.labelstudio.records import Backend, Project, Storage
from labelloop.serving.projects import NO_MODEL

Coverage = Callable[[Project, str], tuple[str, LabelMap | None] | None]
"""The model that serves a project (by the version that /setup said, "" when unknown) and its label map onto the
project; None when it is not in this machine's store."""

Look = Callable[[Project, Mapping[str, Any]], Size | None]
"""Fetch and decode the first picture of a task and return its size, None when the label config shows no pictures.
Raises MediaError."""

_SHOWN = 8


def check_rows(
    client: Client,
    project: Project,
    backends: Sequence[Backend],
    backend_url: str,
    *,
    reachable_here: bool,
    allowed: bool,
) -> Iterator[Finding]:
    """The backend row: there, once, reached by Label Studio, and the one that is asked."""
    rows = wiring.ours(backends, backend_url)
    connect = connect_command(project, backend_url)
    if not rows:
        others = ", ".join(f"{row.title!r} at {row.url}" for row in backends) or "none"
        yield fail("registered", f"The project has no backend at {backend_url} (it has: {others}).", connect)
        return
    if len(rows) > 1:
        yield warn("registered", f"The backend is registered {len(rows)} times.", connect)
    else:
        yield ok("registered", f"{rows[0].title!r} at {rows[0].url} is registered.")
    yield wiring.from_label_studio(rows[0], reachable_here=reachable_here, base_url=client.base_url, allowed=allowed)
    yield from wiring.precedence(client, project, backends, rows[0])
    yield from check_model(rows[0], project)
    yield wiring.shown_version(client, project, backends, rows[0])
    if 'smart="true"' in project.label_config and not rows[0].is_interactive:
        message = "The label config has smart tools, but the backend is not registered for interactive predictions."
        yield warn("smart tools", message, f"{connect} --interactive")


def connect_command(project: Project, backend_url: str) -> str:
    return f"labelloop connect {project.id} --backend-url {backend_url}"


def check_model(row: Backend, project: Project) -> Iterator[Finding]:
    """What /setup names as version: Label Studio has just stored what /setup said, unless the row is pinned."""
    if not row.connected:
        return
    if row.model_version == NO_MODEL:
        fix = f"labelloop models use {project.id} NAME, or let it learn from nothing: labelloop loop {project.id} on"
        yield warn("model", "No model is assigned to this project.", fix)
    elif not row.model_version:
        fix = 'Let /setup answer {"model_version": "name"}; labelloop serve does.'
        yield fail("model", "The backend's /setup names no model_version, so predictions are refused with 400.", fix)
    elif not row.auto_update:
        message = f"Label Studio keeps {row.model_version!r} as this backend's version and ignores newer ones."
        yield warn("model", message, f"Set auto_update to true: PATCH /api/ml/{row.id} with url and project.")
    else:
        yield ok("model", f"The backend serves {row.model_version}.")


def check_webhook(
    client: Client, project: Project, backend_url: str, basic_auth: BasicAuth | None
) -> Iterator[Finding]:
    """There, once, active, with the password and for the annotation events."""
    hooks = wiring.our_webhooks(client.webhooks(project.id), backend_url)
    connect = connect_command(project, backend_url)
    if not hooks:
        message = "Label Studio does not tell the backend about annotations: there is no webhook."
        yield fail("webhook", message, connect)
        return
    if len(hooks) > 1:
        yield warn("webhook", f"Each annotation is sent {len(hooks)} times: there are {len(hooks)} webhooks.", connect)
    problems = wiring.webhook_problems(hooks[0], basic_auth)
    for problem in problems:
        yield fail("webhook", f"{hooks[0].url}: {problem}.", connect)
    if not problems and len(hooks) == 1:
        yield ok("webhook", f"Label Studio tells {hooks[0].url} about annotations.")


def check_storages(client: Client, project: Project) -> Iterator[Finding]:
    """What each source storage means for fetching pictures."""
    storages = client.storages(project.id)
    if not storages:
        yield ok("storages", "No storages: the tasks are uploads or plain addresses.")
    for storage in storages:
        yield _storage(storage)


def _storage(storage: Storage) -> Finding:
    check, name = "storages", f"{storage.type} storage {storage.title or storage.id!r}"
    if storage.type == "localfiles":
        return ok(
            check,
            f"{name} ({storage.path}): its files come through Label Studio; with a shared disk set "
            "LABELLOOP_LOCAL_FILES_ROOT to the document root, which is faster.",
        )
    if storage.presign is False and storage.use_blob_urls:
        message = f"{name}: Label Studio passes every file through itself, because pre-signed URLs are off."
        return warn(check, message, 'Switch on "Use pre-signed URLs" in the storage\'s settings.')
    return ok(check, f"{name}: files come from pre-signed addresses that Label Studio hands out.")


def check_labels(client: Client, project: Project, row: Backend | None, coverage: Coverage) -> Iterator[Finding]:
    """Which classes of the model go nowhere and which labels nobody fills."""
    version = (row.model_version if row else "") or ""
    if version == NO_MODEL:
        return
    found = coverage(project, version)
    if found is None:
        message = f"The model {version} is not in this machine's store." if version else "No model is known here."
        fix = "Run doctor where the backend runs, with the same LABELLOOP_HOME or LABELLOOP_DATABASE_URL."
        yield skipped("labels", message, fix)
        return
    model, label_map = found
    if label_map is None:
        yield ok(
            "labels", f"{model} writes regions by itself; what Label Studio would not take is left out and logged."
        )
        return
    where = wiring.page(client, project, "settings/labeling")
    for note in label_map.notes:
        yield warn("labels", note, f"The labeling interface is at {where}.")
    if not label_map.targets:
        yield fail(
            "labels",
            f"No class of {model} fits the label config ({_some(label_map.unmapped) or 'it names no classes'}).",
            NAMELESS
            if are_placeholders(label_map.unmapped)
            else f'Add predicted_values="CLASS" to a label at {where}, or serve with --labels-file.',
        )
        return
    mapped = len({name for name, _ in label_map.targets})
    yield ok("labels", f"{mapped} of {mapped + len(label_map.unmapped)} classes of {model} have a label.")
    if label_map.unfilled:
        message = f"Labels that {model} never fills: {_some(label_map.unfilled)}."
        yield warn("labels", message, f'Add predicted_values="CLASS" to them at {where} if the model knows them.')
    if label_map.unmapped:
        message = f"Classes of {model} without a label, so never shown: {_some(label_map.unmapped)}."
        yield warn("labels", message, f'Add <Label value="…" predicted_values="CLASS"/> at {where} for those you want.')


def _some(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def check_picture(client: Client, project: Project, look: Look | None) -> Iterator[Finding]:
    """One picture of the first task, fetched and decoded as for a prediction; without `look` only asked for."""
    if look is None:
        yield wiring.to_pictures(client, project)
        return
    tasks = client.tasks(project.id, page_size=1).tasks
    if not tasks:
        yield skipped("picture", "The project has no tasks.", f"Import some: {wiring.page(client, project, 'data')}")
        return
    try:
        size = look(project, tasks[0])
    except MediaError as error:
        fix = error.hint or "Open the task in Label Studio: if it shows no picture either, import the file again."
        yield fail("picture", f"Task {tasks[0]['id']}: {error.message}", fix)
        return
    if size is None:
        yield skipped("picture", "The label config shows no pictures.", "Nothing to do for texts and films.")
        return
    yield ok("picture", f"Task {tasks[0]['id']} has a picture of {size.width} x {size.height} pixels.")


def check_prediction(client: Client, project: Project, row: Backend | None, probe: BackendProbe) -> Iterator[Finding]:
    """One real task through /predict, exactly as Label Studio would ask; nothing is stored."""
    check = "prediction"
    tasks = client.tasks(project.id, page_size=1).tasks
    if not tasks:
        yield skipped(check, "The project has no tasks.", f"Import some: {wiring.page(client, project, 'data')}")
        return
    answer = probe.predict(predict_request(project, tasks[0]))
    log = "Look at the backend's log."
    if answer.status == 503:
        yield warn(check, "The backend is busy (503).", "Ask again in a moment.")
        return
    if not answer.fine:
        yield fail(check, f"/predict answers {answer.status or 'nothing'}: {answer.error or answer.body}.", log)
        return
    results = answer.body.get("results") if isinstance(answer.body, dict) else None
    if not isinstance(results, list) or len(results) != 1 or not isinstance(results[0], dict):
        yield fail(check, "/predict does not answer with exactly one result for one task.", log)
        return
    yield from _item(results[0], tasks[0]["id"], row, answer.seconds)


def predict_request(project: Project, task: Mapping[str, Any]) -> dict[str, Any]:
    """The body of Label Studio's /predict for one task."""
    created = datetime.fromisoformat(project.created_at.replace("Z", "+00:00")).timestamp() if project.created_at else 0
    return {
        "tasks": [task],
        "project": f"{project.id}.{int(created)}",
        "label_config": project.label_config,
        "params": {"login": None, "password": None, "context": None},
    }


def _item(item: dict[str, Any], task: int, row: Backend | None, seconds: float) -> Iterator[Finding]:
    check = "prediction"
    if item.get("error"):
        error = item["error"]
        text = error.get("message", error) if isinstance(error, dict) else error
        yield fail(check, f"The backend could not predict task {task}: {text}", "Mend that and look again.")
        return
    regions, version = item.get("result") or [], item.get("model_version")
    if row is not None and row.connected and version != row.model_version:
        yield fail(
            check,
            f"/setup says version {row.model_version!r}, predictions say {version!r}: Label Studio asks again at every "
            "opening and stores duplicates.",
            "Let both answer the same string, or reconnect: labelloop serve keeps them equal.",
        )
        return
    took = f"task {task}, version {version}, {seconds * 1000:.0f} ms"
    if not regions:
        fix = "Try a picture with something in it, a lower --score-threshold, and see the labels lines above."
        yield warn(check, f"It works, but nothing was found ({took}).", fix)
        return
    yield ok(check, f"{len(regions)} region{'s' if len(regions) > 1 else ''} ({took}).")


def find_rejected(client: Client, project: int | str) -> Project | Finding:
    """The project, or the finding that says why not."""
    try:
        return client.find_project(project)
    except LabelStudioRejected as error:
        return fail("project", error.message, error.hint or "labelloop doctor without a project lists all connected.")

"""What Label Studio sends to a backend, with its real timeouts, retries and address rules (PROTOCOL 1.4 and 2)."""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx

from labelloop.core.tls import trusted
from labelloop.testing.label_studio.rows import RELEASE, predict_task_row, webhook_project_row
from labelloop.testing.label_studio.state import Backend, Project, State, Task

BLOCKED = "URL resolves to a reserved network address (block: {network})"

_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16",
        "::1/128", "fc00::/7", "fe80::/10",
    )
)  # fmt: skip


@dataclass(frozen=True)
class Timeouts:
    """Seconds, as shipped. A test that waits for one may shorten it."""

    connect: float = 1.0
    health: float = 1.0
    setup: float = 3.0
    predict: float = 100.0
    webhook: float = 1.0


class Blocked(Exception):
    """A switch refuses the address: 403."""


class Unresolvable(Exception):
    """The host has no address: Label Studio answers 500."""


class Outcome(NamedTuple):
    """`error` is empty when the backend answered 2xx with JSON in `body`. `status` is 0 when there was no answer."""

    status: int
    body: Any
    error: str


def check_address(url: str) -> None:
    """Raise Blocked for private and loopback addresses and Unresolvable for unknown hosts."""
    host = urlsplit(url).hostname or ""
    try:
        address = ipaddress.ip_address(socket.gethostbyname(host))
    except OSError as error:
        raise Unresolvable(f"Can't resolve hostname {host}") from error
    for network in _NETWORKS:
        if address in network:
            raise Blocked(BLOCKED.format(network=network))


class Outgoing:
    """The calls. `block_backends` is ML_BLOCK_LOCAL_IP, `block_webhooks` is SSRF_PROTECTION_ENABLED."""

    def __init__(
        self, state: State, *, hostname: str, access_token: str, block_backends: bool, block_webhooks: bool
    ) -> None:
        self._state = state
        self.hostname = hostname
        self._access_token = access_token
        self.block_backends = block_backends
        self.block_webhooks = block_webhooks
        self.timeouts = Timeouts()

    def health(self, backend: Backend) -> Outcome:
        """Two more tries after a timeout or a refused connection."""
        outcome = self._call("GET", backend, "/health", None, self.timeouts.health)
        for _ in range(2):
            if outcome.status or not outcome.error:
                break
            outcome = self._call("GET", backend, "/health", None, self.timeouts.health)
        return outcome

    def setup(self, backend: Backend) -> Outcome:
        project = self._state.projects[backend.project_id]
        body = {
            "project": project.uid,
            "schema": project.label_config,
            "hostname": self.hostname,
            "access_token": self._access_token,
            "extra_params": backend.extra_params,
        }
        return self._call("POST", backend, "/setup", body, self.timeouts.setup)

    def versions(self, backend: Backend) -> Outcome:
        return self._call("GET", backend, "/versions", None, self.timeouts.setup)

    def update_state(self, backend: Backend) -> str | None:
        """One health and one setup; returns the version that setup said."""
        if self.health(backend).error:
            backend.state = "DI"
            return None
        outcome = self.setup(backend)
        if outcome.error:
            backend.state, backend.error_message = "ER", outcome.error
            return None
        backend.state, backend.error_message = "CO", None
        version: str | None = outcome.body.get("model_version")
        if backend.auto_update:
            backend.model_version = version
        return version

    def ask(self, backend: Backend, tasks: Sequence[Task], context: Any = None) -> Outcome:
        """One /predict with all tasks. Interactive requests have a context."""
        project = self._state.projects[backend.project_id]
        body = {
            "tasks": [predict_task_row(self._state, task, interactive=context is not None) for task in tasks],
            "project": project.uid,
            "label_config": project.label_config,
            "params": {"login": None, "password": None, "context": context},
        }
        return self._call("POST", backend, "/predict", body, self.timeouts.predict)

    def predict(self, backend: Backend, tasks: Sequence[Task]) -> int:
        """H+S, then ask for the tasks without a prediction of the version just heard; store and count what is usable.

        Raises ValueError for an answer that makes Label Studio refuse the whole batch with 400.
        """
        version = self.update_state(backend)
        if backend.state != "CO":
            return 0
        known = self._state.predictions
        todo = [task for task in tasks if all(row["model_version"] != version for row in known.get(task.id, ()))]
        return self._store(backend, todo, self.ask(backend, todo)) if todo else 0

    def _store(self, backend: Backend, tasks: Sequence[Task], outcome: Outcome) -> int:
        results = outcome.body.get("results") if isinstance(outcome.body, dict) else None
        if outcome.error or not isinstance(results, list) or not results:
            return 0
        if len(results) != len(tasks):
            # Exactly one result is taken for a backend without batches; any other wrong number loses everything.
            if len(results) != 1:
                return 0
            return sum(self._store(backend, [task], self.ask(backend, [task])) for task in tasks)
        pairs = [
            (task, item)
            for task, result in zip(tasks, results, strict=True)
            for item in (result if isinstance(result, list) else [result])
            if "result" in item
        ]
        rows = [(task, _usable(item, backend)) for task, item in pairs]
        for task, row in rows:
            self._state.add_prediction(task, row, touch=True)
        return len(rows)

    def start_training(self, backend: Backend) -> None:
        project = self._state.projects[backend.project_id]
        body = {"action": "START_TRAINING", "project": webhook_project_row(self._state, project)}
        outcome = self._call("POST", backend, "/webhook", body, self.timeouts.predict)
        backend.state, backend.error_message = ("ER", outcome.error) if outcome.error else ("TR", backend.error_message)

    def emit(self, project: Project, action: str, payload: dict[str, Any]) -> None:
        """Event webhooks: one after the other, no retry, no authentication of their own, errors ignored."""
        for hook in self._state.webhooks_of(project.id):
            if not hook.is_active or not (hook.send_for_all_actions or action in hook.actions):
                continue
            body: dict[str, Any] = {"action": action}
            if hook.send_payload:
                body |= payload | {"project": webhook_project_row(self._state, project)}
            headers = {"User-Agent": "python-requests/2.34.2", **hook.headers}
            if not (self.block_webhooks and _is_blocked(hook.url)):
                _send("POST", hook.url, body, httpx.Timeout(self.timeouts.webhook), headers, None)

    def _call(self, method: str, backend: Backend, path: str, body: Any, read_s: float) -> Outcome:
        if self.block_backends and _is_blocked(backend.url):
            return Outcome(0, None, "URL resolves to a reserved network address")
        timeout = httpx.Timeout(read_s, connect=self.timeouts.connect)
        headers = {"User-Agent": f"heartex/{RELEASE}"}
        return _send(method, backend.url.rstrip("/") + path, body, timeout, headers, backend.auth)


def _is_blocked(url: str) -> bool:
    try:
        check_address(url)
    except Blocked:
        return True
    except Unresolvable:
        return False
    return False


def _send(
    method: str, url: str, body: Any, timeout: httpx.Timeout, headers: dict[str, str], auth: tuple[str, str] | None
) -> Outcome:
    """A new connection per call, as Label Studio does."""
    try:
        with httpx.Client(timeout=timeout, headers=headers, verify=trusted(), trust_env=False) as http:
            response = http.request(method, url, json=body, auth=auth)
    except httpx.TimeoutException:
        return Outcome(0, None, f"Read timed out. (read timeout={timeout.read})")
    except httpx.HTTPError as error:
        return Outcome(0, None, f"Max retries exceeded with url: {urlsplit(url).path} (Caused by {error})")
    if response.is_error:
        side = "Server" if response.status_code >= 500 else "Client"
        reason = f"{response.status_code} {side} Error: {response.reason_phrase} for url: {url}"
        return Outcome(response.status_code, None, reason)
    try:
        return Outcome(response.status_code, response.json(), "")
    except json.JSONDecodeError as error:
        return Outcome(response.status_code, None, str(error))


def _usable(item: dict[str, Any], backend: Backend) -> dict[str, Any]:
    """What is stored of one item. Raises ValueError where Label Studio answers 400 for the whole batch."""
    result, version = item["result"], item.get("model_version", backend.model_version)
    if version is None:
        raise ValueError("model_version: This field may not be null.")
    if result is None:
        raise ValueError("result: This field may not be null.")
    score = item.get("score")
    try:
        score = None if score is None else float(score)
    except (TypeError, ValueError) as error:
        raise ValueError("score: A valid number is required.") from error
    return {"result": result, "score": None if score != score else score, "model_version": str(version)}

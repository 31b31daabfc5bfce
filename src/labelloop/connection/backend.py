"""A look at an ML backend from here, the way Label Studio would look at it."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
import msgspec

from labelloop.core.tls import trusted

HEALTH_LIMIT_S = 1.0
"""Label Studio waits this long for /health (ML_TIMEOUT_HEALTH)."""

_POLL_S = 0.2

BasicAuth = tuple[str, str]


class Answer(msgspec.Struct, frozen=True):
    """`status` is 0 when there was no answer; `error` then says why. `body` is decoded JSON, None if it was none."""

    status: int
    body: Any
    error: str
    seconds: float

    @property
    def fine(self) -> bool:
        return 200 <= self.status < 300 and not self.error


class BackendProbe:
    """Asks a backend; never raises. One connection per question, as Label Studio does it."""

    def __init__(self, url: str, *, basic_auth: BasicAuth | None = None) -> None:
        self.url = url.rstrip("/")
        self._auth = basic_auth

    def health(self) -> Answer:
        return self._ask("GET", "/health", timeout_s=5.0)

    def ready(self) -> Answer:
        """labelloop's own: whether the models are warm. Other backends answer 404."""
        return self._ask("GET", "/ready", timeout_s=5.0)

    def versions(self) -> Answer:
        """Needs the credentials, does nothing."""
        return self._ask("GET", "/versions", timeout_s=5.0)

    def predict(self, body: Any) -> Answer:
        return self._ask("POST", "/predict", body=body, timeout_s=100.0)

    def _ask(self, method: str, path: str, *, body: Any = None, timeout_s: float) -> Answer:
        content = None if body is None else msgspec.json.encode(body)
        headers = {} if body is None else {"Content-Type": "application/json"}
        started = time.perf_counter()
        try:
            with httpx.Client(timeout=timeout_s, verify=trusted(), trust_env=False) as http:
                started = time.perf_counter()  # reading the certificates, once, takes longer than a backend's answer
                response = http.request(method, self.url + path, content=content, headers=headers, auth=self._auth)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Answer(0, None, str(error) or type(error).__name__, time.perf_counter() - started)
        seconds = time.perf_counter() - started
        try:
            return Answer(response.status_code, msgspec.json.decode(response.content), "", seconds)
        except msgspec.DecodeError:
            return Answer(response.status_code, None, "the answer is not JSON", seconds)


def wait_for_model(probe: BackendProbe, version: str, *, timeout_s: float = 5.0) -> bool:
    """Whether the backend knows `version` within the time: it reads the store about once a second. False as well for a
    backend that cannot say, or that works on another store."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        body = probe.ready().body
        if not isinstance(body, dict) or not isinstance(body.get("models"), dict):
            return False
        if version in body["models"]:
            return True
        time.sleep(_POLL_S)
    return False


def basic_header(basic_auth: BasicAuth) -> str:
    """The Authorization header of HTTP Basic authentication (RFC 7617)."""
    return "Basic " + base64.b64encode(":".join(basic_auth).encode()).decode()

"""One HTTP conversation with Label Studio: authorization, retries, and every failure turned into one of our errors."""

from __future__ import annotations

import email.utils
import json
import re
import time
from collections.abc import Mapping
from typing import Any, TypeVar
from urllib.parse import urlsplit

import httpx
import msgspec
import tenacity

from labelloop.core.decoding import from_json
from labelloop.core.errors import LabelStudioAuthError, LabelStudioError, LabelStudioRejected, LabelStudioUnreachable
from labelloop.core.tls import trusted
from labelloop.labelstudio.tokens import Credentials

T = TypeVar("T")

SSRF_HINT = (
    "Start Label Studio with both ML_BLOCK_LOCAL_IP=false and SSRF_PROTECTION_ENABLED=false in its environment: "
    "by default it refuses private and loopback addresses."
)
NOT_LABEL_STUDIO_HINT = "Give the address that the browser shows, with its sub-path if it has one, for instance http://host:8080/label-studio."
NOT_A_URL = "Enter a valid URL"
"""Django's words for a webhook address whose host has no dot (and is not localhost)."""

_TRY_AGAIN = frozenset({429, 502, 503, 504})
_LONGEST_WAIT_S = 30.0


class _Again(Exception):
    """The same request may succeed later; `error` is what to raise when it does not."""

    def __init__(self, error: LabelStudioError, retry_after_s: float = 0.0) -> None:
        super().__init__(str(error))
        self.error = error
        self.retry_after_s = retry_after_s


class Session:
    """Keeps connections alive and safe to share between threads. Redirects are never followed: the token would go
    with them, and a POST would silently become a GET.

    `attempts` counts all tries of an idempotent request; `backoff_s` is the first pause, doubled each time.
    """

    def __init__(
        self,
        credentials: Credentials,
        *,
        timeout_s: float = 60.0,
        attempts: int = 4,
        backoff_s: float = 0.2,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.credentials = credentials
        self.base_url = credentials.base_url
        self._retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(attempts),
            wait=_pause(backoff_s),
            retry=tenacity.retry_if_exception_type(_Again),
            reraise=True,
        )
        # A proxy from the environment is for the internet, never for a server on this machine.
        local = urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")
        timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, 5.0))
        self._http = httpx.Client(
            transport=transport, verify=trusted(), timeout=timeout, trust_env=not local, follow_redirects=False
        )

    def close(self) -> None:
        self._http.close()

    def ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        params: Mapping[str, Any] | None = None,
        body: Any = None,
        files: Any = None,
        timeout_s: float | None = None,
        public: bool = False,
    ) -> T:
        """Send, check, decode as `kind`; `public` sends no token.

        Raises LabelStudioUnreachable, LabelStudioAuthError or LabelStudioRejected.
        """
        content = None if body is None else msgspec.json.encode(body)
        request: dict[str, Any] = {"params": params, "content": content, "files": files}
        if timeout_s is not None:
            request["timeout"] = httpx.Timeout(timeout_s, connect=5.0)
        again = method in ("GET", "PUT", "PATCH", "DELETE")
        try:
            response = self._retrying(self._send, method, path, request, public=public, again=again)
        except _Again as error:
            raise error.error from error.__cause__
        return self._decode(response, kind)

    def status(self, path: str, *, headers: Mapping[str, str]) -> int:
        """The HTTP status of a GET whose body is not read. Raises LabelStudioUnreachable, LabelStudioAuthError."""
        headers = {**headers, "Authorization": self.credentials.authorization()}
        try:
            with self._http.stream("GET", self.base_url + path, headers=headers) as response:
                return response.status_code
        except httpx.TransportError as error:
            raise unreachable(self.base_url, error) from error

    def _send(self, method: str, path: str, request: dict[str, Any], *, public: bool, again: bool) -> httpx.Response:
        response = self._once(method, path, request, public=public, again=again)
        if response.status_code == 401 and not public and self.credentials.refresh():
            response = self._once(method, path, request, public=public, again=again)
        if response.is_success:
            return response
        error = explain(response, self.credentials)
        if again and response.status_code in _TRY_AGAIN:
            raise _Again(error, _retry_after_s(response))
        raise error

    def _once(self, method: str, path: str, request: dict[str, Any], *, public: bool, again: bool) -> httpx.Response:
        headers = {} if public else {"Authorization": self.credentials.authorization()}
        if request["content"] is not None:
            headers["Content-Type"] = "application/json"
        try:
            return self._http.request(method, self.base_url + path, headers=headers, **request)
        except (httpx.UnsupportedProtocol, httpx.InvalidURL) as error:
            raise LabelStudioUnreachable(
                f"{self.base_url!r} is not an address.", hint="Write for instance http://host:8080."
            ) from error
        except httpx.TransportError as error:
            failure = unreachable(self.base_url, error)
            # A refused connection never reached the server, so even a POST may be sent once more.
            if again or isinstance(error, httpx.ConnectError):
                raise _Again(failure) from error
            raise failure from error

    def _decode(self, response: httpx.Response, kind: type[T]) -> T:
        if kind is type(None):
            return None
        try:
            return from_json(response.content, kind)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise LabelStudioRejected(
                f"{response.url.copy_with(query=None)} answered something that is not Label Studio's API: {error}.",
                status=response.status_code,
                hint=NOT_LABEL_STUDIO_HINT,
            ) from error


def unreachable(base_url: str, error: Exception) -> LabelStudioUnreachable:
    """What a broken connection means, with the step that usually mends it."""
    reason = str(error) or type(error).__name__
    if isinstance(error, httpx.TimeoutException):
        return LabelStudioUnreachable(
            f"Label Studio at {base_url} did not answer in time.", hint="Look at its log; is it still starting?"
        )
    if "CERTIFICATE" in reason.upper():
        return LabelStudioUnreachable(
            f"The certificate of {base_url} is not trusted: {reason}.",
            hint="Set SSL_CERT_FILE to the file with your organisation's root certificate.",
        )
    if "SSL" in reason.upper():
        return LabelStudioUnreachable(
            f"{base_url} does not speak https: {reason}.", hint="Write http:// instead of https://."
        )
    return LabelStudioUnreachable(
        f"Label Studio at {base_url} cannot be reached: {reason}.",
        hint="Check that it runs and that this machine can open the address; in a container localhost is itself.",
    )


def explain(response: httpx.Response, credentials: Credentials) -> LabelStudioError:
    """The error that a response which is not 2xx stands for."""
    status, text = response.status_code, reason_in(response)
    if 300 <= status < 400:
        return _redirected(response, credentials.base_url)
    if "reserved network address" in text or "SSRF" in text:
        return LabelStudioRejected(f"Label Studio refuses the address: {text}.", status=status, hint=SSRF_HINT)
    if NOT_A_URL in text:
        hint = (
            "Label Studio takes no host name without a dot: give the container a network alias with one, for instance "
            "labelloop.internal, and use that."
        )
        return LabelStudioRejected(f"Label Studio does not take this address: {text}.", status=status, hint=hint)
    if "resolve hostname" in text:
        hint = "Use a name or an address that Label Studio's own machine or container can resolve."
        return LabelStudioRejected(f"Label Studio answered: {text}.", status=status, hint=hint)
    if status == 401:
        return _unauthorized(text, credentials)
    if status == 403:
        return LabelStudioAuthError(
            f"Label Studio does not allow this: {text}.", hint="Use the token of a user who may change the project."
        )
    method, path = response.request.method, response.request.url.path
    hint = "Look at Label Studio's log." if status >= 500 else ""
    if status == 404 and not is_json(response):
        project = re.search(r"/api/projects/[0-9]+/", path)
        hint = f"{'Was the project deleted meanwhile? If not: ' if project else ''}{NOT_LABEL_STUDIO_HINT}"
    return LabelStudioRejected(f"Label Studio answered {status} to {method} {path}: {text}.", status=status, hint=hint)


def is_json(response: httpx.Response) -> bool:
    return "json" in response.headers.get("content-type", "")


def reason_in(response: httpx.Response) -> str:
    """The human part of an error body, on one line, without the closing full stop."""
    try:
        body = response.json()
    except ValueError:
        return response.reason_phrase or "no reason given"
    if not isinstance(body, dict):
        return str(body)[:300]
    details = body.get("validation_errors")
    text = json.dumps(details, ensure_ascii=False) if details else str(body.get("detail") or response.reason_phrase)
    if isinstance(details, dict):
        text = "; ".join(_flat(key, value) for key, value in details.items())
    return re.sub(r"<[^>]+>|\s+", " ", text).strip().rstrip(".")[:600]


def _flat(key: str, value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if key == "non_field_errors" else f"{key}: {text}"


def _redirected(response: httpx.Response, base_url: str) -> LabelStudioError:
    target = response.headers.get("location", "")
    asked = response.request.url.path
    same_host = urlsplit(target).hostname == urlsplit(base_url).hostname
    if same_host and target.startswith("https://") and base_url.startswith("http://"):
        better = "https://" + target.removeprefix("https://").split("?")[0].removesuffix(asked)
        return LabelStudioUnreachable(
            f"{base_url} redirects to https.", hint=f"Use --url {better.rstrip('/')} (or LABEL_STUDIO_URL)."
        )
    return LabelStudioUnreachable(
        f"{base_url} redirects {asked} to {target.split('?')[0] or 'nowhere'}: Label Studio's API is not there.",
        hint=f"{NOT_LABEL_STUDIO_HINT} A login page in front of it (single sign-on) must let /api/ through.",
    )


def _unauthorized(text: str, credentials: Credentials) -> LabelStudioAuthError:
    create = "Create a personal access token under Account & Settings > Personal Access Token and pass it as --token."
    if "legacy token authentication has been disabled" in text:
        return LabelStudioAuthError(
            "Legacy tokens are switched off in this organisation (Label Studio's default).",
            hint=create + " Or switch legacy tokens on under Organization > Access Token Settings.",
        )
    if credentials.looks_cut:
        return LabelStudioAuthError(
            "This is only the beginning of a personal access token: the signature is missing.",
            hint="Label Studio shows a token in full only once. " + create,
        )
    if credentials.kind == "legacy":
        return LabelStudioAuthError(f"Label Studio does not know this legacy token ({text}).", hint=create)
    if credentials.kind == "access":
        return LabelStudioAuthError(
            "This is a short-lived access token and it has expired.",
            hint="Pass the personal access token itself; labelloop exchanges it.",
        )
    return LabelStudioAuthError(
        f"Label Studio does not accept the access token it has just given out ({text}).",
        hint="Check that personal access tokens are on under Organization > Access Token Settings, and that no proxy "
        "in front of Label Studio removes the Authorization header.",
    )


def _retry_after_s(response: httpx.Response) -> float:
    value = response.headers.get("retry-after", "").strip()
    if value.isdigit():
        return min(float(value), _LONGEST_WAIT_S)
    date = email.utils.parsedate_tz(value)
    if date is None:
        return 0.0
    return min(max(0.0, email.utils.mktime_tz(date) - time.time()), _LONGEST_WAIT_S)


def _pause(first_s: float) -> tenacity.wait.wait_base:
    """Doubling with jitter, or what Retry-After says if that is longer."""
    doubling = tenacity.wait_exponential(multiplier=first_s, max=_LONGEST_WAIT_S)
    jitter = tenacity.wait_random(0, first_s / 2)

    class Pause(tenacity.wait.wait_base):
        def __call__(self, state: tenacity.RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome else None
            asked = error.retry_after_s if isinstance(error, _Again) else 0.0
            return max(asked, doubling(state) + jitter(state))

    return Pause()

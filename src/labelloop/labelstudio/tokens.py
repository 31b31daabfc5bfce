"""The two kinds of Label Studio token, behind one question: what goes into the Authorization header now?

A legacy token is sent as it is. A personal access token is a JWT *refresh* token: it is exchanged for an access
token that lives about 300 s, and Label Studio answers 401 when it is sent directly.
"""

from __future__ import annotations

import base64
import binascii
import json
import threading
import time
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx

from labelloop.core.errors import LabelStudioAuthError, LabelStudioUnreachable
from labelloop.core.tls import trusted

TokenKind = Literal["empty", "legacy", "personal", "access"]

REFRESH_BEFORE_S = 30.0
"""An access token with less than this left is replaced before it is used."""

_WHERE = "Label Studio shows it under Account & Settings > Personal Access Token"


def claims_of(token: str) -> dict[str, Any]:
    """The payload of a JWT, not verified (only Label Studio has the key); {} when `token` is not a JWT."""
    parts = token.split(".")
    if len(parts) != 3:
        return {}
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (binascii.Error, ValueError):
        return {}
    return payload if isinstance(payload, dict) else {}


def strip_scheme(token: str) -> str:
    """The bare token: people paste `Token abc`, `Bearer abc` or a line end with it."""
    scheme, _, rest = token.strip().partition(" ")
    return rest.strip() if scheme.lower() in ("token", "bearer") else token.strip()


def kind_of(token: str) -> TokenKind:
    """`personal` for a JWT whose payload has `token_type: refresh`, `access` for `token_type: access`, `empty`
    for nothing; everything else is a legacy key."""
    token = strip_scheme(token)
    if not token:
        return "empty"
    kinds: dict[object, TokenKind] = {"refresh": "personal", "access": "access"}
    return kinds.get(claims_of(token).get("token_type"), "legacy")


class Credentials:
    """Keeps one Authorization header valid for one Label Studio; safe to share between threads.

    `authorization()` touches the network only when an access token has to be fetched. Lifetimes are counted from
    the moment of receipt with `clock` (monotonic seconds), so a wrong wall clock on either side does no harm.
    """

    def __init__(
        self,
        base_url: str,
        token: str,
        *,
        transport: httpx.BaseTransport | None = None,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = base_url.rstrip("/")
        self.kind = kind_of(token)
        self._token = strip_scheme(token)
        self._clock = clock
        # A proxy from the environment is for the internet, never for a server on this machine.
        self._local = urlsplit(self.base_url).hostname in ("localhost", "127.0.0.1", "::1")
        self._timeout_s = timeout_s
        self._transport = transport
        self._lock = threading.Lock()
        self._given = threading.local()
        self._access = ""
        self._stale_at = 0.0

    @property
    def looks_cut(self) -> bool:
        """Whether the token is the first part of a JWT: Label Studio's list of tokens leaves the signature out."""
        return self.kind == "legacy" and self._token.startswith("eyJ")

    def authorization(self) -> str:
        """`Token …` or `Bearer …`. Raises LabelStudioAuthError when there is no usable token, and
        LabelStudioUnreachable when it would have to be refreshed and Label Studio does not answer."""
        if self.kind == "legacy":
            return f"Token {self._token}"
        if self.kind == "access":
            return f"Bearer {self._token}"
        if self.kind == "empty":
            raise LabelStudioAuthError(
                "There is no Label Studio token.", hint=f"Pass --token or set LABEL_STUDIO_API_KEY; {_WHERE}."
            )
        access = self._fresh()
        if not access:
            with self._lock:
                access = self._fresh() or self._exchange()
        self._given.access = access
        return f"Bearer {access}"

    def refresh(self) -> bool:
        """After a 401: true when a new access token is at hand and one more try makes sense.

        Threads that got their 401 together share one exchange: each compares the token that it was given last with the
        one that is there now. False for tokens that cannot be exchanged, and for
        personal tokens that Label Studio no longer takes.
        """
        if self.kind != "personal":
            return False
        with self._lock:
            if self._access != getattr(self._given, "access", self._access):
                return True
            try:
                self._exchange()
            except LabelStudioAuthError:
                return False
        return True

    def _fresh(self) -> str:
        return self._access if self._clock() < self._stale_at else ""

    def _exchange(self) -> str:
        """Fetch an access token; the caller holds the lock."""
        access = _access_in(self._ask())
        claims = claims_of(access)
        lifetime_s = float(claims.get("exp", 0)) - float(claims.get("iat", 0))
        if "exp" not in claims or lifetime_s <= 0:
            lifetime_s = 300.0
        # A server set to very short lives must not make us ask before every single request.
        self._access = access
        self._stale_at = self._clock() + max(lifetime_s - REFRESH_BEFORE_S, lifetime_s / 2)
        return access

    def _ask(self) -> httpx.Response:
        url = f"{self.base_url}/api/token/refresh"
        try:
            with httpx.Client(
                transport=self._transport, verify=trusted(), timeout=self._timeout_s, trust_env=not self._local
            ) as http:
                return http.post(url, json={"refresh": self._token})
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise LabelStudioUnreachable(
                f"Label Studio at {self.base_url} did not answer while refreshing the token: {error}.",
                hint="Check that it runs and that the address is right.",
            ) from error


def _access_in(response: httpx.Response) -> str:
    if response.status_code == 401:
        raise LabelStudioAuthError(
            "Label Studio does not take this personal access token any more (revoked, expired or of another server).",
            hint=f"Create a new one: {_WHERE}.",
        )
    try:
        access = response.json()["access"] if response.is_success else ""
    except (ValueError, KeyError, TypeError):
        access = ""
    if response.status_code >= 500:
        raise LabelStudioUnreachable(
            f"Label Studio answered {response.status_code} while refreshing the token.", hint="Look at its log."
        )
    if not access:
        raise LabelStudioAuthError(
            f"{response.url} does not exchange personal access tokens (status {response.status_code}).",
            hint="Check the address and its sub-path; a release without personal access tokens needs a legacy one.",
        )
    return str(access)

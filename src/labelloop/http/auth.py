"""Who may call: HTTP Basic authentication, the only kind that Label Studio can send, and no foreign web page."""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import ipaddress
import socket
from collections.abc import Iterable
from functools import lru_cache
from urllib.parse import urlsplit

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Asked by load balancers and by Label Studio before it knows the password."""


class BasicAuth:
    """Checks the Authorization header against one user. Without a user everybody may come in.

    Label Studio writes other letters than ASCII in Latin-1, as Python's requests does; browsers, and our own webhook
    headers, write them in UTF-8.
    """

    def __init__(self, user: str, password: str) -> None:
        login = f"{user}:{password}" if user or password else ""
        self._expected = {login.encode()} if login else set()
        with contextlib.suppress(UnicodeEncodeError):  # letters that Label Studio cannot send
            self._expected |= {login.encode("latin-1")} if login else set()

    @property
    def enabled(self) -> bool:
        return bool(self._expected)

    def allows(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request may pass; compares in constant time."""
        if not self._expected or path in OPEN_PATHS:
            return True
        value = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, encoded = value.partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        same = [hmac.compare_digest(given, login) for login in self._expected]
        return any(same)


class Callers:
    """Keeps out the web pages that somebody on this machine happens to look at.

    A page can make its browser send requests to a server on the same machine, which answers because only this machine
    can reach it. Browsers name the page in `Origin`; Label Studio and programs send none. And a page whose own host
    name was pointed at this machine (DNS rebinding) is told by its name in `Host`, so with `local_only`, where the
    address is all the protection there is, `Host` must be a name of this machine.
    """

    LOCAL_NAMES = frozenset({"localhost", "host.docker.internal", "host.containers.internal"})

    def __init__(self, *, local_only: bool) -> None:
        self._local_only = local_only
        self._names = self.LOCAL_NAMES | {socket.gethostname().lower()}
        # callers keep to one or two names, and parsing one costs a twentieth of an empty request
        self._is_local = lru_cache(maxsize=64)(self._looks_local)

    def refusal(self, method: str, headers: Iterable[tuple[bytes, bytes]]) -> str | None:
        """Why a request is not answered, None when it may pass."""
        found = {name: value.decode("latin-1") for name, value in headers if name in (b"host", b"origin")}
        host, origin = found.get(b"host", ""), found.get(b"origin")
        if origin is not None and method not in ("GET", "HEAD") and urlsplit(origin).netloc.lower() != host.lower():
            return f"Requests from pages of {origin} are not answered."
        if self._local_only and host and not self._is_local(host):
            return f"This server does not answer to the name {host!r}. Use localhost, or set a password."
        return None

    def _looks_local(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        if name in self._names or name.endswith(".localhost"):
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True  # nobody can point a number at another machine

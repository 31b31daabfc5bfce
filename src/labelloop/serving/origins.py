"""Which Label Studio a project lives in, and what it takes to be let in.

In this order: our own settings, what `labelloop connect` saved, what Label Studio handed over in `/setup` (its
legacy token, which is refused wherever legacy tokens are disabled, the default).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

import structlog

from labelloop.core.settings import Settings
from labelloop.labelstudio.tokens import Credentials

log = structlog.get_logger(__name__)

MAX_PROJECTS = 10_000


class Origin:
    """One Label Studio: `base_url` is where we reach it, `public_urls` are the other names it goes by. `trusted`: an
    operator named this address, so it may be a private one."""

    def __init__(self, credentials: Credentials, *, public_urls: tuple[str, ...], trusted: bool) -> None:
        self.base_url = credentials.base_url
        self.public_urls = public_urls
        self.trusted = trusted
        self._credentials = credentials

    def authorization(self) -> str | None:
        """The Authorization header, None when there is no token. May fetch a new access token."""
        return None if self._credentials.kind == "empty" else self._credentials.authorization()

    def refresh(self) -> bool:
        """After a 401: whether one more try makes sense."""
        return self._credentials.refresh()


class Origins:
    """Finds the Origin of a project. Safe to use from several threads."""

    def __init__(
        self, settings: Settings, connections: Callable[[], Sequence[tuple[str, str]]], *, trust_setup: bool
    ) -> None:
        """`trust_setup`: only Label Studio can call `/setup` (a password, or a loopback address), so the address that
        it hands over may be a private one."""
        self._settings = settings
        self._trust_setup = trust_setup
        self._read_connections = connections
        self._connections = list(connections())
        self._handed_over: dict[int, tuple[str, str]] = {}
        self._credentials: dict[tuple[str, str], Credentials] = {}
        self._lock = threading.Lock()

    def reload(self) -> None:
        """Read again what `labelloop connect` saved."""
        self._connections = list(self._read_connections())

    def remember(self, project_id: int, hostname: str, token: str) -> None:
        """Keep what `/setup` handed over. In memory only: Label Studio says it again before its next request."""
        if not _is_address(hostname):
            log.warning("the address that Label Studio calls itself by cannot be used", hostname=hostname[:200])
            return
        self._handed_over.pop(project_id, None)
        self._handed_over[project_id] = (hostname.rstrip("/"), token)
        while len(self._handed_over) > MAX_PROJECTS:
            del self._handed_over[next(iter(self._handed_over))]

    def forget(self, project_id: int) -> None:
        self._handed_over.pop(project_id, None)

    def connection(self, project_id: int) -> tuple[str, str]:
        """Address and token for the API of the project's Label Studio; both are empty when nobody told us."""
        hostname, handed_token = self._handed_over.get(project_id, ("", ""))
        url, token = self._known(hostname)
        return url, token or handed_token

    def of(self, project_id: int | None) -> Origin | None:
        """The Label Studio of a project, None when nobody told us its address."""
        hostname, handed_token = self._handed_over.get(project_id if project_id is not None else -1, ("", ""))
        url, token = self._known(hostname)
        if not url:
            return None
        named = url == self._settings.label_studio_url or any(url == saved for saved, _ in self._connections)
        return Origin(
            self._credentials_of(url, token or handed_token),
            public_urls=tuple({hostname} - {"", url}),
            trusted=named or self._trust_setup,
        )

    def _known(self, hostname: str) -> tuple[str, str]:
        """Address and token of our own; the token is empty when only `/setup` knows one."""
        own_url, own_token = self._settings.label_studio_url, self._settings.label_studio_token.get_secret_value()
        saved = dict(reversed(self._connections))  # the newest of equal addresses wins
        if own_url:
            return own_url, own_token or saved.get(own_url, "")
        if hostname in saved:
            return hostname, own_token or saved[hostname]
        if self._connections:
            # connect reached it under another name than the one it calls itself by
            url, token = self._connections[0]
            return url, own_token or token
        # An address that a stranger could have sent must never be told the operator's token.
        return hostname, own_token if self._trust_setup else ""

    def _credentials_of(self, url: str, token: str) -> Credentials:
        with self._lock:
            if (url, token) not in self._credentials:
                if len(self._credentials) >= MAX_PROJECTS:
                    self._credentials.clear()  # only access tokens are lost, and they are fetched again
                self._credentials[url, token] = Credentials(url, token)
            return self._credentials[url, token]


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 80) > 0
    except ValueError:
        return False

"""HTTP addresses, taken apart once and strictly, so that what is checked is what is connected to."""

from __future__ import annotations

import base64
import re
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote, unquote, urljoin, urlsplit

from labelloop.core.errors import MediaRefused

_PORTS = {"http": 80, "https": 443}
_HOST = re.compile(r"[a-z0-9_.-]+|[0-9a-f:.]+(%[\w.-]+)?")
_CLEAN = re.compile(r"[!-\[\]-~]+")  # printable ASCII without space and backslash
_RESERVED = "/:@!$&'()*+,;=~-._%?"
_SHOWN = 160


class Url(NamedTuple):
    """An address to GET. `host` is lower case and without brackets, `target` is path and query as sent."""

    scheme: str
    host: str
    port: int
    target: str
    authorization: str | None = None
    """Basic authentication from `user:password@host`."""

    @property
    def origin(self) -> tuple[str, str, int]:
        return self[:3]

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def host_header(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def whole(self) -> str:
        """The full address with all its secrets: for the hash that the cache makes of it."""
        return f"{self.scheme}://{self.authorization or ''}@{self.host_header}{self.target}"

    def __str__(self) -> str:
        """For messages: without user, password and query, which are where secrets and signatures are kept."""
        return shorten(f"{self.scheme}://{self.host_header}{self.path}")


def shorten(text: str) -> str:
    """The beginning of a reference, fit for a message (a data: URI has megabytes)."""
    text = text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
    return text.encode("ascii", "backslashreplace").decode() if not text.isprintable() else text


def parse_url(text: str) -> Url:
    """Raises MediaRefused for anything that is not a plain http(s) address."""
    if not _CLEAN.fullmatch(text):
        text = _encode(text)
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
        host = host if host.isascii() else host.encode("idna").decode("ascii")
    except ValueError as error:  # a port out of range, a broken IPv6 literal, a name IDNA cannot encode
        raise _refused(text) from error
    if parts.scheme not in _PORTS or not _HOST.fullmatch(host) or port == 0:
        raise _refused(text)
    target = quote(parts.path or "/", safe=_RESERVED) + (f"?{parts.query}" if parts.query else "")
    return Url(parts.scheme, host, port or _PORTS[parts.scheme], target, _basic(parts.username, parts.password))


def _encode(text: str) -> str:
    """Percent-encode what people leave in addresses (spaces, umlauts) behind the host, as browsers do."""
    head, slash, tail = text.strip().partition("://")
    end = min((at for at in map(tail.find, "/?#") if at >= 0), default=len(tail))
    if not slash or re.search(r"[\x00-\x20\x7f\\]", head + tail[:end]):
        raise _refused(text)
    return f"{head}://{tail[:end]}{encode_target(tail[end:])}"


def encode_target(text: str) -> str:
    """A path with its query, fit to be sent. Raises MediaRefused for line breaks and other control characters."""
    if _CLEAN.fullmatch(text):
        return text
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise _refused(text)
    return quote(text, safe=_RESERVED + "#[]")


def _basic(user: str | None, password: str | None) -> str | None:
    if user is None:
        return None
    return "Basic " + base64.b64encode(f"{unquote(user)}:{unquote(password or '')}".encode()).decode("ascii")


def _refused(text: str) -> MediaRefused:
    # the part before @ is a password as often as not
    return MediaRefused(
        f"{shorten(text.rpartition('@')[2].partition('?')[0])!r} is not an address that can be fetched.",
        hint="Write for instance https://host/picture.jpg.",
    )


def join_url(base: Url, location: str) -> Url:
    """Where a redirect from `base` to `location` leads. Raises MediaRefused."""
    return parse_url(urljoin(f"{base.scheme}://{base.host_header}{base.target}", location))


@lru_cache(maxsize=256)
def parse_base(text: str) -> Url:
    """A configured address; its `target` is the sub-path without the closing slash, often empty."""
    url = parse_url(text)
    return url._replace(target=url.path.rstrip("/"), authorization=None)

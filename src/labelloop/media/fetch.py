"""Getting the bytes: one function per kind of reference, redirects, retries, and what went wrong in words."""

from __future__ import annotations

import base64
import binascii
import random
import re
import time
from collections.abc import Sequence
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

import msgspec

from labelloop.core.errors import (
    LabelStudioError,
    LabelStudioUnreachable,
    MediaError,
    MediaForbidden,
    MediaNotFound,
    MediaRefused,
    MediaUndecodable,
    MediaUnreachable,
)
from labelloop.media.exchange import Response, too_large
from labelloop.media.references import Origin, Source, is_below
from labelloop.media.transport import Broken, Transport
from labelloop.media.urls import Url, join_url, parse_base, shorten

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_BUSY = frozenset((429, 502, 503, 504))
_MAX_REDIRECTS = 5
_MAX_RETRY_AFTER_S = 5.0
_CREDENTIALS_HINT = (
    "Legacy tokens are off by default in Label Studio: set LABEL_STUDIO_API_KEY to a personal access token. "
    "`labelloop doctor` checks it."
)
_SAID_IN_SETUP = (
    "Label Studio calls itself {} in /setup, which is not a public address, and anybody may call /setup on this server."
)
_NAME_IT_HINT = (
    "Run `labelloop connect`, or set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY for this server; or let it ask for a "
    "password (--basic-auth-user, --basic-auth-pass)."
)
_DATA_URI = re.compile(r"data:([^,;]*)((?:;[^,;]*)*),", re.IGNORECASE)


class Fetched(msgspec.Struct, frozen=True):
    """`is_known`: the server said that the copy we have is still good."""

    body: bytes
    etag: str = ""
    is_known: bool = False


class Busy(Broken):
    """The server is overloaded or has no backend of its own: another try may help, after `after_s`."""

    def __init__(self, message: str, *, after_s: float = 0.0) -> None:
        super().__init__(message, hint="It may work again in a moment.")
        self.after_s = after_s


def decode_data_uri(uri: str, *, max_bytes: int) -> bytes:
    """The bytes in a `data:` URI, base64 or percent-encoded. Raises MediaUndecodable, MediaTooLarge."""
    match = _DATA_URI.match(uri)
    if not match:
        raise MediaUndecodable(f"{shorten(uri)!r} is not a data: URI.", hint="Write data:image/png;base64,…")
    if (len(uri) - match.end()) // 4 > max_bytes:  # the least that any encoding can hold, before anything is copied
        raise too_large(max_bytes)
    payload = uri[match.end() :].encode()
    data = unquote_to_bytes(payload) if b"%" in payload else payload
    if "base64" in match[2].lower().replace(" ", "").split(";"):
        data = _unbase64(data)
    if len(data) > max_bytes:
        raise too_large(max_bytes)
    return data


def _unbase64(data: bytes) -> bytes:
    data = data.translate(bytes.maketrans(b"-_", b"+/"), b" \t\r\n").rstrip(b"=")
    try:
        return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
    except binascii.Error as error:
        raise MediaUndecodable(
            f"The data: URI holds damaged base64 ({error}).", hint="Import the task again."
        ) from error


class Fetcher:
    """GETs a Source. `retries_s` are the pauses before further tries after a broken connection or a busy server."""

    def __init__(self, transport: Transport, *, max_bytes: int, timeout_s: float, retries_s: Sequence[float]) -> None:
        self._transport = transport
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._retries_s = tuple(retries_s)

    def get(
        self,
        url: Url,
        source: Source,
        origin: Origin | None,
        *,
        known: Fetched | None = None,
        sink: BinaryIO | None = None,
    ) -> Fetched:
        """The bytes at `url`, or `known` once more if its ETag is still the current one. With a `sink` they go there as
        they come, and are not held.

        Raises MediaError of every kind; after `timeout_s` for all tries and redirects together, MediaTimeout.
        """
        deadline = time.monotonic() + self._timeout_s
        for pause_s in self._retries_s:
            try:
                return self._follow(url, source, origin, known=known, deadline=deadline, sink=sink)
            except Broken as error:
                wait_s = _jittered(pause_s, at_least=error.after_s if isinstance(error, Busy) else 0.0)
                if time.monotonic() + wait_s >= deadline:
                    raise
                time.sleep(wait_s)
        return self._follow(url, source, origin, known=known, deadline=deadline, sink=sink)

    def _follow(
        self,
        url: Url,
        source: Source,
        origin: Origin | None,
        *,
        known: Fetched | None,
        deadline: float,
        sink: BinaryIO | None,
    ) -> Fetched:
        etag = known.etag if known else ""
        base = parse_base(origin.base_url) if origin else None
        own, trusted = source.own, source.trusted
        for _ in range(_MAX_REDIRECTS + 1):
            asked = origin if own else None
            try:
                response = self._ask(url, asked, etag=etag, trusted=trusted, deadline=deadline, sink=sink)
            except MediaRefused as error:
                if asked is None or trusted:
                    raise
                raise MediaRefused(_SAID_IN_SETUP.format(url.host_header), hint=_NAME_IT_HINT) from error
            if response.status == 200:
                return Fetched(response.body, response.headers.get("etag", ""))
            if response.status == 304 and known and etag:
                return Fetched(known.body, response.headers.get("etag", etag), is_known=True)
            if response.status not in _REDIRECTS or "location" not in response.headers:
                raise _failure(response, url, own=own, was_own=source.own)
            url = join_url(url, response.headers["location"])
            # what Label Studio may, a redirect to elsewhere may not, and from there no redirect leads back in
            there = base is not None and is_below(url, base)
            own, trusted = own and there, trusted and there
        raise MediaRefused(f"{source.url} redirects more than {_MAX_REDIRECTS} times.", hint="Name the file itself.")

    def _ask(
        self, url: Url, origin: Origin | None, *, etag: str, trusted: bool, deadline: float, sink: BinaryIO | None
    ) -> Response:
        """One hop; with an `origin`, as its user, and once more after a 401 if there is a better token."""
        response = self._send(url, _token(origin), etag=etag, trusted=trusted, deadline=deadline, sink=sink)
        if response.status == 401 and origin is not None and _refresh(origin):
            response = self._send(url, _token(origin), etag=etag, trusted=trusted, deadline=deadline, sink=sink)
        return response

    def _send(
        self, url: Url, token: str | None, *, etag: str, trusted: bool, deadline: float, sink: BinaryIO | None
    ) -> Response:
        headers = {"If-None-Match": etag} if etag else {}
        if authorization := token or url.authorization:
            headers["Authorization"] = authorization
        return self._transport.get(
            url, headers, max_bytes=self._max_bytes, deadline=deadline, trusted=trusted, sink=sink
        )


def _jittered(pause_s: float, *, at_least: float) -> float:
    """The other workers met the same trouble at the same moment: do not come back all at once."""
    return max(pause_s * random.uniform(0.5, 1.5), at_least)  # noqa: S311 - not a secret


def _token(origin: Origin | None) -> str | None:
    """Raises the media error for what stopped the token from being had, so that callers know one tree only."""
    try:
        return origin.authorization() if origin else None
    except LabelStudioError as error:
        raise _as_media(error) from error


def _refresh(origin: Origin) -> bool:
    try:
        return origin.refresh()
    except LabelStudioError as error:
        raise _as_media(error) from error


def _as_media(error: LabelStudioError) -> MediaError:
    kind = MediaUnreachable if isinstance(error, LabelStudioUnreachable) else MediaForbidden
    return kind(error.message, hint=error.hint or _CREDENTIALS_HINT)


def _failure(response: Response, url: Url, *, own: bool, was_own: bool) -> MediaError:
    """The error for an answer that has no picture. `own`: Label Studio gave it; `was_own`: it redirected there."""
    status = response.status
    if status in (401, 403, 407):
        return MediaForbidden(f"{url} answered {status}.", hint=_forbidden_hint(own=own, was_own=was_own))
    if status in (404, 410):
        hint = "Is a storage with this file connected to the project?" if own else "Was it moved or deleted?"
        return MediaNotFound(f"{url} answered {status}: there is no such file.", hint=hint)
    if status == 500 and own and "/data/upload/" in url.path:
        return MediaNotFound(
            f"{url} answered 500, which is how Label Studio says that an upload is missing.",
            hint="Was the file deleted from its disk?",
        )
    if status in _BUSY:
        return Busy(f"{url} answered {status}.", after_s=_retry_after_s(response))
    return MediaUnreachable(f"{url} answered {status}.", hint="Its log should say why.")


def _forbidden_hint(*, own: bool, was_own: bool) -> str:
    if own:
        return _CREDENTIALS_HINT
    if was_own:
        return (
            "Label Studio redirected there, and its token goes to LABEL_STUDIO_URL only: if this is Label Studio "
            "under another address (https?), set that one; if it is a storage, its signature may have expired."
        )
    return "A signed address may have expired; a storage connected in Label Studio would hold the credentials."


def _retry_after_s(response: Response) -> float:
    text = response.headers.get("retry-after", "")
    return min(float(text), _MAX_RETRY_AFTER_S) if text.isdecimal() else 0.0

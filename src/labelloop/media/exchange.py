"""One request and its answer on one connection, under a time limit for the whole and a size limit for the body."""

from __future__ import annotations

import select
import socket
import time
import zlib
from contextlib import suppress
from typing import BinaryIO

import httptools
import msgspec

from labelloop.core.errors import MediaTooLarge, MediaUndecodable

_BUFFER = 1 << 18
_HEAD_LIMIT = 1 << 16
_ASIDE_LIMIT = 1 << 16
"""Bodies of answers other than 200 are read this far, to keep the connection, and then given up."""
_IDLE_S = 30.0


class Response(msgspec.Struct, frozen=True):
    """`headers` has lower-case names; of a repeated one the last counts. `body` is decoded (gzip, deflate)."""

    status: int
    headers: dict[str, str]
    body: bytes


class Connection:
    """A connected socket that can carry one request after the other; used by one thread at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._buffer = memoryview(bytearray(_BUFFER))
        self._since = time.monotonic()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self.heard = False
        """Whether the server has begun to answer the latest request."""

    def is_fresh(self) -> bool:
        """Not idle for long, and nothing to read: readable would mean closed, or bytes that nobody asked for."""
        return time.monotonic() - self._since < _IDLE_S and not self._poll.poll(0)

    def close(self) -> None:
        self._sock.close()

    def exchange(self, request: bytes, *, max_bytes: int, deadline: float, sink: BinaryIO | None = None) -> Answer:
        """`sink`: where the body goes as it comes, when the status is 200. Raises OSError (TimeoutError among them),
        HttpParserError, MediaTooLarge."""
        self.heard = False
        answer = Answer(max_bytes, sink)
        feed = answer.parser.feed_data
        self._sock.settimeout(left_s(deadline))
        self._sock.sendall(request)
        while not answer.is_over:
            self._sock.settimeout(left_s(deadline))
            count = self._sock.recv_into(self._buffer)
            if not count:
                answer.at_end()
                break
            self.heard = True
            feed(self._buffer[:count])
            answer.check(count)
        self._since = time.monotonic()
        return answer


class Answer:
    """What the parser reports. Its callbacks only take notes: an exception in one would arrive wrapped."""

    def __init__(self, max_bytes: int, sink: BinaryIO | None = None) -> None:
        self.parser = httptools.HttpResponseParser(self)
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_over = False
        self.is_reusable = False
        self._max_bytes = max_bytes
        self._sink = sink
        self._head_bytes = 0
        self._in_body = False
        self._chunks: list[bytes] = []
        self._size = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self.status = self.parser.get_status_code()
        self._in_body = self.status >= 200

    def on_body(self, chunk: bytes) -> None:
        self._chunks.append(chunk)
        self._size += len(chunk)

    def on_message_complete(self) -> None:
        if self.status >= 200:
            self.is_over = True
            self.is_reusable = bool(self.parser.should_keep_alive())  # the parser forgets it right afterwards
        else:  # 100 Continue, 103 Early Hints: the real answer follows
            self.headers.clear()

    def check(self, count: int) -> None:
        """Apply the limits after `count` more bytes."""
        if not self._in_body:
            self._head_bytes += count
            if self._head_bytes > _HEAD_LIMIT:
                raise ConnectionError("the header of the answer has no end")
        elif self.status != 200:
            self.is_over = self.is_over or self._size > _ASIDE_LIMIT
        elif max(self._size, self._announced() or 0) > self._max_bytes:
            raise too_large(self._max_bytes)
        elif self._sink is not None:
            self._sink.writelines(self._chunks)
            self._chunks.clear()

    def _announced(self) -> int | None:
        length = self.headers.get("content-length", "")
        return int(length) if length.isdecimal() else None

    def at_end(self) -> None:
        """The server closed the connection. Without an announced length this is how a body ends."""
        chunked = "chunked" in self.headers.get("transfer-encoding", "").lower()
        if not self._in_body or chunked or self._announced() is not None:
            raise ConnectionError("the server closed it in the middle of the answer")
        self.is_over = True

    def response(self) -> Response:
        """Raises MediaTooLarge, MediaUndecodable."""
        encoding = self.headers.get("content-encoding", "").strip().lower()
        if self.status == 200 and self._sink is not None:
            if encoding not in ("", "identity"):
                raise MediaUndecodable(f"The server sent the content encoding {encoding!r}, which was not asked for.")
            return Response(self.status, self.headers, b"")
        raw = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        if self.status == 200 and encoding not in ("", "identity"):
            raw = _decode(raw, encoding, self._max_bytes)
        return Response(self.status, self.headers, raw)


def left_s(deadline: float) -> float:
    """Seconds until `deadline` (an instant of `time.monotonic`). Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("out of time")
    return left


def too_large(max_bytes: int) -> MediaTooLarge:
    return MediaTooLarge(
        f"The file is larger than {max_bytes:,} bytes.",
        hint="LABELLOOP_MEDIA_MAX_SIZE is the limit for one file, LABELLOOP_FILM_MAX_SIZE that for a film.",
    )


# zlib's window sizes; "deflate" is sent with and without the zlib header
_WINDOWS = {"gzip": (31,), "x-gzip": (31,), "deflate": (15, -15)}


def _decode(raw: bytes, encoding: str, max_bytes: int) -> bytes:
    """Undo the content encoding. We ask for none; some stores keep objects compressed anyway."""
    if encoding not in _WINDOWS:
        raise MediaUndecodable(f"The server sent the content encoding {encoding!r}, which was not asked for.")
    for window in _WINDOWS[encoding]:
        with suppress(zlib.error):
            return _inflate(raw, window, max_bytes)
    raise MediaUndecodable(f"The {encoding} encoding of the answer is damaged.")


def _inflate(raw: bytes, window: int, max_bytes: int) -> bytes:
    inflater = zlib.decompressobj(window)
    body = inflater.decompress(raw, max_bytes + 1)  # never more: a bomb of 10 kB unpacks to 10 MB
    if len(body) > max_bytes:
        raise too_large(max_bytes)
    if not inflater.eof:
        raise zlib.error("incomplete")
    return body

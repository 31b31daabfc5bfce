"""Typed decoding that several threads can begin at a time.

msgspec works out what the fields of a Struct take when the type is used for the first time. A second thread that uses
the type meanwhile sees half of it, and the process dies of a segmentation fault (msgspec 0.22; seen in servers and
workers that had just started, and shown by tests/core/test_decoding.py). So each type is made ready once, under a lock,
before anything is decoded into it. Decoders that a module makes while it is imported are safe as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")

_lock = threading.Lock()
_ready: set[Any] = set()


def from_json(data: bytes | str, kind: type[T], *, dec_hook: Callable[[type, Any], Any] | None = None) -> T:
    """Raises what `msgspec.json.decode` raises: DecodeError, and ValidationError (a kind of it)."""
    _make_ready(kind)
    return msgspec.json.decode(data, type=kind, dec_hook=dec_hook)


def convert(value: Any, kind: type[T], *, strict: bool = True) -> T:
    """Raises what `msgspec.convert` raises: ValidationError."""
    _make_ready(kind)
    return msgspec.convert(value, kind, strict=strict)


def _make_ready(kind: Any) -> None:
    if kind in _ready:
        return
    with _lock:
        msgspec.json.Decoder(kind)
        _ready.add(kind)

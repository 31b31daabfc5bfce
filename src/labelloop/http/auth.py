"""HTTP Basic authentication, the only kind that Label Studio can send."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Iterable

OPEN_PATHS = frozenset({"/health", "/ready"})
"""Asked by load balancers and by Label Studio before it knows the password."""


class BasicAuth:
    """Checks the Authorization header against one user. Without a user everybody may come in."""

    def __init__(self, user: str, password: str) -> None:
        self._expected = f"{user}:{password}".encode() if user or password else None

    @property
    def enabled(self) -> bool:
        return self._expected is not None

    def allows(self, path: str, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request may pass; compares in constant time."""
        if self._expected is None or path in OPEN_PATHS:
            return True
        value = next((value for name, value in headers if name == b"authorization"), b"")
        scheme, _, encoded = value.partition(b" ")
        if scheme.lower() != b"basic":
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self._expected)

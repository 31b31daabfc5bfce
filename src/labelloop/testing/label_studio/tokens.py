"""The fake's tokens: a legacy key, and JWTs signed with a secret of its own (HS256, RFC 7515)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import secrets
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

ACCESS_LIFE_S = 300
_BEARERS = ("access",)
_TWO_HUNDRED_YEARS_S = 200 * 365 * 86_400

NO_CREDENTIALS = "Authentication credentials were not provided."
INVALID = "Invalid token."
LEGACY_OFF = "Authentication token no longer valid: legacy token authentication has been disabled for this organization"


@dataclass
class Tokens:
    """`api_tokens_enabled` and `legacy_api_tokens_enabled` are the organisation's two switches."""

    clock: Callable[[], float]
    legacy: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    api_tokens_enabled: bool = True
    legacy_api_tokens_enabled: bool = True
    personal: str = field(default="", repr=False)
    refreshes: int = 0
    """How many access tokens were given out."""
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def create_personal(self) -> str:
        """The token that is valid from now on; an older one stops working."""
        self.personal = self._sign("refresh", _TWO_HUNDRED_YEARS_S)
        return self.personal

    def revoke_personal(self) -> None:
        self.personal = ""

    def access_for(self, personal: str) -> str | None:
        """None when `personal` is not the valid one."""
        if not self.personal or personal != self.personal:
            return None
        self.refreshes += 1
        return self._sign("access", ACCESS_LIFE_S)

    def problem(self, headers: dict[str, str]) -> str:
        """Why these request headers do not authenticate; empty when they do."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        if scheme == "Bearer":
            valid = self.api_tokens_enabled and self._is_access(token)
            return "" if valid else NO_CREDENTIALS
        token = token if scheme == "Token" else headers.get("x-api-key", "")
        if not token:
            return NO_CREDENTIALS
        if token != self.legacy:
            return INVALID
        return "" if self.legacy_api_tokens_enabled else LEGACY_OFF

    def _sign(self, kind: str, life_s: int) -> str:
        now = int(self.clock())
        claims = {"token_type": kind, "exp": now + life_s, "iat": now, "jti": uuid.uuid4().hex, "user_id": "1"}
        body = f"{_encode({'alg': 'HS256', 'typ': 'JWT'})}.{_encode(claims)}"
        return f"{body}.{self._signature(body)}"

    def _signature(self, body: str) -> str:
        return _base64(hmac.new(self._secret, body.encode(), hashlib.sha256).digest())

    def _is_access(self, token: str) -> bool:
        body, _, signature = token.rpartition(".")
        if not body or not hmac.compare_digest(signature, self._signature(body)):
            return False
        payload = body.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        return claims["token_type"] in _BEARERS and bool(claims["exp"] > self.clock())


def _base64(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _encode(value: Any) -> str:
    return _base64(json.dumps(value, separators=(",", ":")).encode())

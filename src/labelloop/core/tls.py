"""Which certificates we trust."""

from __future__ import annotations

import ssl
from functools import lru_cache


@lru_cache
def trusted() -> ssl.SSLContext:
    """The certificates of the operating system or of SSL_CERT_FILE, read once: every httpx.Client that reads them
    itself spends tens of milliseconds on it."""
    import httpx

    return httpx.create_ssl_context()

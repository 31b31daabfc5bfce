"""Structured logs, one line each, without secrets."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, Literal

import structlog

# Tokens as they stand in headers, and the signatures of presigned URLs; both are as good as a password.
_SECRET = re.compile(
    r"(?i)\b(token|bearer|basic)\s+[A-Za-z0-9+/=_.-]{8,}"
    r"|([?&](?:x-amz-(?:signature|credential|security-token)|signature|sig|token|access_token|x-goog-signature)=)[^&\s\"']+"
    r"|(://)[^/@\s:]+:[^/@\s]+@"
    r"|\beyJ[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*"
)
_SECRET_KEYS = frozenset({"token", "access_token", "authorization", "password", "basic_auth_pass", "api_key"})


def redact(text: str) -> str:
    """`text` with tokens, passwords in URLs and signatures replaced by ***."""
    return _SECRET.sub(
        lambda m: f"{m[1]} ***" if m[1] else f"{m[2]}***" if m[2] else f"{m[3]}***@" if m[3] else "***", text
    )


def _redact_event(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if key.lower() in _SECRET_KEYS:
            event[key] = "***"
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


def configure_logs(*, level: str = "info", form: Literal["auto", "json", "text"] = "auto") -> None:
    """Set up structlog and route the standard library's warnings through it. Lines go to stderr."""
    text = form == "text" or (form == "auto" and sys.stderr.isatty())
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso"),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    structlog.configure(
        processors=[
            *shared,
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)
            if text
            else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=_Stderr,
        # Not cached: a logger kept from its first use would go on with what was set then, whatever is set later.
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)


class _Stderr:
    """Writes lines to what stderr is now: loggers live as long as the process, and whoever redirects stderr (a test,
    a daemon) may close what it was."""

    def __init__(self, *_names: Any) -> None:
        pass

    def msg(self, message: str) -> None:
        sys.stderr.write(message + "\n")
        sys.stderr.flush()

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = err = msg


class _ToStructlog(logging.Handler):
    """What libraries log (uvicorn, urllib3) in our form."""

    def emit(self, record: logging.LogRecord) -> None:
        logger = structlog.get_logger(record.name)
        logger.log(record.levelno, record.getMessage(), exc_info=record.exc_info)

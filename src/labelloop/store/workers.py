"""Which worker processes live: each says so about once a second.

A worker on this machine whose process is gone is dead at once; one elsewhere is dead when it was silent for long.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from pathlib import Path

import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import upsert

SILENT_S = 30.0
"""A worker that did not say anything for this long is taken for dead, and its jobs go to others."""


class Workers:
    """Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._machine = machine()

    def register(self) -> str:
        """Add this process; returns the name that it has as an owner of jobs."""
        name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"[-100:]
        self.beat(name)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(schema.workers).where(schema.workers.c.seen_s < time.time() - 86_400))
        return name

    def beat(self, name: str) -> None:
        """Say that it lives; also when it was silent for so long (a laptop asleep) that others forgot it."""
        row = {"machine": self._machine, "pid": os.getpid(), "seen_s": time.time()}
        with self._engine.begin() as connection:
            upsert(connection, schema.workers, {"id": name}, row)

    def leave(self, name: str) -> None:
        with self._engine.begin() as connection:
            connection.execute(sa.delete(schema.workers).filter_by(id=name))

    def is_alive(self, name: str | None) -> bool:
        if name is None:
            return False
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.workers).filter_by(id=name)).first()
        return row is not None and self._lives(row)

    def any_alive(self) -> bool:
        with self._engine.connect() as connection:
            return any(self._lives(row) for row in connection.execute(sa.select(schema.workers)))

    def _lives(self, row: sa.Row[tuple[str, str, int, float]]) -> bool:
        if row.machine == self._machine and not _exists(row.pid):
            return False
        return bool(time.time() - row.seen_s < SILENT_S)


def machine() -> str:
    """Names the place where process ids mean the same: two containers with one host name are two places."""
    try:
        namespace = Path("/proc/self/ns/pid").readlink().name
    except OSError:  # not Linux
        namespace = ""
    return f"{socket.gethostname()} {namespace}"[:200]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True

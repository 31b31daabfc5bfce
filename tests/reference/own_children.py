"""The child processes that this thread has started: how a test finds the one that it wants to kill."""

from __future__ import annotations

import threading
from pathlib import Path


def own_children() -> set[int]:
    """Process ids, those of servers that other tests share included (Linux)."""
    return {int(pid) for pid in Path(f"/proc/self/task/{threading.get_native_id()}/children").read_text().split()}

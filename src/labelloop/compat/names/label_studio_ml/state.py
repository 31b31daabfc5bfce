"""What a model keeps between calls and restarts, and how its media come here: labelloop says, where it hosts the model.

Without a host (a unit test of the model's author) it is kept in memory, and only paths on this disk can be read.
"""

from __future__ import annotations

import os
from typing import Any


class InMemory:
    """By project and key."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, str], Any] = {}

    def get(self, project: str, key: str) -> Any:
        return self._values.get((project, key))

    def set(self, project: str, key: str, value: Any) -> None:
        self._values[project, key] = value

    def local_path(self, url: str, project: str, task: Any) -> str:
        """A path on this disk for what a task refers to. Raises FileNotFoundError."""
        if os.path.exists(url):
            return url
        raise FileNotFoundError(f"{url} can only be fetched where labelloop hosts the model")


class _Home:
    """Which of them is used."""

    keeper: Any = InMemory()


def keeper() -> Any:
    return _Home.keeper


def keep_with(other: Any) -> None:
    """Use `other` from now on: it has the methods of InMemory."""
    _Home.keeper = other

"""Single flight: of several threads that want one thing, one gets it and all have it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class _Flight(Generic[T]):
    def __init__(self) -> None:
        self.landed = threading.Event()
        self.value: T | None = None
        self.error: BaseException | None = None


class Flights(Generic[T]):
    """Joins calls by key while they run; nothing is remembered afterwards."""

    def __init__(self) -> None:
        self._flights: dict[str, _Flight[T]] = {}
        self._lock = threading.Lock()

    def run(self, key: str, get: Callable[[], T]) -> T:
        """`get()`, or the outcome, value or error, of a call for `key` that is on its way in another thread."""
        with self._lock:
            flight = self._flights.get(key)
            first = flight is None
            if flight is None:
                flight = self._flights[key] = _Flight()
        if first:
            return self._fly(key, flight, get)
        flight.landed.wait()
        if flight.error is not None:
            raise copy.copy(flight.error)  # each thread its own: raising writes a traceback into the exception
        return flight.value  # type: ignore[return-value]  # T may itself be None

    def _fly(self, key: str, flight: _Flight[T], get: Callable[[], T]) -> T:
        try:
            flight.value = get()
            return flight.value
        except BaseException as error:
            flight.error = error
            raise
        finally:
            with self._lock:
                del self._flights[key]
            flight.landed.set()

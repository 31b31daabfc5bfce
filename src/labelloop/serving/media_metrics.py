"""What fetching and decoding cost, by the model they were done for."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from labelloop.core.metrics import Metrics
from labelloop.store.registry import ModelVersion


class MediaMetrics:
    """The media floor knows pictures, not models: it reports from the thread that loads, and that thread says here
    for which version it is loading."""

    def __init__(self, metrics: Metrics) -> None:
        self._counters = {
            "fetch": metrics.fetch_seconds,
            "decode": metrics.decode_seconds,
            "cache_hit": metrics.cache_hits,
            "cache_miss": metrics.cache_misses,
        }
        self._thread = threading.local()

    @contextmanager
    def counted_for(self, version: ModelVersion) -> Iterator[None]:
        """What this thread loads inside the block is counted for `version`."""
        self._thread.labels = (version.name, str(version.number))
        try:
            yield
        finally:
            del self._thread.labels

    def observe(self, name: str, value: float) -> None:
        """The hook of `media.load.MediaLoader`; outside of `counted_for` the labels are empty."""
        self._counters[name].labels(*getattr(self._thread, "labels", ("", ""))).inc(value)

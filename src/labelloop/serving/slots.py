"""Models in memory: load and warm in the background, lease while somebody uses them, let go when nobody does.

Loading never happens on a request's path: a request finds a warm model or waits for the loader's thread.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, Literal, TypeVar

import numpy as np
import structlog

from labelloop.core.errors import DeadlineExceeded, LabelloopError, ModelFailed
from labelloop.core.metrics import Metrics
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size
from labelloop.engines.base import Closable, Engine
from labelloop.serving.stage import Lanes, Priority, Stage
from labelloop.store.registry import ModelVersion

log = structlog.get_logger(__name__)

Load = Callable[[ModelVersion], Engine]
T = TypeVar("T")
State = Literal["loading", "ready", "failed"]

RETRY_S = 60.0
CLOSE_S = 2.0


_Stage = Stage[Any, tuple[Region, ...]] | Lanes[Any, tuple[Region, ...]]
_Warm = tuple[Engine, _Stage]


class Slot:
    """One model version in memory (or on its way there, or broken: then `error` says why)."""

    def __init__(self, version: ModelVersion) -> None:
        self.version = version
        self.loaded: Future[_Warm] = Future()
        self.warm: _Warm | None = None
        """What `loaded` gives, to be read without the lock in it: every request looks."""
        self.leases = 0
        self.used_at = time.monotonic()

    @property
    def state(self) -> State:
        if not self.loaded.done():
            return "loading"
        return "failed" if self.loaded.exception() else "ready"

    def may_be_tried_again(self) -> bool:
        """A load that failed (a full GPU, a disk that was away) is worth another try after a while."""
        return self.warm is None and self.state == "failed" and time.monotonic() - self.used_at > RETRY_S

    @property
    def error(self) -> str:
        return str(self.loaded.exception()) if self.state == "failed" else ""


class Lease:
    """The right to use a warm model; it is not unloaded until the block is left."""

    def __init__(self, warm: _Warm, version: ModelVersion, end: Callable[[], None]) -> None:
        self.engine, self._stage = warm
        self.version = version
        self._end = end

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    async def predict(
        self, prepared: Any, *, priority: Priority, deadline: float, finish: Callable[[tuple[Region, ...]], T]
    ) -> T:
        """`finish(regions)` of one prepared item, computed in the model's thread; the item may share a batch with the
        items of other requests."""
        return await self._stage.submit(prepared, priority=priority, deadline=deadline, finish=finish)

    def put(self, prepared: Any, *, priority: Priority, deadline: float) -> Future[tuple[Region, ...]]:
        """The regions of one prepared item, for a caller in a thread of its own."""
        return self._stage.put(prepared, priority=priority, deadline=deadline)


class Slots:
    """All models in memory. Above `limit` of them those go that no project is assigned to and nobody leases.

    `ensure`, `state_of` and `trim` may be called from any thread, `lease` from the event loop.
    """

    def __init__(self, load: Load, *, limit: int, metrics: Metrics) -> None:
        self._load = load
        self._limit = limit
        self._metrics = metrics
        self._slots: dict[str, Slot] = {}
        self._lock = threading.Lock()
        # one loader: two models that load side by side on two cores are both late
        self._waiting: SimpleQueue[Slot | None] = SimpleQueue()
        # a daemon: a load cannot be interrupted, and stopping the server must not wait for it
        threading.Thread(target=self._load_all, name="load", daemon=True).start()

    def ensure(self, version: ModelVersion) -> Slot:
        """Begin to load a version unless that happened already. Returns at once."""
        with self._lock:
            return self._ensure(version)

    def _ensure(self, version: ModelVersion) -> Slot:
        slot = self._slots.get(_key(version))
        if slot is None or slot.may_be_tried_again():
            slot = self._slots[_key(version)] = Slot(version)
            self._waiting.put(slot)
        return slot

    def state_of(self, version: ModelVersion) -> Slot | None:
        """The slot of a version, None when nobody asked for it yet."""
        return self._slots.get(_key(version))

    async def lease(self, version: ModelVersion, *, deadline: float) -> Lease:
        """Wait until the version is warm, then hold it: `with await lease(...)`. Raises ModelFailed when it cannot be
        loaded, and DeadlineExceeded when it is not warm by `deadline` (on `time.monotonic`)."""
        with self._lock:  # found and leased in one step, or `trim` could take it away in between
            slot = self._ensure(version)
            slot.leases += 1

        def end() -> None:
            with self._lock:
                slot.leases -= 1

        try:
            warm = slot.warm or await _loaded(slot, deadline)
        except BaseException:
            end()
            raise
        slot.used_at = time.monotonic()
        return Lease(warm, version, end)

    def trim(self, wanted: Sequence[ModelVersion]) -> None:
        """Let go of the least recently used models above the limit that nobody leases and no project needs."""
        keep = {_key(version) for version in wanted}
        with self._lock:
            ready = [(k, s) for k, s in self._slots.items() if s.state == "ready"]
            spare = [(k, s) for k, s in ready if k not in keep and s.leases == 0]
            gone = sorted(spare, key=lambda item: item[1].used_at)[: max(0, len(ready) - self._limit)]
            for key, _ in gone:
                del self._slots[key]
        for _, slot in gone:
            engine, stage = slot.loaded.result()
            stage.close()
            _let_go(engine)
            self._metrics.models_ready.labels(slot.version.name, slot.version.number).set(0)
            log.info("model unloaded", model=slot.version.id)

    def close(self) -> None:
        """End the threads; what was submitted has a moment to finish."""
        self._waiting.put(None)
        for slot in list(self._slots.values()):
            if slot.state == "ready":
                engine, stage = slot.loaded.result()
                stage.close(timeout_s=CLOSE_S)
                _let_go(engine)

    def _load_all(self) -> None:
        while (slot := self._waiting.get()) is not None:
            self._fill(slot)

    def _fill(self, slot: Slot) -> None:
        begun = time.perf_counter()
        version = slot.version
        try:
            engine = self._load(version)
            warm(engine)
        except Exception as error:  # whatever a model file or a driver raises, the server goes on
            failed = error if isinstance(error, LabelloopError) else ModelFailed(f"{version.id} did not load: {error}.")
            log.error("model failed to load", model=version.id, error=str(failed))
            slot.used_at = time.monotonic()
            slot.loaded.set_exception(failed)
            return
        stage = self._stage(engine, version)
        log.info("model ready", model=version.id, seconds=round(time.perf_counter() - begun, 2))
        self._metrics.models_ready.labels(version.name, version.number).set(1)
        slot.warm = engine, stage
        slot.loaded.set_result(slot.warm)

    def _stage(self, engine: Engine, version: ModelVersion) -> _Stage:
        labels = (version.name, str(version.number))
        queue, infer = self._metrics.queue_seconds.labels(*labels), self._metrics.infer_seconds.labels(*labels)
        count, runs = self._metrics.inferences.labels(*labels), self._metrics.executions.labels(*labels)

        def observe(name: str, value: float) -> None:
            if name == "queue_seconds":
                queue.inc(value)
            elif name == "run_seconds":
                infer.inc(value)
                runs.inc()
            else:
                count.inc(value)

        def run(batch: Sequence[Any]) -> list[tuple[Region, ...] | Exception]:
            found: list[tuple[Region, ...] | Exception] = list(engine.predict(batch))
            if len(found) != len(batch):
                raise ModelFailed(f"{version.id} gave {len(found)} answers for {len(batch)} pictures.")
            return found

        size: dict[str, Any] = {"workers": engine.parallel, "max_batch": engine.max_batch}
        urgent = getattr(engine, "urgent", 0)  # engines of others need not know of it
        if urgent:
            return Lanes(run, name=version.id, urgent=urgent, observe=observe, **size)
        return Stage(run, name=version.id, observe=observe, **size)


def warm(engine: Engine) -> None:
    """Run once on a grey picture (or a text), so that the first person does not pay for lazy initialisation."""
    if engine.wants == "task":
        return  # its code was read when it was loaded, and we have no task that it would understand
    if engine.wants == "text":
        engine.predict([engine.prepare("Some words.")])
        return
    width, height = engine.input_size or Size(64, 64)
    picture = Picture(np.full((height, width, 3), 114, np.uint8), Size(width, height))
    engine.predict([engine.prepare(picture)])


async def _loaded(slot: Slot, deadline: float) -> _Warm:
    """What a slot holds, once it does."""
    if not slot.loaded.done():
        waiting = asyncio.wrap_future(slot.loaded)
        waiting.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at below
        await asyncio.wait([waiting], timeout=max(0.0, deadline - time.monotonic()))
        if not slot.loaded.done():
            raise DeadlineExceeded(f"The model {slot.version.id} is still loading.", hint="Ask again in a while.")
    return slot.loaded.result()


def _let_go(engine: Engine) -> None:
    if isinstance(engine, Closable):
        engine.close()


def _key(version: ModelVersion) -> str:
    return f"{version.id}/{version.digest}"

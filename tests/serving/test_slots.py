"""Models in memory: loaded once, in the background, kept while leased, let go when nobody needs them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import DeadlineExceeded, ModelError, ModelFailed
from labelloop.core.metrics import Metrics
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.serving.slots import Slots
from labelloop.serving.stage import Priority
from labelloop.store.registry import ModelVersion
from labelloop.testing import FakeEngine

PICTURE = Picture(np.zeros((4, 4, 3), np.uint8), Size(4, 4))


def version(name: str) -> ModelVersion:
    return ModelVersion(name, 1, f"digest-{name}", "", ModelCard(name=name), datetime.now(UTC))


@contextmanager
def slots(load: Callable[[ModelVersion], Any], limit: int = 8) -> Iterator[Slots]:
    made = Slots(load, limit=limit, metrics=Metrics())
    try:
        yield made
    finally:
        made.close()


def soon(seconds: float = 5) -> float:
    return time.monotonic() + seconds


async def use(made: Slots, wanted: ModelVersion) -> int:
    with await made.lease(wanted, deadline=soon()) as lease:
        return len(await lease.predict(PICTURE, priority=Priority.PERSON, deadline=soon(), finish=tuple))


async def test_a_model_is_loaded_once_however_many_ask_at_the_same_time() -> None:
    loads: list[str] = []

    def load(wanted: ModelVersion) -> FakeEngine:
        loads.append(wanted.id)
        return FakeEngine()

    with slots(load) as made:
        assert await asyncio.gather(*(use(made, version("a")) for _ in range(20))) == [1] * 20
    assert loads == ["a@1"]


async def test_a_load_that_fails_says_so_to_everybody_and_stays_failed() -> None:
    def load(_wanted: ModelVersion) -> FakeEngine:
        raise OSError("disk on fire")

    with slots(load) as made:
        for _ in range(2):
            with pytest.raises(ModelFailed, match="disk on fire"):
                await use(made, version("a"))
        slot = made.state_of(version("a"))
        assert slot is not None
        assert (slot.state, slot.leases) == ("failed", 0)


async def test_our_own_errors_keep_their_hint() -> None:
    def load(_wanted: ModelVersion) -> FakeEngine:
        raise ModelError("broken", hint="Export it again.")

    with slots(load) as made, pytest.raises(ModelError, match="Export it again"):
        await use(made, version("a"))


async def test_a_model_that_fails_on_its_first_picture_does_not_count_as_loaded() -> None:
    def find(_picture: Picture) -> Any:
        raise ValueError("wrong shape")

    with slots(lambda _version: FakeEngine(find)) as made, pytest.raises(ModelFailed, match="wrong shape"):
        await use(made, version("a"))


async def test_waiting_for_a_model_ends_at_the_deadline() -> None:
    let_go = threading.Event()

    def load(_wanted: ModelVersion) -> FakeEngine:
        assert let_go.wait(60)
        return FakeEngine()

    with slots(load) as made:
        try:
            with pytest.raises(DeadlineExceeded, match="still loading"):
                await made.lease(version("a"), deadline=soon(0.05))
        finally:
            let_go.set()
        assert await use(made, version("a")) == 1, "the next one finds it loaded"


async def test_above_the_limit_the_least_used_goes_and_never_a_leased_or_wanted_one() -> None:
    with slots(lambda _version: FakeEngine(), limit=1) as made:
        names = ["old", "leased", "wanted", "recent"]
        for name in names:
            await use(made, version(name))
        with await made.lease(version("leased"), deadline=soon()) as lease:
            made.trim([version("wanted")])
            kept = [name for name in names if made.state_of(version(name))]
            assert kept == ["leased", "wanted"], "nothing spare is left above the limit"
            assert len(await lease.predict(PICTURE, priority=Priority.PERSON, deadline=soon(), finish=tuple)) == 1
        assert await use(made, version("old")) == 1, "loaded again when it is asked for"


async def test_an_engine_that_loses_an_answer_is_found_out() -> None:
    class Forgetful(FakeEngine):
        warm = False

        def predict(self, batch: Any) -> Any:
            if not self.warm:
                self.warm = True
                return super().predict(batch)
            return []

    with slots(lambda _version: Forgetful()) as made, pytest.raises(ModelFailed, match="0 answers for 1"):
        await use(made, version("a"))

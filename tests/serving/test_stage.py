"""The stage: order, batches, deadlines, and one bad item among good ones."""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from labelloop.core.errors import DeadlineExceeded, ShuttingDown
from labelloop.serving.stage import NICE, Lanes, Priority, Stage


class Gate:
    """A run function that records its batches and can be held until the test lets go."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.open = threading.Event()
        self.entered = threading.Event()

    def __call__(self, items: Sequence[Any]) -> list[Any]:
        self.entered.set()
        assert self.open.wait(60)
        self.batches.append(list(items))
        if "boom" in items:
            raise ValueError("boom")
        return [ValueError("mine") if item == "bad" else item for item in items]


@contextmanager
def running(gate: Gate, **options: Any):
    stage: Stage[Any, Any] = Stage(gate, name="test", **options)
    try:
        yield stage
    finally:
        gate.open.set()
        stage.close()


def soon() -> float:
    return time.monotonic() + 60


async def submit_behind(
    stage: Stage[Any, Any], gate: Gate, items: Sequence[tuple[Any, Priority]]
) -> list[asyncio.Task]:
    """Submit `items` while the only worker is busy with another one, so that they wait together."""
    first = asyncio.create_task(stage.submit("first", priority=Priority.BULK, deadline=soon()))
    await asyncio.to_thread(gate.entered.wait, 60)
    tasks = [asyncio.create_task(stage.submit(item, priority=p, deadline=soon())) for item, p in items]
    while stage.waiting() < len(items):
        await asyncio.sleep(0)
    gate.open.set()
    await first
    return tasks


async def test_people_go_before_bulk_and_equals_in_order() -> None:
    gate = Gate()
    with running(gate, workers=1) as stage:
        items = [("bulk", Priority.BULK), ("b1", Priority.BATCH), ("person", Priority.PERSON), ("b2", Priority.BATCH), ("click", Priority.INTERACTIVE)]  # fmt: skip
        await asyncio.gather(*await submit_behind(stage, gate, items))
    assert gate.batches == [["first"], ["click"], ["person"], ["b1"], ["b2"], ["bulk"]]


async def test_what_waits_shares_a_batch() -> None:
    gate = Gate()
    with running(gate, workers=1, max_batch=4) as stage:
        await asyncio.gather(*await submit_behind(stage, gate, [(n, Priority.BATCH) for n in range(6)]))
    assert [len(batch) for batch in gate.batches] == [1, 4, 2]


async def test_every_caller_gets_the_answer_to_its_own_item() -> None:
    gate = Gate()
    gate.open.set()
    with running(gate, workers=3, max_batch=5) as stage:
        found = await asyncio.gather(*(stage.submit(n, priority=Priority.BATCH, deadline=soon()) for n in range(200)))
    assert found == list(range(200))


@pytest.mark.parametrize("poison", ["bad", "boom"], ids=["an exception as result", "an exception for the batch"])
async def test_one_bad_item_never_fails_its_neighbours(poison: str) -> None:
    gate = Gate()
    with running(gate, workers=1, max_batch=8) as stage:
        tasks = await submit_behind(stage, gate, [(item, Priority.BATCH) for item in ("a", poison, "b")])
        found = await asyncio.gather(*tasks, return_exceptions=True)
    assert found[0] == "a"
    assert isinstance(found[1], ValueError)
    assert found[2] == "b"


async def test_an_item_past_its_deadline_is_not_begun() -> None:
    gate = Gate()
    with running(gate, workers=1) as stage:
        first = asyncio.create_task(stage.submit("first", priority=Priority.BATCH, deadline=soon()))
        await asyncio.to_thread(gate.entered.wait, 60)
        late = asyncio.create_task(stage.submit("late", priority=Priority.BATCH, deadline=time.monotonic() - 1))
        while not stage.waiting():
            await asyncio.sleep(0)
        gate.open.set()
        await first
        with pytest.raises(DeadlineExceeded):
            await late
    assert gate.batches == [["first"]]


async def test_a_caller_who_left_costs_nothing() -> None:
    gate = Gate()
    with running(gate, workers=1) as stage:
        first = asyncio.create_task(stage.submit("first", priority=Priority.BATCH, deadline=soon()))
        await asyncio.to_thread(gate.entered.wait, 60)
        left = asyncio.create_task(stage.submit("left", priority=Priority.BATCH, deadline=soon()))
        while not stage.waiting():
            await asyncio.sleep(0)
        left.cancel()
        with pytest.raises(asyncio.CancelledError):
            await left
        gate.open.set()
        await first
    assert gate.batches == [["first"]]


async def test_workers_that_are_kept_for_people_take_no_batches() -> None:
    gate = Gate()
    with running(gate, workers=2, reserved=1) as stage:
        first = asyncio.create_task(stage.submit("slow", priority=Priority.BATCH, deadline=soon()))
        await asyncio.to_thread(gate.entered.wait, 60)
        gate.entered.clear()
        batch = asyncio.create_task(stage.submit("batch", priority=Priority.BATCH, deadline=soon()))
        person = asyncio.create_task(stage.submit("person", priority=Priority.PERSON, deadline=soon()))
        await asyncio.to_thread(gate.entered.wait, 60)
        assert stage.waiting() == 1, "the other worker took the person and left the batch"
        gate.open.set()
        assert await asyncio.gather(first, batch, person) == ["slow", "batch", "person"]


async def test_a_person_is_served_while_every_worker_is_on_a_batch() -> None:
    release = threading.Event()

    def run(items: Sequence[Any]) -> list[Any]:
        assert "person" in items or release.wait(30)
        return list(items)

    lanes: Lanes[Any, Any] = Lanes(run, name="test", workers=2, urgent=1)
    try:
        batches = [asyncio.create_task(lanes.submit(n, priority=Priority.BULK, deadline=soon())) for n in range(3)]
        person = lanes.submit("person", priority=Priority.PERSON, deadline=soon())
        assert await asyncio.wait_for(person, 30) == "person"
        assert not any(task.done() for task in batches)
        release.set()
        assert await asyncio.gather(*batches) == [0, 1, 2]
    finally:
        release.set()
        lanes.close()


async def test_closing_both_lanes_takes_one_time_and_refuses_at_once() -> None:
    gate = Gate()
    lanes: Lanes[Any, Any] = Lanes(gate, name="test", workers=1, urgent=1)
    stuck = [asyncio.create_task(lanes.submit(n, priority=p, deadline=soon())) for n, p in enumerate(Priority)]
    while lanes.waiting() > 2:
        await asyncio.sleep(0)
    closing = asyncio.create_task(asyncio.to_thread(lanes.close, timeout_s=0.2))
    while not closing.done():
        await asyncio.sleep(0)
    for priority in Priority:
        with pytest.raises(ShuttingDown):
            lanes.put("late", priority=priority, deadline=soon())
    gate.open.set()
    said = await asyncio.gather(*stuck, return_exceptions=True)
    assert sum(isinstance(one, ShuttingDown) for one in said) == 2, "one of each lane waited, one was at work"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no urgency of their own")
async def test_batches_leave_the_cores_to_people() -> None:
    def run(items: Sequence[Any]) -> list[Any]:
        return [os.getpriority(os.PRIO_PROCESS, threading.get_native_id())] * len(items)

    lanes: Lanes[Any, Any] = Lanes(run, name="test", workers=1, urgent=1)
    try:
        ours = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
        for priority in Priority:
            nice = await lanes.submit("x", priority=priority, deadline=soon())
            assert nice == (max(ours, NICE) if priority >= Priority.BATCH else ours), priority
    finally:
        lanes.close()


async def test_what_the_caller_makes_of_a_result_is_made_in_the_worker() -> None:
    gate = Gate()
    gate.open.set()
    with running(gate, workers=1) as stage:
        name = await stage.submit(
            "x", priority=Priority.BATCH, deadline=soon(), finish=lambda _: threading.current_thread().name
        )
        assert name == "test-0"
        with pytest.raises(ZeroDivisionError):
            await stage.submit(0, priority=Priority.BATCH, deadline=soon(), finish=lambda value: 1 / value)


async def test_closing_in_a_hurry_fails_what_waits_and_leaves_what_hangs() -> None:
    gate = Gate()
    stage: Stage[Any, Any] = Stage(gate, name="test", workers=1)
    first = asyncio.create_task(stage.submit("hangs", priority=Priority.BATCH, deadline=soon()))
    await asyncio.to_thread(gate.entered.wait, 60)
    waits = asyncio.create_task(stage.submit("waits", priority=Priority.BATCH, deadline=soon()))
    while not stage.waiting():
        await asyncio.sleep(0)
    await asyncio.to_thread(stage.close, timeout_s=0.05)
    with pytest.raises(ShuttingDown):
        await waits
    gate.open.set()
    assert await first == "hangs"


async def test_closing_finishes_what_was_submitted() -> None:
    gate = Gate()
    stage: Stage[Any, Any] = Stage(gate, name="test", workers=1)
    tasks = await submit_behind(stage, gate, [(n, Priority.BATCH) for n in range(3)])
    await asyncio.to_thread(stage.close)
    assert await asyncio.gather(*tasks) == [0, 1, 2]
    with pytest.raises(ShuttingDown):
        await stage.submit("more", priority=Priority.BATCH, deadline=soon())


def test_a_caller_whose_loop_is_gone_does_not_end_the_worker() -> None:
    gate = Gate()
    with running(gate, workers=1) as stage:

        async def leave() -> None:
            asyncio.get_running_loop().call_soon(gate.entered.wait, 60)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await stage.submit("orphan", priority=Priority.BATCH, deadline=soon())

        asyncio.run(leave())
        gate.open.set()
        assert asyncio.run(stage.submit("next", priority=Priority.BATCH, deadline=soon())) == "next"


def test_counts_what_it_did() -> None:
    seen: list[tuple[str, float]] = []
    gate = Gate()
    gate.open.set()
    with running(gate, workers=1, observe=lambda name, value: seen.append((name, value))) as stage:
        asyncio.run(stage.submit("a", priority=Priority.BATCH, deadline=soon()))
    assert [name for name, _ in seen] == ["queue_seconds", "run_seconds", "batch_size"]
    assert seen[-1][1] == 1


def test_threads_without_an_event_loop_are_served_too() -> None:
    gate = Gate()
    with running(gate, workers=1, max_batch=4) as stage:
        gate.open.set()
        good, bad = (stage.put(item, priority=Priority.BULK, deadline=soon()) for item in ("good", "bad"))
        assert good.result(5) == "good"
        with pytest.raises(ValueError, match="mine"):
            bad.result(5)
        late = stage.put("late", priority=Priority.BULK, deadline=time.monotonic() - 1)
        with pytest.raises(DeadlineExceeded):
            late.result(5)
        gate.open.clear()
        gate.entered.clear()
        held = stage.put("held", priority=Priority.BULK, deadline=soon())
        assert gate.entered.wait(5)
        given_up = stage.put("given up", priority=Priority.BULK, deadline=soon())
        assert given_up.cancel()
        gate.open.set()
        assert held.result(5) == "held"
    with pytest.raises(ShuttingDown):
        stage.put("after the end", priority=Priority.BULK, deadline=soon())
    assert ["given up"] not in gate.batches

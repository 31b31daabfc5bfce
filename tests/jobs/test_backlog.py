"""Predicted pages that wait to be stored: how many go together, and when."""

from __future__ import annotations

import threading
import time

import msgspec
import pytest

from labelloop.core.errors import LabelloopError, ModelFailed
from labelloop.jobs.backlog import Backlog
from labelloop.jobs.patience import Cancelled, Interrupted
from labelloop.store.pages import Item, Page

NEVER = time.monotonic() + 1e6


def page(number: int, items: int = 10) -> Page:
    return Page(
        job_id="j",
        number=number,
        cursor=number,
        task_ids=(number,),
        state="predicted",
        owner="w",
        replaces={},
        sent_s=None,
        doubted=False,
        skipped=0,
        items=(Item(1, msgspec.Raw(b"{}")),) * items,
    )


def filled(*pages: Page, most_items: int = 20) -> Backlog:
    backlog = Backlog(most_items)
    for one in pages:
        backlog.add(one)
    return backlog


def numbers(pages: list[Page]) -> list[int]:
    return [one.number for one in pages]


@pytest.mark.parametrize(
    ("sizes", "most", "taken"),
    [
        pytest.param([10, 10, 10], 100, [0, 1, 2], id="all that are there"),
        pytest.param([10, 10], 20, [0, 1], id="as many as fit"),
        pytest.param([10, 10, 10], 25, [0, 1], id="whole pages only"),
        pytest.param([10, 30], 20, [0], id="one that is too large for the others"),
        pytest.param([30], 20, [0], id="one that is too large goes alone"),
        pytest.param([0, 0, 10], 10, [0, 1, 2], id="pages without a prediction take no room"),
    ],
)
def test_what_goes_together(sizes: list[int], most: int, taken: list[int]) -> None:
    backlog = filled(*(page(number, size) for number, size in enumerate(sizes)), most_items=most)
    assert numbers(backlog.take(due_s=time.monotonic())) == taken


def test_it_waits_for_more_until_there_is_enough() -> None:
    backlog, taken = filled(page(0)), []
    taker = threading.Thread(target=lambda: taken.extend(backlog.take(due_s=NEVER)))
    taker.start()
    taker.join(0.1)
    assert taker.is_alive()
    backlog.add(page(1))
    taker.join(20)
    assert numbers(taken) == [0, 1]


def test_it_waits_for_the_moment_and_no_longer() -> None:
    begun_s = time.monotonic()
    assert numbers(filled(page(0)).take(due_s=begun_s + 0.2)) == [0]
    assert time.monotonic() >= begun_s + 0.2


def test_after_the_moment_the_first_page_goes_alone() -> None:
    backlog, taken = filled(), []
    taker = threading.Thread(target=lambda: taken.extend(backlog.take(due_s=time.monotonic() - 1)))
    taker.start()
    backlog.add(page(0))
    taker.join(20)
    assert numbers(taken) == [0]


def test_the_last_pages_wait_for_nothing() -> None:
    backlog = filled(page(0))
    backlog.end()
    assert numbers(backlog.take(due_s=NEVER)) == [0]
    assert backlog.take(due_s=NEVER) == []


def test_who_adds_too_many_waits() -> None:
    backlog = filled(page(0), page(1))
    adder = threading.Thread(target=lambda: backlog.add(page(2)))
    adder.start()
    adder.join(0.1)
    assert adder.is_alive()
    assert numbers(backlog.take(due_s=NEVER)) == [0, 1], "full: waiting longer would bring no more"
    adder.join(20)
    assert numbers(backlog.take(due_s=time.monotonic())) == [2]


def test_pages_before_an_error_are_taken_first() -> None:
    backlog = filled(page(0))
    backlog.end(ModelFailed("the model is gone"))
    assert numbers(backlog.take(due_s=NEVER)) == [0]
    with pytest.raises(LabelloopError, match="the model is gone"):
        backlog.take(due_s=NEVER)


@pytest.mark.parametrize("wish", [Cancelled(), Interrupted()])
def test_a_persons_wish_comes_before_what_waits(wish: BaseException) -> None:
    backlog = filled(page(0))
    backlog.end(wish)
    with pytest.raises(type(wish)):
        backlog.take(due_s=NEVER)


def test_closing_frees_both_sides() -> None:
    backlog, seen = filled(page(0), page(1)), []
    adder = threading.Thread(target=lambda: backlog.add(page(2)))
    adder.start()
    empty = Backlog(20)

    def take() -> None:
        try:
            empty.take(due_s=NEVER)
        except Interrupted:
            seen.append(1)

    taker = threading.Thread(target=take)
    taker.start()
    backlog.close()
    empty.close()
    for thread in (adder, taker):
        thread.join(20)
        assert not thread.is_alive()
    assert seen

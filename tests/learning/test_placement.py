"""Scores along an order: increasing, in range, and as few as possible changed."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from labelloop.core.errors import LabelloopError
from labelloop.learning.placement import MOST_RANKED, UNIT, placed

NONE = float("nan")


def along(order: Any, current: Any) -> list[float]:
    return placed(np.asarray(order), np.asarray(current, float))[np.asarray(order, int)].tolist()


@pytest.mark.parametrize(
    ("current", "kept"),
    [
        pytest.param([0.1, 0.2, 0.9], [0, 1, 2], id="stands already"),
        pytest.param([0.9, 0.2, 0.3], [1, 2], id="one is misplaced"),
        pytest.param([0.3, 0.1, 0.2, 0.4], [1, 2, 3], id="the longest part stays"),
        pytest.param([0.5, 0.5], [1], id="a tie is no order"),
        pytest.param([NONE, 0.4, NONE], [1], id="tasks without a score"),
        pytest.param([0.0, 0.7], [0, 1], id="nobody must come before 0"),
        pytest.param([0.7, 0.0], [0], id="no room below 0"),
        pytest.param([1.0, 0.3], [1], id="no room above 1"),
        pytest.param([1.5, 0.3, -0.2], [1], id="what is no score never stays"),
        pytest.param([0.5, 0.9, 0.5 + 1e-9], [0, 1], id="no room between"),
        pytest.param([0.5, 0.9, 0.5 + 2e-9], [0, 2], id="just enough room between"),
    ],
)
def test_what_stands_in_order_stays(current: list[float], kept: list[int]) -> None:
    found = along(range(len(current)), current)
    assert [place for place, score in enumerate(found) if score == current[place]] == kept
    assert (np.diff(found) > 0).all()
    assert found[0] >= 0
    assert found[-1] <= 1


def test_without_scores_they_are_spread_evenly() -> None:
    assert placed(np.array([2, 0, 1]), np.full(3, NONE)) == pytest.approx([0.5, 0.75, 0.25], abs=2 / UNIT)


def test_the_others_are_spread_between_their_neighbours() -> None:
    assert along(range(4), [0.2, 0.9, 0.95, 0.5]) == [0.2, 0.9, 0.95, 0.975]
    assert along(range(5), [0.2, NONE, NONE, 0.5, 0.6]) == pytest.approx([0.2, 0.3, 0.4, 0.5, 0.6])


def test_no_other_choice_keeps_more() -> None:
    rng = np.random.default_rng(3)
    for _ in range(200):
        count = int(rng.integers(1, 8))
        ticks = rng.integers(0, 12, count)
        current = ticks / UNIT * (UNIT / 12)
        kept = sum(a == b for a, b in zip(along(range(count), current), current, strict=True))
        assert kept == max(
            size
            for size in range(count + 1)
            for chosen in combinations(range(count), size)
            if all(a < b for a, b in zip(ticks[list(chosen)], ticks[list(chosen)][1:], strict=False))
            and (not chosen or not (ticks[chosen[0]] == 0 and chosen[0] > 0))
        )


@pytest.mark.parametrize("count", [0, 1, 2, 1000, 100_000])
@pytest.mark.parametrize("current", ["random", "none", "zeros", "ones", "crowded"])
def test_what_was_written_once_stays(count: int, current: str) -> None:
    rng = np.random.default_rng(5)
    order = rng.permutation(count)
    scores = {
        "random": rng.random(count),
        "none": np.full(count, NONE),
        "zeros": np.zeros(count),
        "ones": np.ones(count),
        "crowded": np.round(rng.normal(0.5, 1e-6, count), 9),
    }[current]
    found = placed(order, scores)
    assert (np.diff(found[order]) > 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert (placed(order, found) == found).all()
    three_times = (found + found + found) / 3  # a task with three predictions of one version
    assert (np.diff(three_times[order]) > 0).all()


def test_a_pool_that_was_scored_by_the_same_function_is_left_alone() -> None:
    doubt = np.random.default_rng(1).random(5000)
    sent = np.round(1 - doubt, 9)
    order = np.argsort(-doubt, kind="stable")
    assert (placed(order, sent) == sent).all()
    moved = np.concatenate([order[4990:], order[:4990]])
    assert (placed(moved, sent) != sent).sum() == 10


@pytest.mark.parametrize("order", [[0, 0], [1, 2], [0, -1]], ids=["twice", "beyond", "negative"])
def test_a_place_given_twice_is_an_error(order: list[int]) -> None:
    with pytest.raises(ValueError, match="permutation"):
        placed(np.array(order), np.zeros(2))


def test_too_many_tasks_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_RANKED * 100 <= UNIT
    monkeypatch.setattr("labelloop.learning.placement.MOST_RANKED", 3)
    with pytest.raises(LabelloopError, match="in parts"):
        placed(np.arange(4), np.zeros(4))

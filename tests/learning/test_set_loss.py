"""Bipartite matching and the loss that goes with it, by hand-made cases and against trying every way."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from labelloop.learning.trainers.finetune.assign import Objects
from labelloop.learning.trainers.finetune.families import Answers, Points
from labelloop.learning.trainers.finetune.set_loss import _costs, match, matchability, set_loss

SIZE = torch.tensor([100.0, 50.0])
POINTS = Points(torch.zeros(0, 2), torch.zeros(0, 1), torch.zeros(0, 2), SIZE)


def boxes(*shape: int, seed: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(*shape, 2, generator=random) * SIZE * 0.6
    return torch.cat([corner, corner + 2 + torch.rand(*shape, 2, generator=random) * SIZE * 0.3], dim=-1)


def answers(pictures: int, queries: int, classes: int = 3, *, seed: int = 0) -> Answers:
    logits = torch.randn(pictures, queries, classes, generator=torch.Generator().manual_seed(seed))
    return Answers(logits, boxes(pictures, queries, seed=seed), None)


def objects(*counts: int, seed: int = 1) -> Objects:
    most = max(1, *counts)
    real = torch.arange(most) < torch.tensor(counts)[:, None]
    labels = torch.randint(0, 3, real.shape, generator=torch.Generator().manual_seed(seed))
    return Objects(boxes(len(counts), most, seed=seed) * real[..., None], labels * real, real)


@pytest.mark.parametrize("seed", range(4))
def test_no_other_way_to_pair_them_costs_less(seed: int) -> None:
    given, wanted = answers(2, 5, seed=seed), objects(3, 2, seed=seed + 10)
    costs, pairs = _costs(given, wanted, SIZE), match(given, wanted, SIZE)
    for picture, count in enumerate((3, 2)):
        mine = pairs.picture == picture
        query, thing = pairs.query[mine], pairs.thing[mine]
        assert sorted(thing.tolist()) == list(range(count))
        ways = itertools.permutations(range(5), count)
        cheapest = min(sum(costs[picture, way[one], one].item() for one in range(count)) for way in ways)
        assert costs[picture, query, thing].sum().item() == pytest.approx(cheapest, abs=1e-5)


def test_more_objects_than_queries() -> None:
    pairs = match(answers(1, 2), objects(4), SIZE)
    assert sorted(pairs.query.tolist()) == [0, 1]
    assert len(set(pairs.thing.tolist())) == 2


def test_pictures_without_objects_have_a_loss_that_falls_with_the_scores() -> None:
    given, nothing = answers(2, 4), objects(0, 0)
    assert len(match(given, nothing, SIZE).query) == 0
    loud, quiet = (set_loss(given._replace(logits=given.logits + shift), nothing, POINTS) for shift in (0, -5))
    assert loud > quiet > 0


def test_the_right_answer_costs_next_to_nothing() -> None:
    wanted = objects(3)
    sure = torch.full((1, 3, 3), -12.0).scatter(2, wanted.labels[..., None], 12.0)
    right = Answers(sure, wanted.xyxy, None)
    assert set_loss(right, wanted, POINTS) < 1e-3
    moved = right._replace(xyxy=right.xyxy + 1)
    assert set_loss(moved, wanted, POINTS) > 0.1


def test_what_chose_the_cells_is_asked_for_an_object_of_whatever_class() -> None:
    wanted = objects(3)
    chosen = Answers(torch.full((1, 3, 1), 12.0), wanted.xyxy, None)
    given = answers(1, 3)
    with_it = set_loss(given._replace(earlier=(chosen,)), wanted, POINTS)
    assert with_it.item() == pytest.approx(set_loss(given, wanted, POINTS).item(), abs=1e-3)


def test_matchability_by_hand() -> None:
    loss = matchability(torch.tensor([0.0, 0.0, 0.0]), torch.tensor([1.0, 0.25, -1.0]))
    nothing = 0.5**1.5 * math.log(2)
    np.testing.assert_allclose(loss, [math.log(2), math.log(2), nothing], rtol=1e-5)
    loss = matchability(torch.tensor([2.0]), torch.tensor([0.25]))
    score = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(loss, -0.125 * math.log(score) - 0.875 * math.log(1 - score), rtol=1e-5)


def test_answers_that_are_no_numbers_are_told_by_the_loss() -> None:
    given = answers(1, 3)
    broken = given._replace(logits=given.logits * math.nan)
    assert not torch.isfinite(set_loss(broken, objects(2), POINTS))

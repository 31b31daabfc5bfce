"""Assignment and losses, by hand-made cases and against a slow, plain reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from labelloop.core.geometry import iou
from labelloop.learning.trainers.finetune.assign import Objects, Targets, assign, pair_giou, pair_iou
from labelloop.learning.trainers.finetune.families import Answers, Points, points_of
from labelloop.learning.trainers.finetune.losses import detection_loss, varifocal
from labelloop.learning.trainers.finetune.recipes import FAMILIES

SIDE = 64
POINTS = points_of(FAMILIES["yolox"], (SIDE, SIDE))
CELLS = len(POINTS.cells)


def boxes(count: int, *, seed: int) -> Tensor:
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=random) * SIDE * 0.6
    return torch.cat([corner, corner + 9 + torch.rand(count, 2, generator=random) * SIDE * 0.3], dim=1)


def objects(*pictures: list[tuple[tuple[float, ...], int]]) -> Objects:
    most = max(1, *(len(one) for one in pictures))
    xyxy, labels = torch.zeros(len(pictures), most, 4), torch.zeros(len(pictures), most, dtype=torch.int64)
    real = torch.zeros(len(pictures), most, dtype=torch.bool)
    for row, things in enumerate(pictures):
        for place, (box, label) in enumerate(things):
            xyxy[row, place], labels[row, place], real[row, place] = torch.tensor(box), label, True
    return Objects(xyxy, labels, real)


def answers(pictures: int = 1, classes: int = 2, *, seed: int = 0) -> Answers:
    """Boxes of about 20 pixels around each cell."""
    random = torch.Generator().manual_seed(seed)
    half = 10 + 4 * torch.rand(pictures, CELLS, 2, generator=random)
    centre = POINTS.centres + torch.randn(pictures, CELLS, 2, generator=random)
    logits = torch.randn(pictures, CELLS, classes, generator=random)
    return Answers(logits, torch.cat([centre - half, centre + half], dim=-1), torch.zeros(pictures, CELLS, 1))


def plain(given: Answers, wanted: Objects, points: Points, *, most: int) -> dict[tuple[int, int], tuple[int, float]]:
    """(picture, cell) -> (object, target), with loops."""
    found: dict[tuple[int, int], list[tuple[float, int, float]]] = {}
    scores = given.scores.numpy()
    for picture in range(len(wanted.real)):
        for thing in np.flatnonzero(wanted.real[picture].numpy()):
            box, label = wanted.xyxy[picture, thing].numpy(), int(wanted.labels[picture, thing])
            x, y = points.centres.numpy().T
            inside = np.flatnonzero((x > box[0]) & (x < box[2]) & (y > box[1]) & (y < box[3]))
            overlap = iou(given.xyxy[picture].numpy()[inside].astype(np.float64), box[None].astype(np.float64))[:, 0]
            aligned = scores[picture, inside, label] * overlap**6
            chosen = np.argsort(-aligned, kind="stable")[:most]
            for place in chosen:
                target = aligned[place] / aligned[chosen].max() * overlap[chosen].max()
                found.setdefault((picture, int(inside[place])), []).append((overlap[place], int(thing), target))
    return {key: max(some)[1:] for key, some in found.items()}


@pytest.mark.parametrize("seed", range(5))
def test_it_is_what_a_plain_reading_of_the_paper_gives(seed: int) -> None:
    given = answers(2, 3, seed=seed)
    wanted = objects(
        [(tuple(box.tolist()), index % 3) for index, box in enumerate(boxes(6, seed=seed))],
        [(tuple(box.tolist()), index % 2) for index, box in enumerate(boxes(3, seed=seed + 100))],
    )
    targets = assign(given, wanted, POINTS, most=5)
    expected = plain(given, wanted, POINTS, most=5)
    got = {
        (int(picture), int(cell)): (tuple(box.tolist()), float(weight))
        for picture, cell, box, weight in zip(*targets.cells, targets.xyxy, targets.weights, strict=True)
    }
    assert got.keys() == expected.keys()
    for (picture, cell), (thing, target) in expected.items():
        box, weight = got[picture, cell]
        assert box == tuple(wanted.xyxy[picture, thing].tolist())
        assert weight == pytest.approx(target, abs=1e-4)
        assert targets.scores[picture, cell, wanted.labels[picture, thing]] == pytest.approx(weight)
    assert int((targets.scores > 0).sum()) == int((targets.weights > 0).sum())


def test_a_batch_without_objects_has_no_targets_and_still_a_loss() -> None:
    given = answers()
    targets = assign(given, objects([]), POINTS)
    assert not targets.scores.any()
    assert len(targets.weights) == 0
    assert torch.isfinite(detection_loss(given, targets))


def test_an_object_between_the_cells_gets_the_nearest_one() -> None:
    targets = assign(answers(), objects([((31.5, 31.5, 32.5, 32.5), 1)]), POINTS)
    (cell,) = targets.cells[1].tolist()
    assert float((POINTS.centres[cell] - 32).abs().max()) <= 4


def test_padding_is_no_object() -> None:
    wanted = objects([((10.0, 10.0, 30.0, 30.0), 0)], [])
    assert set(assign(answers(2), wanted, POINTS).cells[0].tolist()) == {0}


def test_pairs_of_boxes() -> None:
    first, second = boxes(20, seed=1), boxes(20, seed=2)
    expected = np.diag(iou(first.numpy().astype(np.float64), second.numpy().astype(np.float64)))
    np.testing.assert_allclose(pair_iou(first, second), expected, atol=1e-5)
    assert (pair_giou(first, second) <= pair_iou(first, second) + 1e-6).all()
    apart = pair_giou(torch.tensor([[0.0, 0, 1, 1]]), torch.tensor([[3.0, 0, 4, 1]]))
    assert apart.item() == pytest.approx(-0.5)


@pytest.mark.parametrize("objectness", [True, False], ids=["with objectness", "without"])
def test_an_answer_that_is_right_costs_less_the_surer_it_is(objectness: bool) -> None:
    wanted = objects([((10.0, 10.0, 30.0, 30.0), 1)])
    cell = int((POINTS.centres - 20).abs().sum(dim=1).argmin())
    targets = Targets(
        torch.zeros(1, CELLS, 2).index_put_((torch.tensor(0), torch.tensor(cell), torch.tensor(1)), torch.tensor(1.0)),
        (torch.tensor([0]), torch.tensor([cell])),
        wanted.xyxy[0],
        torch.ones(1),
    )
    costs = []
    for sure in (0.0, 2.0, 8.0):
        logits, seen = torch.full((1, CELLS, 2), -sure), torch.full((1, CELLS, 1), -sure)
        logits[0, cell, 1], seen[0, cell] = sure, sure
        xyxy = wanted.xyxy.expand(1, CELLS, 4)
        costs.append(float(detection_loss(Answers(logits, xyxy, seen if objectness else None), targets)))
    assert costs[0] > costs[1] > costs[2]
    assert costs[2] < 0.01


def test_varifocal_by_hand() -> None:
    logits, wanted = torch.tensor([0.0, 0.0]), torch.tensor([0.8, 0.0])
    log_half = np.log(0.5)
    np.testing.assert_allclose(varifocal(logits, wanted), [-0.8 * log_half, -1.5 * 0.5 * log_half], rtol=1e-5)

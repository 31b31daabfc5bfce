"""Which cell answers for which object: task-aligned assignment (TOOD, https://arxiv.org/abs/2108.07755).

A cell may answer for an object when its centre lies in the object's box. Among those, the `most` with the highest
score^alpha * iou^beta are taken, score being the cell's own for the object's class: the cells that already see it best.
A cell that several objects want goes to the one that it overlaps most.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from labelloop.learning.trainers.finetune.families import Answers, Points

TINY = 1e-9


class Objects(NamedTuple):
    """What people drew on a batch of b pictures, padded to m each: `xyxy` [b, m, 4] in pixels of the network input,
    `labels` [b, m] class indices, `real` [b, m] false for padding."""

    xyxy: Tensor
    labels: Tensor
    real: Tensor


class Targets(NamedTuple):
    """`scores` [b, n, c]: what the class score of a cell should be, 0 almost everywhere. For the p cells that answer
    for an object: `cells` are their indices (picture, cell), then `xyxy` [p, 4] and `weights` [p] of their object."""

    scores: Tensor
    cells: tuple[Tensor, Tensor]
    xyxy: Tensor
    weights: Tensor


@torch.no_grad()
def assign(
    answers: Answers, objects: Objects, points: Points, *, most: int = 13, alpha: float = 1.0, beta: float = 6.0
) -> Targets:
    """Targets for `answers`. The best cell of each object is asked for a score of that cell's IoU, the others for less,
    in proportion to how well aligned they are."""
    scores = answers.scores
    picture, thing, cell = _inside(points, objects).nonzero(as_tuple=True)
    overlap = pair_iou(answers.xyxy[picture, cell], objects.xyxy[picture, thing])
    score = scores[picture, cell, objects.labels[picture, thing]]
    aligned = score**alpha * overlap**beta
    drawn = picture * objects.labels.shape[1] + thing
    first = _rank(drawn, aligned) < most
    picture, thing, cell, drawn = (some[first] for some in (picture, thing, cell, drawn))
    overlap, aligned = overlap[first], aligned[first]
    top, reach = (_largest(drawn, some, objects.labels.numel()) for some in (aligned, overlap))
    owned = _rank(picture * scores.shape[1] + cell, overlap) == 0
    picture, thing, cell = picture[owned], thing[owned], cell[owned]
    weights = ((aligned / top.clamp(min=TINY)) * reach)[owned]
    wanted = torch.zeros_like(scores)
    wanted[picture, cell, objects.labels[picture, thing]] = weights
    return Targets(wanted, (picture, cell), objects.xyxy[picture, thing], weights)


def _rank(group: Tensor, value: Tensor) -> Tensor:
    """Place [p] of each value within its group, 0 for the largest. Pairs are few thousand where cells times objects are
    half a million, so two sorts are ten times as fast as topk over all cells."""
    by_value = value.argsort(descending=True, stable=True)
    order = by_value[group[by_value].argsort(stable=True)]
    ordered = group[order]
    starts = torch.searchsorted(ordered, ordered)
    rank = torch.empty_like(group)
    rank[order] = torch.arange(len(group), device=group.device) - starts
    return rank


def _largest(group: Tensor, value: Tensor, groups: int) -> Tensor:
    """The largest value [p] of the group of each pair."""
    return value.new_zeros(groups).scatter_reduce(0, group, value, "amax")[group]


def pair_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union [p] of boxes [p, 4], row by row."""
    shared, union, _ = _areas(first, second)
    return shared / union.clamp(min=TINY)


def pair_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU [p] in -1..1 of boxes [p, 4], row by row (https://arxiv.org/abs/1902.09630)."""
    shared, union, hull = _areas(first, second)
    return shared / union.clamp(min=TINY) - (hull - union) / hull.clamp(min=TINY)


def _areas(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Areas of intersection, union and the smallest box around both."""
    inner = (torch.minimum(first[:, 2:], second[:, 2:]) - torch.maximum(first[:, :2], second[:, :2])).clamp(min=0)
    outer = torch.maximum(first[:, 2:], second[:, 2:]) - torch.minimum(first[:, :2], second[:, :2])
    shared = inner.prod(dim=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(dim=1) for boxes in (first, second)]
    return shared, areas[0] + areas[1] - shared, outer.prod(dim=1)


def _inside(points: Points, objects: Objects) -> Tensor:
    """[b, m, n]: the centre of the cell lies in the box; for a box without any centre, the nearest one."""
    centres = points.centres
    x, y = centres.unbind(dim=1)
    left, top, right, bottom = objects.xyxy[..., None].unbind(dim=2)
    inside = (x > left) & (x < right) & (y > top) & (y < bottom) & objects.real[..., None]
    lost = objects.real & ~inside.any(dim=-1)
    if lost.any():
        middle = (objects.xyxy[lost][:, :2] + objects.xyxy[lost][:, 2:]) / 2
        nearest = torch.cdist(middle, centres).argmin(dim=-1)
        picture, thing = lost.nonzero(as_tuple=True)
        inside[picture, thing, nearest] = True
    return inside

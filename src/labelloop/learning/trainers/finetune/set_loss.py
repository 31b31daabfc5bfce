"""How wrong a set of boxes is, of which each object is to have one: bipartite matching and the loss that goes with it.

After DETR (https://arxiv.org/abs/2005.12872, section 3.1): each object is given the query that costs least, all objects
together, found by the Hungarian method; the others are to say that there is nothing. Costs and weights are those of
Deformable DETR (https://arxiv.org/abs/2010.04159) and RT-DETR (https://arxiv.org/abs/2304.08069).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from labelloop.learning.trainers.finetune.assign import Objects, pair_giou, pair_iou
from labelloop.learning.trainers.finetune.families import Answers, Points

CLASS_COST, BOX_COST, GIOU_COST = 2.0, 5.0, 2.0
BOX_WEIGHT, GIOU_WEIGHT = 5.0, 2.0
ALPHA, GAMMA = 0.25, 2.0
"""Of the focal loss (https://arxiv.org/abs/1708.02002): what it changes by from "nothing" to the class is the cost."""
MATCHABILITY = 1.5
LARGE = 1e6


class Pairs(NamedTuple):
    """p pairs: `picture` [p], `query` [p] and `thing` [p], the place of the object in its picture."""

    picture: Tensor
    query: Tensor
    thing: Tensor


def set_loss(answers: Answers, objects: Objects, points: Points) -> Tensor:
    """Matchability-aware loss of the scores, 5 times L1 and 2 times GIoU loss of the boxes, per object, of the answers
    and of those that the network gave on the way."""
    parts = [_loss(one, _known_to(one, objects), points.size_wh) for one in (answers, *answers.earlier)]
    return torch.stack(parts).sum()


@torch.no_grad()
def match(answers: Answers, objects: Objects, size_wh: Tensor) -> Pairs:
    """The cheapest pairs of queries and objects, each of either at most once."""
    from scipy.optimize import linear_sum_assignment

    costs = torch.nan_to_num(_costs(answers, objects, size_wh), nan=LARGE, posinf=LARGE, neginf=-LARGE).cpu().numpy()
    found: list[np.ndarray] = []
    for picture, (cost, count) in enumerate(zip(costs, objects.real.sum(dim=1).tolist(), strict=True)):
        query, thing = linear_sum_assignment(cost[:, :count])  # objects come first, padding behind them
        found.append(np.stack([np.full(len(query), picture), query, thing]))
    pairs = torch.from_numpy(np.concatenate(found, axis=1)).to(objects.labels)
    return Pairs(*pairs.unbind())


def _known_to(answers: Answers, objects: Objects) -> Objects:
    """Where there is one score, for an object of whatever class, all labels are one."""
    return objects._replace(labels=objects.labels.clamp(max=answers.logits.shape[-1] - 1))


def _costs(answers: Answers, objects: Objects, size_wh: Tensor) -> Tensor:
    """[b, q, m]."""
    scores = answers.logits.sigmoid()
    index = objects.labels[:, None].expand(-1, scores.shape[1], -1)
    score = scores.gather(2, index)
    something = ALPHA * (1 - score) ** GAMMA * -torch.log(score + 1e-8)
    nothing = (1 - ALPHA) * score**GAMMA * -torch.log(1 - score + 1e-8)
    boxes, drawn = _fractions(answers.xyxy, size_wh), _fractions(objects.xyxy, size_wh)
    q, m = score.shape[1:]
    ours = answers.xyxy[:, :, None].expand(-1, -1, m, -1)
    theirs = objects.xyxy[:, None].expand(-1, q, -1, -1)
    giou = pair_giou(ours.reshape(-1, 4), theirs.reshape(-1, 4)).reshape(score.shape)
    return CLASS_COST * (something - nothing) + BOX_COST * torch.cdist(boxes, drawn, p=1) - GIOU_COST * giou


def _loss(answers: Answers, objects: Objects, size_wh: Tensor) -> Tensor:
    pairs = match(answers, objects, size_wh)
    count = objects.real.sum().clamp(min=1)
    ours, drawn = answers.xyxy[pairs.picture, pairs.query], objects.xyxy[pairs.picture, pairs.thing]
    label = objects.labels[pairs.picture, pairs.thing]
    quality = torch.full_like(answers.logits, -1)
    quality[pairs.picture, pairs.query, label] = pair_iou(ours.detach(), drawn)
    scores = matchability(answers.logits, quality).sum()
    distance = (_fractions(ours, size_wh) - _fractions(drawn, size_wh)).abs().sum()
    return (scores + BOX_WEIGHT * distance + GIOU_WEIGHT * (1 - pair_giou(ours, drawn)).sum()) / count


def matchability(logits: Tensor, quality: Tensor) -> Tensor:
    """Cross entropy between sigmoid(logits) and quality^1.5, any shape; `quality` is the IoU where an object is meant,
    and negative where none is: there the target is 0, weighted by score^1.5 (DEIM, https://arxiv.org/abs/2412.04234).

    A varifocal loss weighs an object by its IoU instead, and so forgets what is badly boxed: bccd, DEIMv2-atto, 200
    steps of 4 pictures, AP50 / AP .655 / .403 where this gives .719 / .431."""
    meant = quality >= 0
    weights = torch.where(meant, 1.0, logits.detach().sigmoid() ** MATCHABILITY)
    wanted = quality.clamp(min=0) ** MATCHABILITY
    return F.binary_cross_entropy_with_logits(logits, wanted, weights, reduction="none")


def _fractions(xyxy: Tensor, size_wh: Tensor) -> Tensor:
    """Corners in pixels as centre and size in fractions of the network input, in which L1 is reckoned."""
    corners = xyxy / size_wh.repeat(2)
    left_top, right_bottom = corners[..., :2], corners[..., 2:]
    return torch.cat([(left_top + right_bottom) / 2, right_bottom - left_top], dim=-1)

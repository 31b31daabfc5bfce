"""What training makes small: how wrong the scores are, and how far the boxes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812

from labelloop.learning.trainers.assign import Targets, pair_giou
from labelloop.learning.trainers.families import Answers

BOX_WEIGHT = 2.5
NEGATIVE_WEIGHT = 0.75
NEGATIVE_POWER = 2.0


def detection_loss(answers: Answers, targets: Targets) -> Tensor:
    """Varifocal loss of the scores plus 2.5 times GIoU loss of the boxes, both per unit of target score."""
    total = targets.weights.sum().clamp(min=1.0)
    loss = varifocal(answers, targets.scores).sum() / total
    if len(targets.weights):
        giou = pair_giou(answers.xyxy[targets.cells], targets.xyxy)
        loss = loss + BOX_WEIGHT * ((1 - giou) * targets.weights).sum() / total
    return loss


def varifocal(answers: Answers, wanted: Tensor) -> Tensor:
    """Cross entropy [b, n, c] between scores and `wanted`, weighted by the target where there is an object and by
    0.75 * score^2 where there is none (VarifocalNet, https://arxiv.org/abs/2008.13367).

    With an objectness the score is a product, p = sigmoid(o) * sigmoid(c). Its log is the sum of two log-sigmoids and
    1 - p = (e^-o + e^-c + e^-(o+c)) * p, both of which stay exact where p is almost 0 or 1.
    """
    if answers.objectness is None:
        yes, no = F.logsigmoid(answers.logits), F.logsigmoid(-answers.logits)
    else:
        c, o = answers.logits, answers.objectness.expand_as(answers.logits)
        yes = F.logsigmoid(o) + F.logsigmoid(c)
        no = torch.logsumexp(torch.stack([-o, -c, -o - c]), dim=0) + yes
    with torch.no_grad():
        weights = torch.where(wanted > 0, wanted, NEGATIVE_WEIGHT * yes.exp() ** NEGATIVE_POWER)
    return -weights * (wanted * yes + (1 - wanted) * no)

"""What the net is taught about a picture, and how wrong it is.

Targets follow TTFNet (Liu et al. 2019, https://arxiv.org/abs/1909.00700): a Gaussian as wide and as high as the object
in the heat map, and the box asked of all cells under it, not of the middle one alone, which is what makes a short
training possible. Losses: CornerNet's penalty-reduced focal loss on the heat map (alpha 2, beta 4) and generalised IoU.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from labelloop.learning.trainers.scratch.network import STRIDE, boxes_of

Floats = NDArray[np.float32]
SPREAD = 0.54
"""The Gaussian ends (2 sigma) at this share of the half width and height (TTFNet's alpha), rounded up: an object of
20 px has nine cells that learn its box, where rounding down, to 3 sigma, left it one."""
BOX_WEIGHT = 5.0
SMALLEST_SIDE = 2.0
"""Pixels of the input: what is less of an object after cropping is not asked for."""


class Targets(NamedTuple):
    """`heat` [classes, h, w] in [0, 1], `box` [h, w, 4] in pixels, `weight` [h, w]: what each cell's box counts; each
    object's cells sum up to the logarithm of its area."""

    heat: Floats
    box: Floats
    weight: Floats


def targets(xyxy: Floats, classes: NDArray[np.intp], *, count: int, side: int) -> Targets:
    """Targets for boxes [n, 4] in pixels of an input of `side` x `side`. Small objects are drawn over large ones."""
    cells = side // STRIDE
    heat = np.zeros((count, cells, cells), np.float32)
    box, weight = np.zeros((cells, cells, 4), np.float32), np.zeros((cells, cells), np.float32)
    areas = (xyxy[:, 2:] - xyxy[:, :2]).prod(axis=1)
    for index in np.argsort(-areas, kind="stable"):
        rows, columns, bump = _bump(xyxy[index], cells)
        place = heat[classes[index], rows, columns]
        np.maximum(place, bump, out=place)
        box[rows, columns][bump > 0] = xyxy[index]
        share = bump * (np.log(max(areas[index], np.e)) / bump.sum())
        weight[rows, columns] = np.where(bump > 0, share, weight[rows, columns])
    return Targets(heat, box, weight)


def _bump(xyxy: Floats, cells: int) -> tuple[slice, slice, Floats]:
    """Where on the grid the Gaussian of one box lies, and its values: 1 in the middle cell."""
    middle = np.minimum((xyxy[:2] + xyxy[2:]) / 2 // STRIDE, cells - 1).astype(int)
    radius = np.ceil((xyxy[2:] - xyxy[:2]) / 2 / STRIDE * SPREAD).astype(int)
    sigma = (2 * radius + 1) / 4
    low, high = np.maximum(middle - radius, 0), np.minimum(middle + radius + 1, cells)
    x, y = (np.exp(-((np.arange(low[i], high[i]) - middle[i]) ** 2) / (2 * sigma[i] ** 2)) for i in (0, 1))
    return slice(low[1], high[1]), slice(low[0], high[0]), np.outer(y, x).astype(np.float32)


def loss_of(outputs: tuple[Tensor, Tensor], heat: Tensor, box: Tensor, weight: Tensor) -> Tensor:
    """One number for a batch; `heat` [b, classes, h, w], `box` [b, h, w, 4], `weight` [b, h, w]."""
    logits, logs = outputs
    objects = heat.eq(1).sum().clamp(min=1)
    heat_loss = _focal(logits.float(), heat) / objects
    taught = weight > 0
    predicted = boxes_of(logs).view_as(box)
    box_loss = (1 - giou(predicted[taught], box[taught])).mul(weight[taught]).sum() / weight.sum().clamp(min=1)
    return heat_loss + BOX_WEIGHT * box_loss


def _focal(logits: Tensor, heat: Tensor) -> Tensor:
    log_yes, log_no = torch.nn.functional.logsigmoid(logits), torch.nn.functional.logsigmoid(-logits)
    yes = logits.sigmoid()
    at_peak = -log_yes * (1 - yes) ** 2
    elsewhere = -log_no * yes**2 * (1 - heat) ** 4
    return torch.where(heat.eq(1), at_peak, elsewhere).sum()


def giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (Rezatofighi et al. 2019) of boxes [n, 4] in pairs: IoU less the share of the hull that neither
    covers, in (-1, 1]."""
    low, high = torch.max(first[:, :2], second[:, :2]), torch.min(first[:, 2:], second[:, 2:])
    overlap = (high - low).clamp(min=0).prod(dim=1)
    union = _area(first) + _area(second) - overlap
    hull = (torch.max(first[:, 2:], second[:, 2:]) - torch.min(first[:, :2], second[:, :2])).prod(dim=1)
    return overlap / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)

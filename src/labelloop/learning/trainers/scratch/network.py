"""A small anchor-free detector: one heat map per class and one box per cell, on a grid of stride 8.

The idea is CenterNet's (Zhou et al. 2019, https://arxiv.org/abs/1904.07850): an object is the peak of a heat map at its
middle. Boxes are distances to the four sides, read at the peak. About 0.6 million parameters; plain convolutions,
because depthwise ones are slow to train on a CPU.

The net sees what `engines/detect` prepares for the family `mmdeploy` (BGR, RTMDet's mean and std), so that its file is
served without a card.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

STRIDE = 8
LARGEST_STRIDE = 32
PRIOR = 0.01
"""What an untrained net thinks of a cell: rare objects, so the first steps are not spent on unlearning (RetinaNet)."""
LARGEST_LOG_DISTANCE = 6.0
"""exp(6) * 8 = 3,227 px: keeps a wild value of the first steps finite."""


class ConvNorm(nn.Module):
    """Convolution, batch normalisation, ReLU."""

    def __init__(self, inside: int, outside: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(outside)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = functional.relu(self.norm(self.conv(x)))
        return result


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = ConvNorm(width, width)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = x + self.body(x)
        return result


class Detector(nn.Module):
    """Pictures [b, 3, h, w], h and w multiples of 32 -> class logits [b, classes, h/8, w/8] and the logarithm of the
    distances left, top, right, bottom [b, 4, h/8, w/8], in cells."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 16, stride=2)
        self.to4 = ConvNorm(16, 32, stride=2)
        self.to8, self.at8 = ConvNorm(32, 64, stride=2), Residual(64)
        self.to16, self.at16 = ConvNorm(64, 96, stride=2), Residual(96)
        self.to32, self.at32 = ConvNorm(96, 128, stride=2), Residual(128)
        self.from32 = ConvNorm(128, 96, kernel=1)
        self.from16 = ConvNorm(96, 64, kernel=1)
        self.heat_tower, self.box_tower = ConvNorm(64, 64), ConvNorm(64, 64)
        self.heat, self.box = nn.Conv2d(64, classes, 1), nn.Conv2d(64, 4, 1)
        nn.init.constant_(self.heat.bias, -math.log((1 - PRIOR) / PRIOR))  # type: ignore[arg-type]
        nn.init.constant_(self.box.bias, math.log(2.0))  # type: ignore[arg-type]

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        at8 = self.at8(self.to8(self.to4(self.stem(pictures))))
        at16 = self.at16(self.to16(at8))
        at32 = self.at32(self.to32(at16))
        at16 = at16 + functional.interpolate(self.from32(at32), scale_factor=2.0, mode="nearest")
        at8 = at8 + functional.interpolate(self.from16(at16), scale_factor=2.0, mode="nearest")
        return self.heat(self.heat_tower(at8)), self.box(self.box_tower(at8))


def cell_centres(height: int, width: int) -> Tensor:
    """The middle (x, y) of each cell of a grid in pixels of the input, [height * width, 2], row by row."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return (torch.stack([x, y], dim=-1).reshape(-1, 2) + 0.5) * STRIDE


def boxes_of(logs: Tensor) -> Tensor:
    """Boxes (left, top, right, bottom) [b, cells, 4] in pixels of the input, from the net's second output."""
    centre = cell_centres(logs.shape[2], logs.shape[3]).to(logs.device)
    distance = logs.float().clamp(max=LARGEST_LOG_DISTANCE).exp().flatten(2).transpose(1, 2) * STRIDE
    return torch.cat([centre - distance[..., :2], centre + distance[..., 2:]], dim=-1)


def peaks(heat: Tensor, logs: Tensor, *, most: int) -> tuple[Tensor, Tensor]:
    """The best `most` peaks: boxes with score [b, k, 5] and classes [b, k], best first. A cell is a peak when none of
    its eight neighbours is higher: this takes the place of most of the non-maximum suppression."""
    scores = heat.float().sigmoid()
    scores = scores * (scores == functional.max_pool2d(scores, 3, stride=1, padding=1))
    cells = scores.shape[2] * scores.shape[3]
    best, index = scores.flatten(1).topk(min(most, scores[0].numel()))
    boxes = boxes_of(logs).gather(1, (index % cells).unsqueeze(-1).expand(-1, -1, 4))
    return torch.cat([boxes, best.unsqueeze(-1)], dim=-1), index // cells

"""A very small RTMDet, exported by torch as MMDeploy exports the real ones: decoding and suppression inside the file.

Backbone, feature pyramid and a head whose convolutions are shared between strides, each with a normalisation of its own;
then sigmoid, distances from the corner of each cell, the best cells, NonMaxSuppression, `dets` and `labels`. Random
weights, 64 x 64 pixels. The suppression is MMDeploy's for one picture, with its mask that fits one picture only.
"""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from reference.tiny_networks import SIDE

WIDTH = 8
STRIDES = (8, 16, 32)
MOST_OF_CLASS, MOST_IOU, LEAST_SCORE = 20, 0.65, 0.001


class Suppress(torch.autograd.Function):
    """The operator NonMaxSuppression for the exporter; what it answers while tracing does not matter."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor) -> Tensor:
        return torch.zeros(3, 3, dtype=torch.int64)

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any) -> Any:
        numbers = (torch.tensor([MOST_OF_CLASS]), torch.tensor([MOST_IOU]), torch.tensor([LEAST_SCORE]))
        return g.op("NonMaxSuppression", boxes, scores, *(g.op("Constant", value_t=number) for number in numbers))


class ConvNorm(nn.Module):
    def __init__(self, into: int, out: int, size: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(into, out, size, stride, size // 2, bias=False)
        self.norm = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.norm(self.conv(x)))


class TinyRTMDet(nn.Module):
    """`factor`: scores are multiplied with an objectness, as in YOLOX's files. `first`: the best so many cells only."""

    def __init__(self, classes: int, *, factor: bool, first: int, most: int, exponential: bool, masked: bool) -> None:
        super().__init__()
        self.classes, self.first, self.most, self.exponential = classes, first, most, exponential
        self.masked = masked
        widths = (3, WIDTH, WIDTH, WIDTH, WIDTH, WIDTH)
        self.down = nn.ModuleList(ConvNorm(into, out, 3, 2) for into, out in itertools.pairwise(widths))
        self.lateral = ConvNorm(WIDTH, WIDTH, 1)
        self.joins = nn.ModuleList(ConvNorm(2 * WIDTH, WIDTH, 1) for _ in STRIDES[1:])
        self.towers = nn.ModuleList(ConvNorm(WIDTH, WIDTH, 3) for _ in range(2 * len(STRIDES)))
        for tower in self.towers[2:]:
            tower.conv = self.towers[0].conv  # shared, the normalisations are not
        self.scores = nn.ModuleList(nn.Conv2d(WIDTH, classes, 1) for _ in STRIDES)
        self.sides = nn.ModuleList(nn.Conv2d(WIDTH, 4, 1) for _ in STRIDES)
        self.factors = nn.ModuleList(nn.Conv2d(WIDTH, 1, 1) for _ in STRIDES) if factor else None
        for side in self.sides:
            nn.init.constant_(side.bias, 0.0 if exponential else 1.0)

    def forward(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        maps = self._pyramid(pictures)
        batch, (scores, sides, points) = pictures.shape[0], self._head(maps)
        scores = torch.cat([one.permute(0, 2, 3, 1).reshape(batch, -1, self.classes) for one in scores], 1).sigmoid()
        sides = torch.cat([one.permute(0, 2, 3, 1).reshape(batch, -1, 4) for one in sides], 1)
        if self.factors is not None:
            factors = [
                layer(one).permute(0, 2, 3, 1).reshape(batch, -1) for layer, one in zip(self.factors, maps, strict=True)
            ]
            scores = scores * torch.cat(factors, 1).sigmoid().unsqueeze(-1)
        points = torch.cat(points)
        corners = [points[..., 0] - sides[..., 0], points[..., 1] - sides[..., 1]]
        corners += [points[..., 0] + sides[..., 2], points[..., 1] + sides[..., 3]]
        if self.masked:
            scores = scores.where(scores.max(1)[0] >= LEAST_SCORE, scores.new_zeros(1))
        return self._rows(torch.stack(corners, -1), scores)

    def _pyramid(self, x: Tensor) -> list[Tensor]:
        maps = []
        for layer in self.down:
            x = layer(x)
            maps.append(x)
        deep = [self.lateral(maps[4])]
        for join, level in zip(self.joins, (3, 2), strict=True):
            large = F.interpolate(deep[-1], scale_factor=2.0, mode="nearest")
            deep.append(join(torch.cat([large, maps[level]], 1)))
        return deep[::-1]

    def _head(self, maps: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        scores, sides, points = [], [], []
        for level, (x, stride) in enumerate(zip(maps, STRIDES, strict=True)):
            scores.append(self.scores[level](self.towers[2 * level](x)))
            side = self.sides[level](self.towers[2 * level + 1](x))
            sides.append((side.exp() if self.exponential else side) * stride)
            y, x = (torch.arange(x.shape[axis]) * stride for axis in (2, 3))
            grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], -1)
            points.append(grid.reshape(-1, 2).float())
        return scores, sides, points

    def _rows(self, boxes: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:
            size = torch.tensor(self.first).where(
                torch.tensor(self.first) < boxes.shape[1], torch.tensor(boxes.shape[1])
            )
            index = scores.max(-1)[0].squeeze(0).topk(size)[1]
            boxes, scores = boxes[:, index], scores[:, index]
        scores = scores.permute(0, 2, 1)
        chosen = Suppress.apply(boxes, scores)
        label, cell = chosen[:, 1], chosen[:, 2]
        dets = torch.cat([boxes[:, cell], scores[:, label, cell].unsqueeze(2)], 2)
        dets = torch.cat([dets, dets.new_zeros(1, 1, 5)], 1)
        labels = torch.cat([label.unsqueeze(0), label.new_zeros(1, 1)], 1)
        count = torch.tensor(self.most).where(torch.tensor(self.most) < dets.shape[1], torch.as_tensor(dets.shape[1]))
        order = dets[..., 4].topk(count, dim=1)[1].squeeze(0)
        return dets[:, order], labels[:, order]


def tiny_rtmdet(
    path: Path,
    *,
    classes: int = 4,
    free: bool = False,
    factor: bool = False,
    first: int = 0,
    most: int = 30,
    exponential: bool = False,
    masked: bool = True,
    opset: int = 11,
    seed: int = 0,
) -> Path:
    """`free`: batch, height and width are free in the file."""
    torch.manual_seed(seed)
    net = TinyRTMDet(classes, factor=factor, first=first, most=most, exponential=exponential, masked=masked).eval()
    axes = {
        "input": {0: "batch", 2: "height", 3: "width"},
        "dets": {0: "batch", 1: "k"},
        "labels": {0: "batch", 1: "k"},
    }
    with warnings.catch_warnings():  # of tracing, and of the older exporter, which is what MMDeploy uses
        warnings.simplefilter("ignore")
        torch.onnx.export(
            net,
            (torch.zeros(1, 3, SIDE, SIDE),),
            str(path),
            input_names=["input"],
            output_names=["dets", "labels"],
            dynamic_axes=axes if free else None,
            opset_version=opset,
            dynamo=False,
        )
    return path

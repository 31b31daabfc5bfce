"""Train with a program of your own: the smallest detector that labelloop can serve, in plain torch.

    labelloop's trainer `command`, with the option `command: python /path/to/train_command.py`

The program learns from the environment what to do, prints progress as lines of JSON, and leaves an ONNX file of a
family that labelloop recognises. This one answers as DETR does: `logits` [b, cells, classes] and `pred_boxes`
[b, cells, 4] (centre and size as fractions of the picture), one answer for each cell of a grid. Put your own framework
in its place.
"""

import itertools
import json
import os
import time
import warnings
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn

SIDE, STRIDE = 256, 16
CELLS = SIDE // STRIDE


class Net(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        widths = (3, 16, 32, 64, 64)
        layers = [
            layer
            for inside, outside in itertools.pairwise(widths)
            for layer in (nn.Conv2d(inside, outside, 3, 2, 1), nn.BatchNorm2d(outside), nn.ReLU())
        ]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 64, 3, 1, 1), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(64, classes, 1), nn.Conv2d(64, 4, 1)
        nn.init.constant_(self.classes.bias, -4.0)
        rows, columns = torch.meshgrid(torch.arange(CELLS), torch.arange(CELLS), indexing="ij")
        self.register_buffer("middles", ((torch.stack([columns, rows], -1) + 0.5) / CELLS).reshape(1, -1, 2))

    def forward(self, pictures: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(pictures)
        raw = self.boxes(features).flatten(2).transpose(1, 2)
        boxes = torch.cat([self.middles + raw[..., :2].tanh() / CELLS, raw[..., 2:].sigmoid()], -1)
        logits = self.classes(features).flatten(2).transpose(1, 2)
        # spelt out, so that the file says its shapes: that is what its family is recognised by
        return logits.reshape(-1, CELLS**2, self.classes.out_channels), boxes.reshape(-1, CELLS**2, 4)


def load(data: Path, labels: list[str]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pictures [n, 3, SIDE, SIDE] in [0, 1]; wanted classes [n, cells, classes] and boxes [n, cells, 4], 0 for none."""
    coco = json.loads((data / "train.json").read_text())
    names = {category["id"]: category["name"] for category in coco["categories"]}
    places = {image["id"]: index for index, image in enumerate(coco["images"])}
    pictures = np.empty((len(places), 3, SIDE, SIDE), np.float32)
    for image in coco["images"]:
        rgb = cv2.imread(str(data / "images" / image["file_name"]), cv2.IMREAD_COLOR_RGB)
        pictures[places[image["id"]]] = cv2.resize(rgb, (SIDE, SIDE)).transpose(2, 0, 1) / 255
    classes = torch.zeros(len(places), CELLS * CELLS, len(labels))
    boxes = torch.zeros(len(places), CELLS * CELLS, 4)
    sizes = {image["id"]: (image["width"], image["height"]) for image in coco["images"]}
    for row in coco["annotations"]:
        (x, y, w, h), (width, height) = row["bbox"], sizes[row["image_id"]]
        centre_x, centre_y = (x + w / 2) / width, (y + h / 2) / height
        cell = int(centre_y * CELLS) * CELLS + int(centre_x * CELLS)
        classes[places[row["image_id"]], cell, labels.index(names[row["category_id"]])] = 1
        boxes[places[row["image_id"]], cell] = torch.tensor([centre_x, centre_y, w / width, h / height])
    return torch.from_numpy(pictures), classes, boxes


def main() -> None:
    began, budget_s = time.monotonic(), float(os.environ["TRAIN_BUDGET_S"])
    labels = Path(os.environ["TRAIN_LABELS"]).read_text().splitlines()
    torch.manual_seed(int(os.environ["TRAIN_SEED"]))
    pictures, classes, boxes = load(Path(os.environ["TRAIN_DATA"]), labels)
    net = Net(len(labels))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    step = 0
    while time.monotonic() - began < 0.8 * budget_s:
        chosen = torch.randint(len(pictures), (8,))
        logits, predicted = net(pictures[chosen])
        objects = classes[chosen].sum().clamp(min=1)
        class_loss = nn.functional.binary_cross_entropy_with_logits(logits, classes[chosen], reduction="sum")
        taught = classes[chosen].amax(-1) > 0
        box_loss = (predicted[taught] - boxes[chosen][taught]).abs().sum()
        loss = (class_loss + 5 * box_loss) / objects
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        print(json.dumps({"step": step, "loss": loss.item(), "seconds": time.monotonic() - began}), flush=True)

    model = Path(os.environ["TRAIN_MODEL"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is the older one, and needs no further package
        torch.onnx.export(
            net.eval(),
            (pictures[:1],),
            str(model),
            input_names=["pictures"],
            output_names=["logits", "pred_boxes"],
            dynamic_axes={name: {0: "batch"} for name in ("pictures", "logits", "pred_boxes")},
            dynamo=False,
        )
    # what the file does not say: neighbouring cells may answer for the same object
    model.with_suffix(".yaml").write_text("iou_threshold: 0.5\n")


if __name__ == "__main__":
    main()

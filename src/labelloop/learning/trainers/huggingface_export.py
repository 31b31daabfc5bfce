"""A trained RT-DETR or D-FINE as one ONNX file of the family `detr-raw`, and whether that answers as the folder does.

What a tracer writes down may be wrong without a word, so the file is served beside the folder before it counts. Two
things are asked of it, on held-out pictures where there are any:

- On the same pixels, at the network's size, the boxes that somebody may see are the same (`MATCHED_FROM`, `MOST_…`).
  Nothing differs there but rounding: at most 2e-4 pixels and 4e-6 of a score (D-FINE, 20 million weights, 640 x 640).
  Much more than that is a wrong graph.
- On the pictures as they are it finds as much (`MOST_AP_LOST`). Both sides resize themselves, transformers smoothly
  with Pillow, `detect` as in training, so single boxes move by a pixel; their AP should not.

The tracer is the older one of torch (`dynamo=False`). The newer one wants onnxscript and transformers' checks switched
off, and took five to seven times as long (torch 2.13).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size
from labelloop.engines.base import Engine, EngineOptions
from labelloop.engines.detect.prepare import prepare
from labelloop.learning.detections import Found, Truth, match
from labelloop.learning.matching import pairs
from labelloop.learning.measures import IOU_THRESHOLDS, average_precisions
from labelloop.learning.trainers.base import TrainerFailed, TrainRequest, replace_file
from labelloop.learning.trainers.views import MAX_PIXELS, Sample, read_samples
from labelloop.media.image import decode

OPSET = 17
"""The first with all that is needed is 16 (GridSample)."""
WITNESSES = 24
FEWEST = 4
"""Pictures that are compared, and how many of them although time is up."""
BATCH = 2
"""Pictures that the file is given at a time: its batch is free, and that may be what a tracer gets wrong."""
MATCHED_FROM = 0.1
"""Boxes with this score or more must be the same: a third of the threshold that people see boxes from by default."""
SAME_SHARE = 0.99
"""Not all: a query at the end of the best 300 may give its place to another."""
MOST_PIXELS_APART = 0.1
"""Of the network's input. Label Studio keeps percents, and nobody draws that well."""
MOST_SCORE_APART = 1e-3
"""Label Studio shows two decimals."""
MOST_AP_LOST = 0.01


class Parity(NamedTuple):
    """What the file and the folder said about the same pictures. `share` of `boxes` had a partner within the limits;
    `pixels` and `score` are the largest differences of partners. `ap` and `folder_ap` are None where nobody drew a box;
    `cpu_s` and `folder_cpu_s` are processor seconds per picture."""

    pictures: int
    boxes: int
    share: float
    pixels: float
    score: float
    ap: float | None
    folder_ap: float | None
    cpu_s: float
    folder_cpu_s: float

    @property
    def metrics(self) -> dict[str, float]:
        lost = {} if self.ap is None or self.folder_ap is None else {"export_ap_lost": self.folder_ap - self.ap}
        return {
            "export_same_boxes": self.share,
            "export_pixels_apart": self.pixels,
            "export_score_apart": self.score,
            **lost,
        }

    @property
    def sentence(self) -> str:
        aps = "" if self.ap is None or self.folder_ap is None else f", AP {self.ap:.3f} for {self.folder_ap:.3f}"
        return (
            f"{self.share:.1%} of {self.boxes} boxes on {self.pictures} pictures are the same, at most "
            f"{self.pixels:.4f} pixels and {self.score:.5f} of a score apart{aps}; "
            f"{self.cpu_s:.2f} s of processor time a picture for {self.folder_cpu_s:.2f} s"
        )

    def check(self) -> None:
        """Raises TrainerFailed when the file does not answer as the folder does, or nothing could be compared."""
        if not self.boxes:
            raise TrainerFailed(
                f"nothing was found on {self.pictures} pictures with a score of {MATCHED_FROM} or more, so nothing "
                "can be compared"
            )
        if self.share < SAME_SHARE:
            raise TrainerFailed(f"{self.sentence}; {SAME_SHARE:.0%} are needed")
        if self.ap is not None and self.folder_ap is not None and not self.ap >= self.folder_ap - MOST_AP_LOST:
            raise TrainerFailed(f"{self.sentence}; at most {MOST_AP_LOST} of AP may be lost")


def export(model: Any, spec: InputSpec, labels: Sequence[str], target: Path) -> None:
    """Write `model` (of transformers, on the CPU) as one ONNX file: `pixel_values` [b, 3, h, w] of the size in `spec`,
    `logits` [b, k, c], `pred_boxes` [b, k, 4], and the class names in its metadata. Raises whatever torch raises."""
    import onnx
    import torch

    class Outputs(torch.nn.Module):
        """Nothing but what the decoder reads."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pixel_values: Any) -> tuple[Any, Any]:
            found = self.model(pixel_values=pixel_values)
            return found.logits, found.pred_boxes

    width, height = spec.size_wh or (640, 640)
    outputs = ["logits", "pred_boxes"]

    def write(path: Path) -> None:
        with warnings.catch_warnings():  # of tracing: everything but the batch is fixed on purpose
            warnings.simplefilter("ignore")
            torch.onnx.export(
                Outputs().eval(),  # the tracer leaves the model in the mode that this one is in
                (torch.zeros(BATCH, 3, height, width),),
                str(path),
                input_names=["pixel_values"],
                output_names=outputs,
                dynamic_axes={name: {0: "batch"} for name in ("pixel_values", *outputs)},
                opset_version=OPSET,
                dynamo=False,
            )
        written = onnx.load(path)
        written.metadata_props.add(key="names", value=str(dict(enumerate(labels))))
        onnx.checker.check_model(written)
        onnx.save(written, path)

    replace_file(target, write)


def compare(
    folder: tuple[Path, ModelCard], file: tuple[Path, ModelCard], request: TrainRequest, *, until: float
) -> Parity:
    """Serve pictures with both: held-out ones, or those that were trained on where there are none. Ends at `until`, a
    `time.monotonic()`. Raises LabelloopErrors of the engines."""
    from labelloop.engines.detect import DetectEngine
    from labelloop.engines.huggingface import TransformersEngine

    options = EngineOptions(device="cpu", threads=1, max_batch=BATCH)
    sides = (TransformersEngine(*folder, options), DetectEngine(*file, options))
    samples = read_samples(request.data, "val", request.labels) or read_samples(request.data, "train", request.labels)
    sums = _Sums(request.labels)
    for start in range(0, min(len(samples), WITNESSES), BATCH):
        if start >= FEWEST and time.monotonic() > until:
            break
        sums.add(samples[start : start + BATCH], sides, file[1].input)
    return sums.parity()


class _Sums:
    """What was seen so far."""

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = tuple(labels)
        self._samples: list[Sample] = []
        self._found: tuple[list[Sequence[Region]], list[Sequence[Region]]] = ([], [])
        self._cpu_s = [0.0, 0.0]
        self._same = self._boxes = 0
        self._apart = np.zeros(2)

    def add(self, samples: Sequence[Sample], sides: tuple[Engine, Engine], spec: InputSpec) -> None:
        pictures = [decode(sample.path.read_bytes(), max_pixels=MAX_PIXELS) for sample in samples]
        small = [_as_network_sees(picture, spec) for picture in pictures]
        for one, other in zip(*(_answers(engine, small) for engine in sides), strict=True):
            self._match(one, other)
        for number, engine in enumerate(sides):
            begun = time.process_time()
            self._found[number].extend(_answers(engine, pictures))
            self._cpu_s[number] += time.process_time() - begun
        self._samples.extend(samples)

    def _match(self, said: Sequence[Region], other: Sequence[Region]) -> None:
        """Every box that counts on either side needs a partner, which may count a little less."""
        one = _once(said)
        partners = {column: row for row, column, _ in pairs(one, other)}
        apart = {row: _apart(one[row], other[column]) for column, row in partners.items()}
        seen = [row for row, region in enumerate(one) if _score(region) >= MATCHED_FROM]
        # transformers gives its best k answers, and a second class of one box may push another box out
        lowest = max([MATCHED_FROM, *map(_score, said[-1:])])
        lone = sum(_score(region) > lowest and column not in partners for column, region in enumerate(other))
        self._same += sum(row in apart and _within(apart[row]) for row in seen)
        self._boxes += len(seen) + lone
        known = [apart[row] for row in seen if row in apart]
        self._apart = np.array([*known, self._apart.tolist()]).max(axis=0)

    def parity(self) -> Parity:
        pictures = len(self._samples)
        theirs, ours = (self._ap(found) for found in self._found)
        theirs_s, ours_s = (seconds / max(pictures, 1) for seconds in self._cpu_s)
        share = self._same / self._boxes if self._boxes else 0.0
        pixels, score = map(float, self._apart)
        return Parity(pictures, self._boxes, share, pixels, score, ours, theirs, ours_s, theirs_s)

    def _ap(self, found: Sequence[Sequence[Region]]) -> float | None:
        matches = match(self._truth(), _found(found, self._labels), iou_thresholds=IOU_THRESHOLDS["AP"])
        value = float(average_precisions(matches, np.ones((1, len(found))))[0])
        return None if np.isnan(value) else value

    def _truth(self) -> Truth:
        sizes = [len(sample.labels) for sample in self._samples]
        xyxy = np.concatenate([sample.xyxy for sample in self._samples]).astype(np.float64)
        return Truth(
            pictures=len(self._samples),
            labels=self._labels,
            picture=np.repeat(np.arange(len(sizes)), sizes),
            label=np.concatenate([sample.labels for sample in self._samples]).astype(np.intp),
            xywh=np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1),
            crowd=np.zeros(sum(sizes), bool),
        )


def _as_network_sees(picture: Picture, spec: InputSpec) -> Picture:
    """The picture at the network's size: no engine has anything to resize then."""
    planes = prepare(picture, msgspec.structs.replace(spec, color="rgb")).planes
    return Picture(np.ascontiguousarray(planes.transpose(1, 2, 0)), Size(planes.shape[2], planes.shape[1]))


def _answers(engine: Engine, pictures: Sequence[Picture]) -> list[tuple[Region, ...]]:
    return engine.predict([engine.prepare(picture) for picture in pictures])


def _once(regions: Sequence[Region]) -> list[Region]:
    """Best first, without what is said again about the same box: transformers names it by every class that is likely,
    `detect` by the likeliest."""
    seen: dict[Any, Region] = {}
    for region in regions:
        seen.setdefault(region.shape, region)
    return list(seen.values())


def _score(region: Region) -> float:
    return region.score or 0.0


def _apart(one: Region, other: Region) -> tuple[float, float]:
    """Pixels and score."""
    assert isinstance(one.shape, Box)
    assert isinstance(other.shape, Box)
    pixels = np.abs(np.subtract(one.shape.xyxy, other.shape.xyxy)).max()
    return float(pixels), abs(_score(one) - _score(other))


def _within(apart: tuple[float, float]) -> bool:
    return apart[0] <= MOST_PIXELS_APART and apart[1] <= MOST_SCORE_APART


def _found(pictures: Sequence[Sequence[Region]], labels: Sequence[str]) -> Found:
    rows = [(number, region) for number, regions in enumerate(pictures) for region in regions]
    xyxy = np.array([region.shape.xyxy for _, region in rows if isinstance(region.shape, Box)], float).reshape(-1, 4)
    return Found(
        picture=np.array([number for number, _ in rows], np.intp),
        label=np.array([labels.index(region.label or "") for _, region in rows], np.intp),
        score=np.array([_score(region) for _, region in rows], np.float64),
        xywh=np.concatenate([xyxy[:, :2], xyxy[:, 2:] - xyxy[:, :2]], axis=1),
        drawn=np.ones(len(rows), bool),
    )

"""Precision at each recall as COCO's code computes it (faster-coco-eval).

Its C++ keeps the interpreter's lock: 100 ms for 26,000 detections, and 150 more for loading them and itself, in which
the event loop of a server answers no webhook and no prediction. So where much was found another process does it.
"""

from __future__ import annotations

import importlib.util
import io
import os
import subprocess
import sys
from typing import Any

import numpy as np
import structlog

from labelloop.core.errors import ModelError
from labelloop.learning.detections import MOST_PER_PICTURE, Floats, Found, Truth

log = structlog.get_logger(__name__)

RECALLS = np.linspace(0.0, 1.0, 101)
THRESHOLDS = 10
"""IoU 0.50, 0.55, … 0.95."""
APART_FROM = 2_000
"""Detections; up to there it takes some 10 ms here, and a process half a second."""
LONGEST_S = 300.0
_START = "from labelloop.learning.coco_figures import main; main()"


def require() -> None:
    """Raise ModelError where faster-coco-eval is not installed: before a training, rather than after it."""
    if importlib.util.find_spec("faster_coco_eval") is None:
        hint = 'Install it: pip install "labelloop[train]"'
        raise ModelError("Measuring a model needs faster-coco-eval.", hint=hint)


def precisions(truth: Truth, found: Found) -> Floats:
    """Precision [classes, IoU thresholds, recalls], made monotone; 0 where nothing is to be found. Raises ModelError
    where faster-coco-eval is not installed."""
    if not len(found.score) or not truth.boxes:
        return np.zeros((len(truth.labels), THRESHOLDS, len(RECALLS)))
    require()
    if len(found.score) <= APART_FROM:
        return _here(truth, found)
    try:
        return _apart(truth, found)
    except (OSError, ValueError, subprocess.SubprocessError) as error:  # no room for another process, for instance
        log.warning("measured in this process", error=f"{type(error).__name__}: {error}")
        return _here(truth, found)


def _here(truth: Truth, found: Found) -> Floats:
    from faster_coco_eval import COCO, COCOeval_faster

    coco = COCO(_as_coco(truth))
    evaluation = COCOeval_faster(coco, coco.loadRes(_results(found)), "bbox", print_function=lambda *_: None)
    evaluation.params.maxDets = [1, 10, MOST_PER_PICTURE]
    evaluation.evaluate()
    evaluation.accumulate()
    # [IoU thresholds, recalls, classes, areas, most detections]: all areas, and the largest number of detections
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    return np.asarray(np.maximum(precision, 0.0).transpose(2, 0, 1))


def _apart(truth: Truth, found: Found) -> Floats:
    """The same, by another process of this interpreter. Raises OSError, SubprocessError, and ValueError for an answer
    that is none."""
    asked = io.BytesIO()
    told: dict[str, Any] = {f"truth_{name}": value for name, value in truth._asdict().items() if name != "labels"}
    told |= {f"found_{name}": value for name, value in found._asdict().items()}
    np.savez(asked, labels=np.arange(len(truth.labels)), **told)
    argv = [sys.executable, "-P", "-c", _START]  # -P: no module of the working directory stands before ours
    done = subprocess.run(argv, input=asked.getvalue(), capture_output=True, timeout=LONGEST_S, check=True)
    return np.asarray(np.load(io.BytesIO(done.stdout), allow_pickle=False), np.float64)


def main() -> None:
    """The other end of `_apart`: arrays on stdin, an array on stdout."""
    os.nice(10)
    told = np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False)
    part = {name: told[name] for name in told.files}
    truth = Truth(
        int(part["truth_pictures"]),
        tuple(map(str, part["labels"])),
        *(part[f"truth_{name}"] for name in Truth._fields[2:]),
    )
    found = Found(*(part[f"found_{name}"] for name in Found._fields))
    answer = io.BytesIO()
    np.save(answer, _here(truth, found))
    sys.stdout.buffer.write(answer.getvalue())


def _as_coco(truth: Truth) -> dict[str, Any]:
    rows = zip(truth.picture.tolist(), truth.label.tolist(), truth.xywh.tolist(), truth.crowd.tolist(), strict=True)
    return {
        "images": [{"id": number} for number in range(truth.pictures)],
        "categories": [{"id": number, "name": label} for number, label in enumerate(truth.labels)],
        "annotations": [
            {"id": number, "image_id": picture, "category_id": label, "bbox": xywh, "area": xywh[2] * xywh[3],
             "iscrowd": int(crowd)}
            for number, (picture, label, xywh, crowd) in enumerate(rows, 1)
        ],
    }  # fmt: skip


def _results(found: Found) -> list[dict[str, Any]]:
    rows = zip(found.picture.tolist(), found.label.tolist(), found.xywh.tolist(), found.score.tolist(), strict=True)
    return [
        {"image_id": picture, "category_id": label, "bbox": xywh, "score": score}
        for picture, label, xywh, score in rows
    ]

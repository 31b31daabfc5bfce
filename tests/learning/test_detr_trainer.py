"""Trainers `head` and `full` on detectors with a decoder: the real DEIMv2-atto, and the layouts of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.labels import COCO
from labelloop.learning.trainers import export
from labelloop.learning.trainers.base import Progress, TrainerRefused, TrainRequest
from labelloop.learning.trainers.detector import open_detector
from labelloop.learning.trainers.detr import Detr
from labelloop.learning.trainers.full import FullTrainer
from labelloop.learning.trainers.head import HeadTrainer
from labelloop.learning.trainers.onnx_graph import free_batch, read_graph
from labelloop.learning.trainers.onnx_torch import open_session
from reference.belt import LABELS, write_squares

SIDE = 320


@pytest.fixture
def file(shared: Path) -> Path:
    return shared / "data/models/deimv2_atto_320.onnx"


def request(
    folder: Path, base: Path, *, labels: tuple[str, ...] = LABELS, old: Any = COCO, **more: Any
) -> TrainRequest:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    data = folder / "data"
    if not data.exists():
        write_squares(data)
    card = ModelCard(name="atto", labels=old)
    fields = {"options": {"max_steps": 2, "batch": 2}, "budget_s": 600.0, "threads": 1} | more
    return TrainRequest(data=data, labels=labels, out=out, base=base, base_card=card, **fields)


def test_a_short_run_learns_and_leaves_a_file_that_is_served(tmp_path: Path, file: Path) -> None:
    """The last picture of the data set is empty."""
    losses: list[float] = []

    def follow(progress: Progress) -> None:
        losses.extend([progress.loss] if progress.loss is not None else [])

    asked = request(tmp_path, file, options={"max_steps": 24, "batch": 4})
    assert HeadTrainer().refuses(asked) is None
    trained = HeadTrainer().train(asked, follow)
    assert losses[-1] < 0.8 * losses[0]
    assert trained.metrics["pixels_apart"] <= export.MOST_PIXELS_APART
    assert trained.metrics["score_apart"] <= export.MOST_SCORE_APART
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu"))
    assert (engine.classes, trained.card.family) == (LABELS, "detr")
    rgb = np.asarray(cv2.imread(str(asked.data / "images/0.png"), cv2.IMREAD_COLOR_RGB))
    found = engine.predict([engine.prepare(Picture(rgb=rgb, size=Size(64, 64)))])[0]
    assert {region.label for region in found} == set(LABELS)

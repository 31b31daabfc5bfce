"""Trainers `head` and `full` on networks of 64 x 64 pixels: they learn, they leave a file that is served, they go on."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import LabelloopError, ModelError
from labelloop.core.geometry import iou
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size
from labelloop.core.settings import Settings
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.labels import placeholders
from labelloop.learning.trainers import process
from labelloop.learning.trainers.base import (
    Progress,
    Stopped,
    Trained,
    TrainerError,
    TrainerFailed,
    TrainerRefused,
    TrainRequest,
)
from labelloop.learning.trainers.finetune import export
from labelloop.learning.trainers.finetune.detector import open_detector
from labelloop.learning.trainers.finetune.onnx_graph import read_graph
from labelloop.learning.trainers.full import FullTrainer
from labelloop.learning.trainers.head import HeadTrainer
from labelloop.serving.models import add_model, open_registry
from reference.belt import LABELS, write_squares
from reference.tiny_networks import SIDE, tiny_nanodet, tiny_v8, tiny_yolox
from reference.tiny_rtmdet import tiny_rtmdet

TINY = {"yolox": tiny_yolox, "nanodet": tiny_nanodet, "ultralytics-v8": tiny_v8, "mmdeploy": tiny_rtmdet}
QUICK = {"max_steps": 12, "batch": 4}


def request(tmp_path: Path, family: str = "yolox", *, labels: tuple[str, ...] = LABELS, **more: Any) -> TrainRequest:
    data, out = tmp_path / "data", tmp_path / "out"
    if not data.exists():
        write_squares(data)
    out.mkdir(exist_ok=True)
    base = TINY[family](tmp_path / f"{family}.onnx")
    card = ModelCard(name="tiny", family=family, labels=placeholders(4))
    fields = {"options": QUICK, "budget_s": 60.0, "threads": 1} | more
    return TrainRequest(data=data, labels=labels, out=out, base=base, base_card=card, **fields)


def ignore(_: Progress) -> None:
    """Nobody follows."""


def served(trained: Trained, picture: np.ndarray) -> tuple[Region, ...]:
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu"))
    prepared = engine.prepare(Picture(rgb=picture, size=Size(picture.shape[1], picture.shape[0])))
    return engine.predict([prepared])[0]


def picture_of(asked: TrainRequest, number: int = 0) -> np.ndarray:
    return np.asarray(cv2.imread(str(asked.data / "images" / f"{number}.png"), cv2.IMREAD_COLOR_RGB))


@pytest.mark.parametrize("family", TINY)
@pytest.mark.parametrize(
    ("trainer", "part"),
    [(HeadTrainer, "neck"), (HeadTrainer, "head"), (FullTrainer, "neck")],
    ids=["neck", "head", "full"],
)
def test_a_short_run_learns_and_leaves_a_file_that_is_served(
    tmp_path: Path, family: str, trainer: type[HeadTrainer], part: str
) -> None:
    options = {"max_steps": 40, "batch": 4, "rate": 5e-3, "class_rate": 5e-3, "part": part}
    losses: list[float] = []
    asked = request(tmp_path, family, options=options)
    trained = trainer().train(asked, lambda progress: losses.append(progress.loss) if progress.loss else None)
    assert len(losses) == 40
    assert losses[-1] < losses[0]
    assert trained.card.labels == LABELS
    assert trained.metrics["pixels_apart"] <= export.MOST_PIXELS_APART
    assert trained.metrics["score_apart"] <= export.MOST_SCORE_APART
    assert {region.label for region in served(trained, picture_of(asked))} <= set(LABELS)
    assert DetectEngine(trained.model, trained.card, EngineOptions(device="cpu")).classes == LABELS


@pytest.mark.slow
def test_it_finds_the_squares(tmp_path: Path) -> None:
    """All weights, from noise: the best region of each label lies on the square of that label."""
    asked = request(tmp_path, options={"max_steps": 400, "batch": 8, "rate": 3e-3, "class_rate": 3e-3})
    trained = FullTrainer().train(asked, ignore)
    overlaps = []
    for one in json.loads((asked.data / "train.json").read_text())["annotations"]:
        left, top, width, height = one["bbox"]
        label, found = LABELS[one["category_id"]], served(trained, picture_of(asked, one["image_id"]))
        best = next((region.shape.xyxy for region in found if region.label == label), (0, 0, 0, 0))
        drawn = np.array([[left, top, left + width, top + height]], np.float64)
        overlaps.append(iou(np.array([best], np.float64), drawn)[0, 0])
    assert np.mean(overlaps) > 0.7


def test_in_its_child_process_and_then_in_the_registry(tmp_path: Path) -> None:
    """As the product does it."""
    asked = request(tmp_path)
    trained = process.run("head", asked)
    registry = open_registry(Settings(home=tmp_path / "home"))
    version = add_model(registry, trained.model, trained.card, Settings(home=tmp_path / "home"), trained=True)
    assert (version.card.family, version.card.labels) == ("yolox", LABELS)
    path = registry.path(version)
    assert path is not None
    assert served(Trained(path, version.card), picture_of(asked)) == served(trained, picture_of(asked))


def test_the_same_seed_gives_the_same_file(tmp_path: Path) -> None:
    asked = request(tmp_path)
    first = HeadTrainer().train(asked, ignore).model.read_bytes()
    asked.checkpoint.unlink(missing_ok=True)
    assert HeadTrainer().train(asked, ignore).model.read_bytes() == first
    other = msgspec.structs.replace(asked, seed=1)
    assert HeadTrainer().train(other, ignore).model.read_bytes() != first


def test_a_stopped_run_goes_on_where_it_was_and_ends_as_if_it_had_not_stopped(tmp_path: Path) -> None:
    asked = request(tmp_path)
    whole = HeadTrainer().train(asked, ignore).model.read_bytes()

    def stop(progress: Progress) -> None:
        if progress.step == 5:
            raise Stopped

    with pytest.raises(Stopped):
        HeadTrainer().train(asked, stop)
    assert asked.checkpoint.is_file()
    steps: list[int] = []
    trained = HeadTrainer().train(asked, lambda progress: steps.append(progress.step))
    assert next(step for step in steps if step) == 6
    assert trained.model.read_bytes() == whole


@pytest.mark.parametrize("damage", ["another request", "cut off"])
def test_a_checkpoint_that_is_not_ours_or_not_whole_is_left_alone(tmp_path: Path, damage: str) -> None:
    asked = request(tmp_path)
    count = itertools.count()

    def stop(_: Progress) -> None:
        if next(count) == 30:
            raise Stopped

    with pytest.raises(Stopped):
        HeadTrainer().train(asked, stop)
    if damage == "cut off":
        os.truncate(asked.checkpoint, 100)
    else:
        asked = msgspec.structs.replace(asked, seed=3)
    steps: list[int] = []
    HeadTrainer().train(asked, lambda progress: steps.append(progress.step))
    assert next(step for step in steps if step) == 1


def test_time_ends_a_run_too(tmp_path: Path) -> None:
    trained = HeadTrainer().train(request(tmp_path, options={"batch": 2}, budget_s=3.0), ignore)
    assert trained.metrics["steps"] >= 1
    assert trained.model.is_file()


def test_few_pictures_end_a_run_before_its_time(tmp_path: Path) -> None:
    asked = request(tmp_path, options={"epochs": 2, "batch": 4}, budget_s=300.0)
    pictures = len(json.loads((asked.data / "train.json").read_text())["images"])
    trained = HeadTrainer().train(asked, ignore)
    assert trained.metrics["steps"] == -(-2 * pictures // 4)


@pytest.mark.parametrize(("family", "weight", "bias"), [("yolox", 0.0, 0.0), ("nanodet", None, -1.0)])
def test_labels_that_the_model_knows_keep_their_rows(
    tmp_path: Path, family: str, weight: float | None, bias: float
) -> None:
    """The others start alike: at the objectness, or where there is none at the mean of the old ones."""
    asked = request(tmp_path, family, labels=("dark", "Class_2", "bright"))
    assert asked.base is not None
    before = read_graph(asked.base, size_wh=(SIDE, SIDE))
    after = open_detector(asked, part="neck")
    for layer in after.layers.classes:
        old, new = (graph.constants[layer.weights[0]][layer.start :] for graph in (before, after.graph))
        np.testing.assert_array_equal(new[1], old[2])
        for row in (0, 2):
            np.testing.assert_allclose(new[row], old[:4].mean(axis=0) if weight is None else weight, atol=1e-6)
            assert after.graph.constants[layer.weights[1]][layer.start + row] == pytest.approx(bias)


def test_a_picture_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    asked = request(tmp_path)
    (asked.data / "images/0.png").write_bytes(b"no picture")
    (asked.data / "images/1.png").unlink()
    trained = HeadTrainer().train(asked, ignore)
    assert trained.metrics["views"] == 20


def test_no_picture_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    asked = request(tmp_path)
    for path in (asked.data / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(TrainerError, match="None of the pictures"):
        HeadTrainer().train(asked, ignore)


def test_a_file_that_differs_from_what_was_trained_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "write_back", lambda graph, weights: None)
    asked = request(tmp_path, options=QUICK | {"rate": 1e-2})
    with pytest.raises(TrainerFailed, match="does not answer as the trained model"):
        HeadTrainer().train(asked, ignore)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"base": None}, "no model to start from"),
        ({"base_card": ModelCard(name="m", family="torchvision")}, "no recipe for models of the family torchvision"),
    ],
    ids=["cold start", "a family without a recipe"],
)
def test_what_it_cannot_do_it_says(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    asked = msgspec.structs.replace(request(tmp_path), **change)
    for trainer in (HeadTrainer(), FullTrainer()):
        assert why in (trainer.refuses(asked) or "")
    with pytest.raises(LabelloopError):
        HeadTrainer().train(asked, ignore)
    assert HeadTrainer().refuses(request(tmp_path)) is None


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed, match="diverged"):
        HeadTrainer().train(request(tmp_path, options=QUICK | {"rate": 1e30, "class_rate": 1e30}), ignore)


def test_the_cut_can_be_named(tmp_path: Path) -> None:
    found = open_detector(request(tmp_path), part="neck").cut
    assert found is not None
    HeadTrainer().train(request(tmp_path, options=QUICK | {"cut": list(found.values)}), ignore)
    with pytest.raises(TrainerRefused, match="end of the backbone"):
        HeadTrainer().train(request(tmp_path, options=QUICK | {"cut": list(reversed(found.values))}), ignore)


def test_an_option_that_is_misspelt_is_named(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="Did you mean 'batch'"):
        HeadTrainer().train(request(tmp_path, options={"bacth": 3}), ignore)


def test_a_category_that_is_no_label_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TrainerError, match="not the data set"):
        HeadTrainer().train(request(tmp_path, labels=("bright",)), ignore)


def test_a_card_of_another_file_is_refused(tmp_path: Path) -> None:
    asked = msgspec.structs.replace(request(tmp_path), base_card=ModelCard(name="m", labels=("one",)))
    with pytest.raises(ModelError, match="class names"):
        HeadTrainer().train(asked, ignore)

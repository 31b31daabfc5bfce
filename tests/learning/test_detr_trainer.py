"""Trainers `head` and `full` on detectors with a decoder: the real DEIMv2-atto, and the layouts of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.detect.head import Found
from labelloop.engines.labels import COCO
from labelloop.learning.trainers.base import Progress, TrainerRefused, TrainRequest
from labelloop.learning.trainers.finetune import export
from labelloop.learning.trainers.finetune.detector import open_detector
from labelloop.learning.trainers.finetune.onnx_torch import open_session
from labelloop.learning.trainers.full import FullTrainer
from labelloop.learning.trainers.head import HeadTrainer
from reference import tiny_models
from reference.belt import LABELS, write_squares

SIDE = 320
LOGITS, BOXES = "/model/decoder/Gather_7_output_0", "/postprocessor/Concat_output_0"
TOLD = 300


@pytest.fixture
def file(shared: Path) -> Path:
    return shared / "data/models/deimv2_atto_320.onnx"


def request(folder: Path, base: Path, *, labels: tuple[str, ...] = LABELS, **more: Any) -> TrainRequest:
    data, out = folder / "data", folder / "out"
    out.mkdir(exist_ok=True)
    if not data.exists():
        write_squares(data)
    fields = {"base_card": ModelCard(name="m", labels=COCO), "budget_s": 600.0, "threads": 1} | more
    return TrainRequest(data=data, labels=labels, out=out, base=base, **fields)


def ignore(_: Progress) -> None:
    """Nobody follows."""


@pytest.mark.parametrize("trainer", [HeadTrainer, pytest.param(FullTrainer, marks=pytest.mark.slow)])
def test_a_short_run_learns_and_leaves_a_file_that_is_served(
    tmp_path: Path, file: Path, trainer: type[HeadTrainer]
) -> None:
    """The last picture of the data set is empty."""
    losses: list[float] = []

    def follow(progress: Progress) -> None:
        losses.extend([progress.loss] if progress.loss is not None else [])

    asked = request(tmp_path, file, options={"max_steps": 12, "batch": 4})
    assert trainer().refuses(asked) is None
    trained = trainer().train(asked, follow)
    assert losses[-1] < 0.95 * losses[0]
    assert trained.metrics["pixels_apart"] <= export.MOST_PIXELS_OF_A_QUERY
    assert trained.metrics["score_apart"] <= export.MOST_SCORE_APART
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu"))
    assert (engine.classes, trained.card.family) == (LABELS, "detr")
    rgb = np.asarray(cv2.imread(str(asked.data / "images/0.png"), cv2.IMREAD_COLOR_RGB))
    found = engine.predict([engine.prepare(Picture(rgb=rgb, size=Size(64, 64)))])[0]
    assert {region.label for region in found} == set(LABELS)
    # and a second round, with one label more
    further = request(tmp_path, trained.model, base_card=trained.card, labels=("new", *LABELS))
    same = request(tmp_path, trained.model, base_card=trained.card)
    old, new = (open_detector(one, part="neck").graph.constants for one in (same, further))
    weight, bias = "onnx::MatMul_2552", "model.decoder.dec_score_head.2.bias"
    np.testing.assert_array_equal(new[weight][:, 1:], old[weight])
    assert new[bias][0] == pytest.approx(old[bias].mean())


def test_pictures_without_objects_are_learned_from_too(tmp_path: Path, file: Path) -> None:
    asked = request(tmp_path, file, options={"max_steps": 2, "batch": 1})
    for split in ("train", "val"):
        path = asked.data / f"{split}.json"
        path.write_bytes(path.read_bytes().replace(b'"annotations": [{', b'"annotations": [], "others": [{'))
    assert HeadTrainer().train(asked, ignore).metrics["loss"] > 0


@pytest.mark.parametrize(
    "labels",
    [("dog",), ("cat", "person"), (*COCO[::-1], "cell")],
    ids=["fewer scores than the file told", "two", "one more"],
)
def test_other_classes_change_what_is_told_about_classes_and_nothing_else(
    tmp_path: Path, file: Path, labels: tuple[str, ...]
) -> None:
    """Labels that the file knows keep their columns, so the file answers for them as it did. A batch of three."""
    pictures = np.random.default_rng(0).random((3, 3, SIDE, SIDE), np.float32)
    after = open_detector(request(tmp_path, file, labels=labels), part="neck").graph
    onnx.checker.check_model(after.model)
    logits, boxes = run(onnx.load(file), pictures, [LOGITS, BOXES])
    places = [COCO.index(label) for label in labels if label in COCO]
    known = 1 / (1 + np.exp(-logits[..., places]))
    told = min(TOLD, logits.shape[1] * len(labels))
    for classes, xyxy, scores, wanted, unit in zip(*run(after.model, pictures), known, boxes, strict=True):
        assert (xyxy.shape, scores.shape, classes.shape) == ((told, 4), (told,), (told,))
        ours = np.flatnonzero(classes < len(places))
        queries = np.abs(xyxy[ours, None] - SIDE * unit).max(axis=2).argmin(axis=1)
        np.testing.assert_allclose(xyxy[ours], SIDE * unit[queries], atol=2e-3)
        np.testing.assert_allclose(scores[ours], wanted[queries, classes[ours]], atol=1e-4)
        assert len(set(zip(queries, classes[ours], strict=True))) == len(ours)
        best = np.sort(wanted, axis=None)[::-1][: len(ours)]
        np.testing.assert_allclose(np.sort(scores[ours])[::-1], best, atol=1e-4)


def run(model: onnx.ModelProto, pictures: NDArray[np.float32], names: list[str] | None = None) -> list[NDArray[Any]]:
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names or ())
    sizes = np.full((len(pictures), 2), SIDE, np.int64)
    return open_session(model).run(names, {"images": pictures, "orig_target_sizes": sizes})


def test_what_chooses_cells_is_taught_apart(tmp_path: Path, file: Path) -> None:
    """The decoder's loss does not reach the layers that choose and box cells; their own does, and it reaches the neck."""
    import torch

    model = open_detector(request(tmp_path, file), part="neck")
    assert model.cut is not None
    assert model.cut.strides == (16, 32)
    maps = [torch.rand(1, 64, side, side) for side in (20, 10)]
    weights = model.module.weights()
    choosing = ("model.decoder.enc_score_head.bias", "model.decoder.enc_bbox_head.layers.0.bias")
    neck = "model.encoder.bi_fusion.cv.conv_bn_fused.bias"
    answers = model.answers(maps, model.points)
    (answers.logits.sum() + answers.xyxy.sum()).backward()
    assert all(weights[name].grad is None for name in choosing)
    assert weights[neck].grad is not None
    (before,) = (earlier,) = model.answers(maps, model.points).earlier
    assert earlier.logits.shape == (1, 100, 1)
    (before.logits.sum() + before.xyxy.sum()).backward()
    assert all(weights[name].grad is not None for name in choosing)


def test_ranks_are_compared_whatever_their_order() -> None:
    limits = np.full(4, 64, np.float32)
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    scores = np.array([[0.5, 0.1], [0.50001, 0.3]], np.float32)
    order = [0, 1, 1]
    found = Found(boxes[order], np.array([0.5, 0.50001, 0.3], np.float32), np.array([0, 0, 1]))

    def compared(served: Found) -> export.Parity:
        return export._queries_apart(served, boxes, scores, limits, ranked=True)

    assert compared(found) == export.Parity(0.0, 0.0)
    other = found._replace(classes=np.array([0, 1, 1]))
    assert compared(other).score > 0.1
    twice = found._replace(xyxy=boxes[[1, 1, 1]])
    assert compared(twice).pixels > 10


@pytest.mark.parametrize(
    ("build", "why"),
    [(tiny_models.build_detr, "scores is made"), (tiny_models.build_detr_raw, "through the operator Expand")],
    ids=["another postprocessor", "no linear layer"],
)
def test_a_graph_that_is_not_understood_is_refused(tmp_path: Path, build: Any, why: str) -> None:
    base = build(tmp_path / "m.onnx", [], size_wh=(SIDE, SIDE))
    card = ModelCard(name="m", labels=("a", "b", "c"), input=InputSpec(size_wh=(SIDE, SIDE)))
    with pytest.raises(TrainerRefused, match=why):
        open_detector(request(tmp_path, base, base_card=card), part="neck")


def test_the_first_detr_is_trained_elsewhere(tmp_path: Path, file: Path) -> None:
    asked = request(tmp_path, file, base_card=ModelCard(name="m", family="detr-softmax"))
    assert "Its folder of transformers can be trained" in (HeadTrainer().refuses(asked) or "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "name"), [("rt_detr_v2", "RTDetrV2ForObjectDetection"), ("d_fine", "DFineForObjectDetection")]
)
def test_the_files_of_transformers(tmp_path: Path, kind: str, name: str) -> None:
    """Exported without the postprocessor. RT-DETR's has the class heads of all layers in it, and takes the last."""
    transformers = pytest.importorskip("transformers")
    from labelloop.learning.trainers.huggingface_export import export as write
    from reference import tiny_transformers

    folder = tiny_transformers.detector(tmp_path / "folder", kind=kind, sure=True)
    base = tmp_path / "m.onnx"
    loaded = getattr(transformers, name).from_pretrained(folder).eval()
    write(loaded, InputSpec(size_wh=(64, 64)), tiny_transformers.LABELS, base)
    card = ModelCard(name="m", labels=tiny_transformers.LABELS, input=InputSpec(size_wh=(64, 64)))
    asked = request(tmp_path, base, base_card=card, labels=("bright", "bird", "dark", "cat"), options={"max_steps": 3})
    model = open_detector(asked, part="neck")
    assert not any("class_embed.0" in node.name for node in model.graph.nodes)
    trained = HeadTrainer().train(asked, ignore)
    assert (trained.card.family, trained.card.labels) == ("detr-raw", asked.labels)
    assert trained.metrics["pixels_apart"] <= export.MOST_PIXELS_OF_A_QUERY

"""The trainer `transformers`: tiny RT-DETRv2 and D-FINE made here, real pictures, real steps."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra labelloop[train]")
pytest.importorskip("torch", reason="needs the extra labelloop[train]")
pytest.importorskip("onnx", reason="needs the extra labelloop[train]")

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.demo import belt
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.huggingface import TransformersEngine
from labelloop.engines.model_folder import pack
from labelloop.learning.trainers import huggingface_export
from labelloop.learning.trainers.base import Progress, Stopped, TrainerFailed, TrainRequest
from labelloop.learning.trainers.huggingface import TransformersTrainer, spec_of
from labelloop.learning.trainers.huggingface_export import MOST_AP_LOST, SAME_SHARE, Parity
from reference import tiny_transformers as tiny

write = huggingface_export.export
pytestmark = pytest.mark.slow  # importing transformers takes seconds

EXPORTED = {"export": True, "max_steps": 2, "rate": 1e-5}
NAMES = {"rt_detr_v2": "RTDetrV2ForObjectDetection", "d_fine": "DFineForObjectDetection"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("belt")
    belt.write_data_set(folder, train=range(4), val=range(4, 6))
    (folder / "manifest.json").write_text("{}")
    return folder


def request(folder: Path, data: Path, *, kind: str = "rt_detr_v2", **changes: Any) -> TrainRequest:
    sure = changes.pop("sure", False)
    labels = belt.LABELS if sure else tiny.LABELS  # other labels, and the class layers begin anew
    pack(tiny.detector(folder / "base", kind=kind, labels=labels, sure=sure), folder / "base.zip")
    (folder / "out").mkdir()
    card = TransformersEngine.describe(folder / "base.zip", ModelCard(name="parts"))
    options = {"batch": 2, "max_steps": 6, "rate": 1e-3, "export": False} | changes.pop("options", {})
    return TrainRequest(
        data=data, labels=belt.LABELS, out=folder / "out", budget_s=600, base=folder / "base.zip", base_card=card,
        threads=1, options=options, **changes,
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_a_few_steps_leave_a_folder_that_is_served(tmp_path: Path, data: Path, kind: str) -> None:
    seen: list[Progress] = []
    asked = request(tmp_path, data, kind=kind, options={"max_steps": 12})
    assert TransformersTrainer().refuses(asked) is None
    trained = TransformersTrainer().train(asked, seen.append)
    assert (trained.card.engine, trained.card.family, trained.card.labels) == ("transformers", NAMES[kind], belt.LABELS)
    losses = [one.loss for one in seen if one.loss is not None]
    assert len(losses) == 12
    assert np.mean(losses[-3:]) < np.mean(losses[:3])
    engine = TransformersEngine(
        trained.model, TransformersEngine.describe(trained.model, ModelCard(name="m")), EngineOptions(device="cpu")
    )
    assert engine.classes == belt.LABELS
    picture = Picture(np.full((60, 80, 3), 90, np.uint8), Size(80, 60))
    assert {region.label for region in engine.predict([engine.prepare(picture)])[0]} <= set(belt.LABELS)


def test_it_goes_on_where_it_was_stopped(tmp_path: Path, data: Path) -> None:
    asked = request(tmp_path, data)

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            raise Stopped

    with pytest.raises(Stopped):
        TransformersTrainer().train(asked, stop)
    seen: list[Progress] = []
    trained = TransformersTrainer().train(asked, seen.append)
    assert seen[0].message == "going on from step 3"
    assert trained.metrics["steps"] == 6


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_a_file_that_answers_alike_is_served(tmp_path: Path, data: Path, kind: str) -> None:
    seen: list[Progress] = []
    trained = TransformersTrainer().train(request(tmp_path, data, kind=kind, sure=True, options=EXPORTED), seen.append)
    assert (trained.model.suffix, trained.card.engine, trained.card.family) == (".onnx", "detect", "detr-raw")
    assert (trained.card.input.size_wh, trained.card.input.resize) == ((64, 64), "stretch")
    assert trained.metrics["export_same_boxes"] >= SAME_SHARE
    assert trained.metrics["export_pixels_apart"] <= 0.01
    assert trained.metrics["export_score_apart"] <= 1e-4
    assert trained.metrics["export_ap_lost"] <= MOST_AP_LOST
    assert trained.source is not None
    # the next run goes on from the folder, because the file cannot be trained
    further = {"base": trained.source.model, "base_card": trained.source.card}
    asked = TrainRequest(data=data, labels=belt.LABELS, out=tmp_path, budget_s=600, **further)
    assert TransformersTrainer().refuses(asked) is None
    exported = msgspec.structs.replace(asked, base=trained.model, base_card=trained.card)
    assert "begins from a folder" in (TransformersTrainer().refuses(exported) or "")
    assert any("boxes on 2 pictures are the same" in one.message for one in seen)
    # the file says by itself what it is, and takes any batch
    bare = DetectEngine.describe(trained.model, ModelCard(name="m"))
    assert (bare.family, bare.labels) == ("detr-raw", belt.LABELS)
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu", max_batch=3))
    pictures = [engine.prepare(Picture(np.full((64, 64, 3), grey, np.uint8), Size(64, 64))) for grey in (9, 90, 200)]
    alone = [engine.predict([picture])[0] for picture in pictures]
    assert [len(found) for found in engine.predict(pictures)] == [len(found) for found in alone]


def disturbed(model: Any, spec: Any, labels: Any, target: Path) -> None:
    """A tracer that writes down something else: one in three weights of a layer in the middle is lost."""
    import onnx

    write(model, spec, labels, target)
    file = onnx.load(target)
    weights = max(file.graph.initializer, key=lambda one: len(one.raw_data))
    values = onnx.numpy_helper.to_array(weights).copy()
    values.reshape(-1)[::3] = 0
    weights.CopyFrom(onnx.numpy_helper.from_array(values, weights.name))
    onnx.save(file, target)


def unable(*_: Any) -> None:
    raise KeyError("aten::something_new")


@pytest.mark.parametrize(
    ("broken", "says"),
    [(disturbed, "boxes on 2 pictures are the same"), (unable, "something_new")],
    ids=["other weights", "it raises"],
)
def test_a_broken_export_costs_the_file_and_not_the_model(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch, broken: Any, says: str
) -> None:
    monkeypatch.setattr(huggingface_export, "export", broken)
    seen: list[Progress] = []
    trained = TransformersTrainer().train(request(tmp_path, data, sure=True, options=EXPORTED), seen.append)
    assert (trained.model.suffix, trained.card.engine, trained.source) == (".zip", "transformers", None)
    assert TransformersEngine.describe(trained.model, trained.card).labels == belt.LABELS
    (why,) = [one.message for one in seen if "the folder is served" in one.message]
    assert says in why
    # it had been reported before anything could go wrong
    assert [one.finished for one in seen if one.finished] == [trained]


GOOD = Parity(24, 100, 1.0, 0.001, 1e-5, 0.5, 0.5, 0.1, 0.2)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, ""),
        ({"share": 0.99}, ""),
        ({"share": 0.98}, "99% are needed"),
        ({"boxes": 0, "share": 0.0}, "nothing can be compared"),
        ({"ap": 0.495}, ""),
        ({"ap": 0.48}, "0.01 of AP may be lost"),
        ({"ap": 0.6}, ""),
        ({"ap": None, "folder_ap": None}, ""),
    ],
    ids=["alike", "one box", "two boxes", "nothing found", "a little AP", "much AP", "better", "nothing drawn"],
)
def test_the_limits_of_what_counts_as_alike(changes: dict[str, Any], says: str) -> None:
    parity = GOOD._replace(**changes)
    with pytest.raises(TrainerFailed, match=says) if says else nullcontext():
        parity.check()


def test_a_run_that_was_stopped_while_it_was_exported_trains_no_further(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_export, "export", unable)
    asked = request(tmp_path, data, sure=True, options=EXPORTED)

    def stop(progress: Progress) -> None:
        if progress.finished:
            raise Stopped

    with pytest.raises(Stopped):
        TransformersTrainer().train(asked, stop)
    seen: list[Progress] = []
    trained = TransformersTrainer().train(asked, seen.append)
    assert trained.metrics["steps"] == EXPORTED["max_steps"]
    assert not [one for one in seen if one.loss is not None]
    assert [one.finished for one in seen if one.finished] == [trained]


@pytest.mark.parametrize(
    ("card", "says"),
    [
        (None, "begins from a folder of transformers"),
        (ModelCard(name="m", engine="detect", family="yolox"), "begins from a folder of transformers"),
        (
            ModelCard(name="m", engine="transformers", family="YolosForObjectDetection"),
            "m is a YolosForObjectDetection",
        ),
    ],
    ids=["nothing", "an ONNX file", "another architecture"],
)
def test_what_it_cannot_train_it_refuses(tmp_path: Path, data: Path, card: ModelCard | None, says: str) -> None:
    base = tmp_path / "base.zip" if card else None
    asked = TrainRequest(data=data, labels=("a",), out=tmp_path, budget_s=1, base=base, base_card=card)
    assert says in (TransformersTrainer().refuses(asked) or "")


def test_pictures_of_a_free_size_cannot_be_trained() -> None:
    with pytest.raises(ModelError, match="only a fixed height and width"):
        spec_of({"size": {"shortest_edge": 800}})

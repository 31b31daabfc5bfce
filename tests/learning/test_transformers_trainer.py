"""The trainer `transformers`: tiny RT-DETRv2 and D-FINE made here, real pictures, real steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("transformers", reason="needs the extra labelloop[train]")
pytest.importorskip("torch", reason="needs the extra labelloop[train]")

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.demo import belt
from labelloop.engines.base import EngineOptions
from labelloop.engines.huggingface import TransformersEngine
from labelloop.engines.model_folder import pack
from labelloop.learning.trainers.base import Progress, Stopped, TrainRequest
from labelloop.learning.trainers.huggingface import TransformersTrainer, spec_of
from reference import tiny_transformers as tiny

pytestmark = pytest.mark.slow  # importing transformers takes seconds

NAMES = {"rt_detr_v2": "RTDetrV2ForObjectDetection", "d_fine": "DFineForObjectDetection"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("belt")
    belt.write_data_set(folder, train=range(4), val=range(4, 6))
    (folder / "manifest.json").write_text("{}")
    return folder


def request(folder: Path, data: Path, *, kind: str = "rt_detr_v2", **changes: Any) -> TrainRequest:
    pack(tiny.detector(folder / "base", kind=kind), folder / "base.zip")
    (folder / "out").mkdir()
    card = TransformersEngine.describe(folder / "base.zip", ModelCard(name="parts"))
    options = {"batch": 2, "max_steps": 6, "rate": 1e-3} | changes.pop("options", {})
    return TrainRequest(
        data=data, labels=belt.LABELS, out=folder / "out", budget_s=600, base=folder / "base.zip", base_card=card,
        threads=2, options=options, **changes,
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


def test_a_file_is_exported_only_if_it_says_the_same(tmp_path: Path, data: Path) -> None:
    """A model that was hardly trained finds nothing that people would see: nothing can be compared."""
    seen: list[Progress] = []
    trained = TransformersTrainer().train(
        request(tmp_path, data, options={"export": True, "max_steps": 2}), seen.append
    )
    exported = trained.card.engine == "detect"
    assert exported == (trained.metrics.get("export_same_boxes", 0.0) >= 0.99)
    assert exported or any("no ONNX file" in one.message for one in seen)
    assert trained.model.suffix == (".onnx" if exported else ".zip")


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

"""What the trainer `openmmlab` says before it starts anything; its runs are in tests/hosted/test_openmmlab_learning.py."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from labelloop.core.cards import Hosted, ModelCard
from labelloop.learning.trainers.base import TrainRequest, load_trainer

CARD = ModelCard(name="mm", engine="mmdet", labels=("a",), host=Hosted("rtmdet.py", python=sys.executable))


@pytest.mark.parametrize(
    ("card", "why"),
    [
        (None, "models add --engine mmdet"),
        (ModelCard(name="onnx"), "models add --engine mmdet"),
        (ModelCard(name="mm", engine="mmdet", host=Hosted("rtmdet.py", python="/nowhere/python")), "/nowhere/python"),
    ],
    ids=["from nothing", "another engine", "an interpreter that is gone"],
)
def test_what_it_cannot_begin_from(tmp_path: Path, card: ModelCard | None, why: str) -> None:
    base = tmp_path / "model.zip" if card else None
    asked = TrainRequest(data=tmp_path, labels=("a",), out=tmp_path, budget_s=1, base=base, base_card=card)
    assert why in (load_trainer("openmmlab").refuses(asked) or "")


@pytest.mark.parametrize(
    ("name", "refuses"), [("head", True), ("full", True), ("transformers", True), ("openmmlab", False)]
)
def test_of_the_trainers_it_alone_takes_such_a_model(tmp_path: Path, name: str, refuses: bool) -> None:
    """The loop tries them in this order."""
    asked = TrainRequest(
        data=tmp_path, labels=("a",), out=tmp_path, budget_s=1, base=tmp_path / "model.zip", base_card=CARD
    )
    assert (load_trainer(name).refuses(asked) is not None) is refuses

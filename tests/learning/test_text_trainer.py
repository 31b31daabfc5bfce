"""The trainer `text`: what it learns, what it refuses, and a file that says what was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra labelloop[train]")

import itertools

from labelloop.core.regions import MediaKey
from labelloop.engines.base import EngineOptions
from labelloop.engines.text import TextEngine
from labelloop.learning.manifest import Item, Manifest, Options, encode
from labelloop.learning.trainers import process
from labelloop.learning.trainers.base import Progress, TrainerFailed, TrainerRefused, TrainRequest
from labelloop.learning.trainers.text import TextTrainer
from reference.tickets import LABELS, tickets


def item(number: int, text: str, *said: str, side: str = "train") -> Item:
    return Item(number, MediaKey("text"), "", side, (number,), (), said=said, text=text)


def request(folder: Path, items: list[Item], *, several: bool = False, **changes: Any) -> TrainRequest:
    manifest = Manifest(1, LABELS, Options(), tuple(items), learns="choices", reads="texts", several=several)
    (folder / "data").mkdir()
    (folder / "data" / "manifest.json").write_bytes(encode(manifest))
    (folder / "out").mkdir()
    return TrainRequest(data=folder / "data", labels=LABELS, out=folder / "out", budget_s=60, **changes)


def engine_of(trained: Any) -> TextEngine:
    return TextEngine(trained.model, trained.card, EngineOptions())


def test_forty_tickets_are_enough_for_the_next_hundred(tmp_path: Path) -> None:
    known = [item(n, one.text, one.label) for n, one in enumerate(tickets(40))]
    seen: list[Progress] = []
    trained = TextTrainer().train(request(tmp_path, known), seen.append)
    assert trained.card.labels == LABELS
    assert trained.metrics["parity_score"] < 1e-5
    assert trained.metrics["cross_validated_macro_F1"] > 0.8
    assert seen[0].message == "40 texts, 3 labels"
    engine, asked = engine_of(trained), tickets(100, seed=1)
    found = engine.predict([engine.prepare(one.text) for one in asked])
    right = np.mean([regions[0].label == one.label for regions, one in zip(found, asked, strict=True)])
    assert right >= 0.95


def test_several_labels_at_a_time(tmp_path: Path) -> None:
    made = tickets(60)
    pairs = [(one.text + " " + other.text, {one.label, other.label}) for one, other in itertools.pairwise(made)]
    known = [item(n, text, *(label for label in LABELS if label in said)) for n, (text, said) in enumerate(pairs)]
    trained = TextTrainer().train(
        request(tmp_path, [*known, item(999, "thanks, all is well")], several=True), lambda _: None
    )
    engine = engine_of(trained)
    both, none = engine.predict(["The parcel never arrived. My password was locked.", "thanks, all is well"])
    assert {region.label for region in both if region.score >= 0.5} == {"Delivery", "Account"}
    assert not [region for region in none if region.score >= 0.5]


def test_labels_that_nobody_chose_are_not_the_models(tmp_path: Path) -> None:
    known = [item(n, one.text, one.label) for n, one in enumerate(tickets(30)) if one.label != "Account"]
    trained = TextTrainer().train(request(tmp_path, known), lambda _: None)
    assert trained.card.labels == ("Billing", "Delivery")
    assert engine_of(trained).predict(["the parcel came damaged"])[0][0].label == "Delivery"


def test_the_same_data_gives_the_same_file(tmp_path: Path) -> None:
    known = [item(n, one.text, one.label) for n, one in enumerate(tickets(40))]
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        files.append(TextTrainer().train(request(tmp_path / name, known), lambda _: None).model.read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("items", "says"),
    [
        ([], "nothing yet"),
        ([item(1, "a", "Billing"), item(2, "b", "Billing")], "always the same: Billing"),
        ([item(1, "a", "Billing"), item(2, "b", "Account", side="val")], "always the same: Billing"),
    ],
    ids=["nothing", "one label", "the other one is held out"],
)
def test_what_cannot_be_learned_is_refused(tmp_path: Path, items: list[Item], says: str) -> None:
    assert says in (TextTrainer().refuses(request(tmp_path, items)) or "")


def test_boxes_are_for_others(tmp_path: Path) -> None:
    asked = request(tmp_path, [item(1, "a", "Billing"), item(2, "b", "Account")])
    manifest = msgspec.json.decode((asked.data / "manifest.json").read_bytes(), type=Manifest)
    (asked.data / "manifest.json").write_bytes(encode(msgspec.structs.replace(manifest, learns="boxes")))
    assert "<Choices>" in (TextTrainer().refuses(asked) or "")


def test_it_runs_as_a_child_process_like_the_others(tmp_path: Path) -> None:
    known = [item(n, one.text, one.label) for n, one in enumerate(tickets(12))]
    trained = process.run("text", request(tmp_path, known))
    assert engine_of(trained).predict(["the invoice was charged twice"])[0][0].label == "Billing"
    (tmp_path / "again").mkdir()
    with pytest.raises(TrainerRefused, match="always the same"):
        process.run("text", request(tmp_path / "again", known[:1]))


def test_texts_without_a_word_say_so(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed, match="no words"):
        TextTrainer().train(request(tmp_path, [item(1, "?!", "Billing"), item(2, "", "Account")]), lambda _: None)

"""Models of transformers from a folder: the same answers as by hand, offline, and nothing but data in the registry."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("transformers", reason="needs the extra labelloop[train]")
pytest.importorskip("torch", reason="needs the extra labelloop[train]")

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelUnrecognised
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size, Span, Whole
from labelloop.core.settings import read_settings
from labelloop.engines.base import Engine, EngineOptions
from labelloop.engines.huggingface import TransformersEngine
from labelloop.engines.model_folder import pack
from labelloop.serving.models import add_model, load_engine, open_registry
from reference import tiny_transformers as tiny

pytestmark = pytest.mark.slow  # importing transformers takes seconds

CPU = EngineOptions(device="cpu")


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"transformers asked the network: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def packed(folder: Path) -> Path:
    pack(folder, folder.with_suffix(".zip"))
    return folder.with_suffix(".zip")


def opened(folder: Path, **card: object) -> Engine:
    file = packed(folder)
    return TransformersEngine(file, TransformersEngine.describe(file, ModelCard(name="m", **card)), CPU)


def noise(width: int = 120, height: int = 80, *, scale: int = 1) -> Picture:
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Picture(rgb, Size(width * scale, height * scale))


def ask(engine: Engine, item: object) -> tuple[Region, ...]:
    return engine.predict([engine.prepare(item)])[0]


@pytest.mark.parametrize("kind", ["rt_detr_v2", "d_fine"])
def test_a_detector_finds_what_it_finds_by_hand(tmp_path: Path, kind: str) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    folder = tiny.detector(tmp_path / "detector", kind=kind)
    engine = opened(folder)
    assert (engine.wants, engine.classes) == ("picture", tiny.LABELS)
    found = ask(engine, noise())
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AutoModelForObjectDetection.from_pretrained(folder).eval()
    with torch.inference_mode():
        inputs = processor(images=noise().rgb, return_tensors="pt")
        (by_hand,) = processor.post_process_object_detection(
            model(**inputs), threshold=0.01, target_sizes=torch.tensor([[80, 120]])
        )
    assert found
    assert [region.score for region in found] == sorted(by_hand["scores"].tolist(), reverse=True)
    best = int(by_hand["scores"].argmax())
    assert found[0].label == tiny.LABELS[by_hand["labels"][best]]
    assert isinstance(found[0].shape, Box)
    left, top, right, bottom = by_hand["boxes"][best].tolist()
    assert found[0].shape.xyxy == pytest.approx((max(left, 0), max(top, 0), min(right, 120), min(bottom, 80)), abs=1e-3)
    twice = ask(engine, noise(scale=2))
    assert isinstance(twice[0].shape, Box)
    assert twice[0].shape.xyxy == pytest.approx([2 * side for side in found[0].shape.xyxy], abs=1e-3)


def test_a_classifier_says_what_it_says_by_hand(tmp_path: Path) -> None:
    import torch
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    folder = tiny.classifier(tmp_path / "classifier")
    engine = opened(folder)
    found = ask(engine, noise())
    inputs = AutoImageProcessor.from_pretrained(folder)(images=noise().rgb, return_tensors="pt")
    with torch.inference_mode():
        expected = AutoModelForImageClassification.from_pretrained(folder).eval()(**inputs).logits.softmax(-1)[0]
    assert {region.label: region.score for region in found} == pytest.approx(
        dict(zip(tiny.LABELS, expected.tolist(), strict=True)), abs=1e-5
    )
    assert all(type(region.shape) is Whole for region in found)


def test_named_entities_are_places_in_the_text(tmp_path: Path) -> None:
    engine = opened(tiny.entities(tmp_path / "entities"))
    assert (engine.wants, engine.classes) == ("text", ("PER", "LOC"))
    text = "We met Maria in  Paris. 😀 Tom went to Oslo"
    found = ask(engine, text)
    assert [(region.label, region.text) for region in found] == [
        ("PER", "Maria"), ("LOC", "Paris"), ("PER", "Tom"), ("LOC", "Oslo"),
    ]  # fmt: skip
    for region in found:
        assert isinstance(region.shape, Span)
        assert text[region.shape.start : region.shape.end] == region.text
        assert region.score > 0.5
    assert ask(engine, "  ") == ()
    assert ask(engine, "We went from in to") == ()


def test_words_to_look_for_stand_in_the_card(tmp_path: Path) -> None:
    """All in one pass, each place called by its best word; the pipeline has a pass, and a row, for each of them."""
    import transformers

    folder = tiny.words_detector(tmp_path / "words")
    with pytest.raises(ModelError, match="whatever it is told to look for"):
        opened(folder)
    labels = ("helmet", "vest", "a ladder that somebody has left in the way of everybody")
    engine = opened(folder, labels=labels, score_threshold=0.001)
    assert engine.classes == labels
    found = ask(engine, noise())
    assert found
    assert all(0 <= side <= 120 for region in found for side in region.shape.xyxy)
    pipeline = transformers.pipeline("zero-shot-object-detection", model=str(folder), device="cpu")
    image = Image.fromarray(noise().rgb)
    by_hand = [row for word in labels[:2] for row in pipeline(image, candidate_labels=[word], threshold=0.0005)]
    for region in found:
        rows = [row for row in by_hand if row["label"] == region.label and close(row["box"], region.shape.xyxy)]
        assert rows or region.label == labels[2], "the third is longer than the network's memory, and cut"
        assert not rows or min(abs(row["score"] - region.score) for row in rows) < 1e-3


def close(box: dict[str, int], xyxy: tuple[float, ...]) -> bool:
    """Whether a box of the pipeline, whole pixels that may lie outside, is this one."""
    sides = np.clip([box["xmin"], box["ymin"], box["xmax"], box["ymax"]], 0, (120, 80, 120, 80))
    return bool(np.abs(sides - xyxy).max() <= 1)


@pytest.mark.parametrize("most", [256, 6], ids=["in one text", "in a text each"])
def test_phrases_are_scored_by_the_mean_of_their_tokens(tmp_path: Path, most: int) -> None:
    """Three tokens and a full stop each, of which a network with six has room for one phrase beside [CLS] and [SEP]."""
    import torch
    import transformers

    words = ("helmet", "red", "safety", "vest", "on")
    folder = tiny.phrase_detector(tmp_path / "phrases", words=words, most=most)
    labels = ("Red safety. Vest", "vest on helmet", ".")
    found = ask(opened(folder, labels=labels, score_threshold=0.0), noise())
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForZeroShotObjectDetection.from_pretrained(folder).eval()
    both = ("red safety vest. vest on helmet. .", {labels[0]: [1, 2, 3], labels[1]: [5, 6, 7]})
    apart = [("red safety vest.", {labels[0]: [1, 2, 3]}), ("vest on helmet.", {labels[1]: [1, 2, 3]})]
    expected: dict[str, list[float]] = {label: [] for label in labels}
    for text, places in [both] if most == 256 else apart:
        with torch.inference_mode():
            inputs = processor(images=Image.fromarray(noise().rgb), text=text, return_tensors="pt")
            tokens = model(**inputs).logits[0].sigmoid()
        for label, numbers in places.items():
            expected[label] += tokens[:, numbers].mean(-1).tolist()
    assert {region.label for region in found} <= set(labels[:2]), "a full stop is no word"
    assert len({region.label for region in found}) == 2 or most == 256, "each text has boxes of its own"
    assert found
    for region in found:
        assert min(abs(one - region.score) for one in expected[region.label]) < 1e-5


def test_a_folder_becomes_a_version_like_the_others(tmp_path: Path) -> None:
    settings = read_settings(home=tmp_path / "home")
    registry = open_registry(settings)
    folder = tiny.classifier(tmp_path / "classifier")
    version = add_model(registry, folder, ModelCard(name="animals"), settings)
    assert (version.id, version.card.engine, version.card.task) == ("animals@1", "transformers", "classify")
    assert version.card.family == "ViTForImageClassification"
    assert add_model(registry, folder, ModelCard(name="animals"), settings).id == "animals@1", "the same bytes"
    assert len(ask(load_engine(registry, settings, version), noise())) == 3


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"), ModelError, "no weights in safetensors"),
        (lambda folder: (folder / "config.json").write_text('{"architectures": ["GPT2LMHeadModel"]}'), ModelUnrecognised, "GPT2LMHeadModel"),
        (lambda folder: (folder / "config.json").write_text("{}"), ModelUnrecognised, "no known architecture"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"nothing"), ModelError, "cannot load"),
    ],
    ids=["a pickle", "another kind", "no architecture", "broken weights"],
)  # fmt: skip
def test_a_folder_that_cannot_be_served_says_why(tmp_path: Path, change, error: type[ModelError], says: str) -> None:
    folder = tiny.classifier(tmp_path / "classifier")
    change(folder)
    with pytest.raises(error, match=says):
        opened(folder)


def test_code_beside_a_model_is_not_run(tmp_path: Path) -> None:
    folder = tiny.classifier(tmp_path / "classifier")
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModelForImageClassification": "evil.Model"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'exploded')!r}, 'w')\nclass Model: ...\n")
    ask(opened(folder), noise())
    assert not (tmp_path / "exploded").exists()


def test_a_zip_with_a_path_in_it_is_refused(tmp_path: Path) -> None:
    import zipfile

    with zipfile.ZipFile(tmp_path / "m.zip", "w") as archive:
        archive.writestr("../config.json", "{}")
    with pytest.raises(ModelError, match="no part of a model"):
        TransformersEngine.describe(tmp_path / "m.zip", ModelCard(name="m"))

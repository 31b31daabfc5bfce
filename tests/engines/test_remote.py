"""Models on another machine: the same answers as from the file that the server there runs."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelFailed, ModelUnrecognised
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size
from labelloop.core.settings import read_settings
from labelloop.engines.base import EngineOptions
from labelloop.engines.classify import ClassifyEngine
from labelloop.engines.detect import DetectEngine
from labelloop.engines.labels import COCO
from labelloop.engines.remote import RemoteEngine
from labelloop.serving.models import add_model, load_engine, open_registry
from reference.tiny_models import NAMES, Thing, build_detr, build_mmdeploy, build_v8, save
from reference.v2_server import v2_server

CPU = EngineOptions(device="cpu")
THINGS = [Thing((10, 20, 60, 90), 0, 0.9), Thing((100, 40, 200, 140), 2, 0.6)]
SIZE = (256, 256)


def card(url: str, name: str = "m", **changes: object) -> ModelCard:
    return ModelCard(name=name, engine="remote", remote=f"{url}/v2/models/{name}", **{"labels": NAMES} | changes)


def noise(width: int = 320, height: int = 200) -> Picture:
    rgb = np.random.default_rng(0).integers(0, 255, (height, width, 3), np.uint8)
    return Picture(rgb, Size(width, height))


def ask(engine: object, *pictures: Picture) -> list[tuple[Region, ...]]:
    return engine.predict([engine.prepare(picture) for picture in pictures])


@pytest.mark.parametrize("binary", [True, False], ids=["bytes", "JSON"])
@pytest.mark.parametrize("build", [build_v8, build_detr, build_mmdeploy])
def test_the_same_boxes_as_from_the_file(tmp_path: Path, build, binary: bool) -> None:
    file = build(tmp_path / "m.onnx", THINGS, size_wh=SIZE, batch="b")
    local = DetectEngine(file, ModelCard(name="m", labels=NAMES), CPU)
    with v2_server({"m": file}, binary=binary) as (url, asked):
        described = RemoteEngine.describe(None, card(url))
        assert described.engine == "remote"
        assert described.family == local.card.family
        assert described.input == local.card.input
        remote = RemoteEngine(None, described, CPU)
        assert ask(remote, noise(), noise(100, 90)) == ask(local, noise(), noise(100, 90))
        assert set(asked) == {"binary" if binary else "json"}
    assert remote.classes == NAMES


def test_a_real_detector_and_several_at_a_time(shared: Path) -> None:
    """deimv2_atto, whose family shows in its inputs and outputs alone."""
    file = shared / "data" / "models" / "deimv2_atto_320.onnx"
    folder = shared / "data" / "datasets" / "coco32"
    names = [row["file_name"] for row in json.loads((folder / "annotations.json").read_text())["images"]][:4]
    pictures = []
    for name in names:
        rgb = cv2.imread(str(folder / "images" / name))[..., ::-1]
        pictures.append(Picture(np.ascontiguousarray(rgb), Size(rgb.shape[1], rgb.shape[0])))
    local = DetectEngine(file, ModelCard(name="m", labels=COCO), CPU)
    with v2_server({"deim": file}) as (url, _), ThreadPoolExecutor(4) as pool:
        remote = RemoteEngine(None, RemoteEngine.describe(None, card(url, "deim", labels=COCO)), CPU)
        found = list(pool.map(lambda picture: ask(remote, picture)[0], pictures))
    for ours, theirs in zip(found, ask(local, *pictures), strict=True):
        assert [region.label for region in ours] == [region.label for region in theirs]
        assert [region.score for region in ours] == pytest.approx([region.score for region in theirs], abs=1e-5)


def test_what_only_a_graph_shows_must_stand_in_the_card(shared: Path) -> None:
    file = shared / "data" / "models" / "yolox_nano_416.onnx"
    with v2_server({"yolox": file}) as (url, _):
        with pytest.raises(ModelUnrecognised, match="no family of detectors claims it"):
            RemoteEngine.describe(None, card(url, "yolox", labels=COCO))
        remote = RemoteEngine(None, card(url, "yolox", labels=COCO, family="yolox"), CPU)
        local = DetectEngine(file, ModelCard(name="m", labels=COCO), CPU)
        assert len(ask(remote, noise())[0]) == len(ask(local, noise())[0])


def test_a_classifier(tmp_path: Path) -> None:
    file = save(tmp_path / "c.onnx", {"scores": np.array([0.1, 0.7, 0.2], np.float32)}, size_wh=(32, 32), batch="b")
    with v2_server({"c": file}) as (url, _):
        remote = RemoteEngine(None, RemoteEngine.describe(None, card(url, "c", family="probabilities")), CPU)
        assert ask(remote, noise()) == ask(
            ClassifyEngine(file, ModelCard(name="m", labels=NAMES, family="probabilities"), CPU), noise()
        )


def test_in_the_registry_it_is_a_model_like_the_others(tmp_path: Path) -> None:
    file = build_v8(tmp_path / "m.onnx", THINGS, size_wh=SIZE)
    settings = read_settings(home=tmp_path / "home")
    registry = open_registry(settings)
    with v2_server({"m": file}) as (url, _):
        version = add_model(registry, None, card(url, labels=()), settings)
        assert version.card.labels == ("class_0", "class_1", "class_2")
        engine = load_engine(registry, settings, version)
        assert [region.label for region in ask(engine, noise())[0]] == ["class_0", "class_2"]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("{url}/v2/models/other", "answers 404: Request for unknown model: 'other' is not found"),
        ("http://127.0.0.1:9/v2/models/m", "cannot be reached"),
        ("triton:8000/m", "is no address of a model"),
    ],
    ids=["unknown model", "no server", "no address"],
)
def test_a_server_that_cannot_be_asked_says_why(tmp_path: Path, address: str, says: str) -> None:
    file = build_v8(tmp_path / "m.onnx", THINGS, size_wh=SIZE)
    with v2_server({"m": file}) as (url, _), pytest.raises(ModelError, match=says):
        RemoteEngine.describe(None, ModelCard(name="m", engine="remote", remote=address.format(url=url), labels=NAMES))


def test_a_server_that_goes_away_fails_the_pictures_and_nothing_else(tmp_path: Path) -> None:
    file = build_v8(tmp_path / "m.onnx", THINGS, size_wh=SIZE)
    with v2_server({"m": file}) as (url, _):
        engine = RemoteEngine(None, card(url), CPU)
        assert ask(engine, noise())[0]
    with pytest.raises(ModelFailed, match="cannot be asked"):
        ask(engine, noise())


def test_what_the_server_says_went_wrong_is_told(tmp_path: Path) -> None:
    file = build_v8(tmp_path / "m.onnx", THINGS, size_wh=SIZE, batch=1)
    with v2_server({"m": file}) as (url, _):
        engine = RemoteEngine(None, card(url), CPU)
        wrong = engine.prepare(noise())
        with pytest.raises(ModelFailed, match="answers 400: The model raised"):
            engine._engine._model.run({"images": np.zeros((1, 3, 8, 8), np.float32)})
        assert engine.predict([wrong])[0], "and the next picture is fine"

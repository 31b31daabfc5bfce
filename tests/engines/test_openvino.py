"""OpenVINO runs the same files and says the same; it tells nobody."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelFailed
from labelloop.core.geometry import iou
from labelloop.core.regions import Box, Region
from labelloop.engines import onnx as onnx_engine
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.labels import read_labels
from labelloop.engines.onnx import OnnxModel, open_model
from labelloop.media.image import decode
from reference import tiny_models as tiny

pytestmark = pytest.mark.skipif(find_spec("openvino") is None, reason="the extra openvino is not installed")

WATCHED = """
import sys
told = []
SEEN = ("socket.", "subprocess.", "os.fork", "os.exec", "os.posix_spawn")
sys.addaudithook(lambda event, _: told.append(event) if event.startswith(SEEN) else None)
import pathlib
from labelloop.engines.onnx import open_model
model = open_model(pathlib.Path(sys.argv[1]), device="openvino", threads=1)
assert type(model).__name__ == "OpenVinoModel"
assert not told, told
"""


def test_nothing_leaves_the_machine(tmp_path: Path) -> None:
    path = tiny.build_v8(tmp_path / "v8.onnx", [])
    ran = subprocess.run([sys.executable, "-c", WATCHED, path], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("name", ["yolox_nano_416", "nanodet_m_320", "deimv2_atto_320"])
def test_the_boxes_are_those_of_onnx_runtime(shared: Path, name: str) -> None:
    path = shared / "data/models" / f"{name}.onnx"
    card = DetectEngine.describe(path, ModelCard(name="cars", labels=read_labels("coco")))
    pictures = sorted((shared / "data/datasets/coco32/images").iterdir())[:4]
    engines = [DetectEngine(path, card, EngineOptions(device=device, threads=2)) for device in ("cpu", "openvino")]
    for picture in pictures:
        image = decode(picture.read_bytes(), max_pixels=10**8)
        ours, theirs = ([r for r in e.predict([e.prepare(image)])[0] if sure(r)] for e in engines)
        assert [r.label for r in theirs] == [r.label for r in ours]
        for one, other in zip(ours, theirs, strict=True):
            assert isinstance(one.shape, Box)
            assert isinstance(other.shape, Box)
            assert iou(np.array([one.shape.xyxy]), np.array([other.shape.xyxy]))[0, 0] > 0.98
            assert other.score == pytest.approx(one.score, abs=0.01)


def sure(region: Region) -> bool:
    return (region.score or 0) > 0.4


def test_threads_do_not_mix_their_outputs(shared: Path) -> None:
    path = shared / "data/models/yolox_nano_416.onnx"
    chance = np.random.default_rng(0)
    feeds = [{"images": chance.uniform(0, 255, (1, 3, 416, 416)).astype(np.float32)} for _ in range(6)]
    model, plain = open_model(path, device="openvino", threads=2), OnnxModel(path)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(model.run, feeds))
    for (output,), one in zip(found, feeds, strict=True):
        np.testing.assert_allclose(output, plain.run(one)[0], atol=2e-2)


def test_wrong_feeds_are_a_failure_of_the_model(tmp_path: Path) -> None:
    model = open_model(tiny.build_v8(tmp_path / "v8.onnx", []), device="openvino", threads=1)
    with pytest.raises(ModelFailed):
        model.run({"images": np.zeros((1, 3, 8, 8), np.float32)})


def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="CPU") as caught:
        open_model(tiny.build_v8(tmp_path / "v8.onnx", []), device="openvino:npu", threads=1)
    assert "--device cpu" in str(caught.value)


def test_without_the_package_onnx_runtime_does_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_engine, "find_spec", lambda _: None)
    with capture_logs() as logs:
        model = open_model(tiny.build_v8(tmp_path / "v8.onnx", []), device="openvino", threads=1)
    assert model.device == "cpu"
    assert [entry["event"] for entry in logs] == ["openvino-missing"]

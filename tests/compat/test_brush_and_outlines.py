"""What the backend for MMDetection writes of a mask: the brush's run-length code, and outlines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from msgspec import _core

import labelloop.compat
from reference.brush import decode_rle

FAR_SIDE = Path(labelloop.compat.__file__).parent


CONFIG = '<View><Image name="i" value="$image"/><RectangleLabels name="box" toName="i"><Label value="Car"/></RectangleLabels></View>'


def load(example: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"{example}_example", FAR_SIDE / "examples" / f"{example}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """The example, imported as a hosted process would."""
    before = set(sys.modules)
    sys.path.append(str(FAR_SIDE / "names"))
    yield load("mmdetection")
    sys.path.remove(str(FAR_SIDE / "names"))
    for name in set(sys.modules) - before:
        if name.startswith(("label_studio", "labelloop_")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "data", [b"", b"a", b"ab", b"aab", b"abb", bytes(range(256)) * 3, b"x" * 70_000 + b"ab", b"ab" * 40_000]
)
def test_run_lengths_are_read_back(backend: ModuleType, data: bytes) -> None:
    encode: Any = sys.modules["labelloop_brush"].encode_rle
    assert decode_rle(encode(data)) == list(data)


def test_a_mask_as_a_brush_and_as_outlines(backend: ModuleType) -> None:
    mask = np.zeros((20, 40), bool)
    mask[5:15, 10:30] = True
    box = [10, 5, 30, 15]
    (brush,) = backend.values("BrushLabels", box, mask, (20, 40, 3))
    assert brush["format"] == "rle"
    pixels = np.array(decode_rle(brush["rle"]), np.uint8).reshape(20, 40, 4)
    np.testing.assert_array_equal(pixels[:, :, 3] == 255, mask)
    (outline,) = backend.values("PolygonLabels", box, mask, (20, 40, 3))
    assert sorted(outline["points"]) == [[25, 25], [25, 70], [72.5, 25], [72.5, 70]]
    (rectangle,) = backend.values("RectangleLabels", [-5, 5, 30, 15], mask, (20, 40, 3))
    assert rectangle == {"x": 0, "y": 25, "width": 75, "height": 50, "rotation": 0}
    assert backend.values("BrushLabels", box, np.zeros((20, 40), bool), (20, 40, 3)) == []
    (corners,) = backend.values("PolygonLabels", box, None, (20, 40, 3))
    assert len(corners["points"]) == 4


@pytest.mark.parametrize(
    ("said", "lacking", "meant"),
    [
        ("cpu", "", "cpu"),
        ("gpu:0", "", "cuda:0"),
        ("cuda", "", "cuda"),
        ("auto", "", "cuda"),
        ("openvino", "", "cpu"),
        ("openvino:gpu", "", "cpu"),
        ("auto", "there is none", "cpu"),
        ("cuda:1", "there is none", "cpu"),
        ("gpu", "there is none", "cpu"),
    ],
)
def test_devices_of_openmmlab(
    backend: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    said: str,
    lacking: str,
    meant: str,
) -> None:
    monkeypatch.setattr(sys.modules["labelloop_openmmlab"], "without_gpu", lambda: lacking)
    assert backend.device_of(said) == meant
    told = capfd.readouterr().out
    assert ("the CPU is used" in told) is (meant == "cpu" and said not in ("cpu", "auto"))
    assert lacking in told or said == "auto"


@pytest.mark.parametrize("said", ["0", "-3", "many", "2.5"])
def test_a_batch_that_is_no_number_of_pictures_is_refused(backend: ModuleType, said: str) -> None:
    assert sys.modules["labelloop_openmmlab"].batch_of("12") == 12
    with pytest.raises(ValueError, match=rf"batch_size={said}: give a number of pictures"):
        backend.batch_of(said)


def test_a_gpu_that_is_not_there_is_told(backend: ModuleType) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert "finds no GPU" in sys.modules["labelloop_openmmlab"].without_gpu()


@pytest.mark.parametrize("fits", [True, False], ids=["it fits this torch", "it is for another torch"])
def test_operators_that_torchvision_brings_are_not_defined_before_it_does(
    backend: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fits: bool
) -> None:
    """Defined twice they end the process, by an exception that nobody can catch."""
    pytest.importorskip("torch")
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").touch()
    loadable = Path(_core.__file__).read_bytes()  # any library does
    (package / "_C.so").write_bytes(loadable if fits else b"no library")
    monkeypatch.syspath_prepend(str(tmp_path))
    openmmlab: Any = sys.modules["labelloop_openmmlab"]
    assert openmmlab.brings_operators() is fits
    if fits:
        openmmlab.define_operators()
        assert openmmlab.KEPT == []


BASES = {
    "1.0": """
class LabelStudioMLBase:
    def __init__(self, label_config=None, train_output=None, **kwargs):
        self.label_config = label_config
        self.parsed_label_config = {}
    def get_local_path(self, url, project_dir=None):
        return url
""",
    "2": """
class LabelStudioMLBase:
    def __init__(self, project_id=None, label_config=None):
        self.label_config = label_config
    def get_local_path(self, url, project_dir=None, task_id=None, **kwargs):
        assert task_id == 7
        return url
""",
}
"""What templates need of the official package, as its two generations have it."""


@pytest.mark.parametrize("generation", BASES)
def test_the_templates_run_on_the_official_package_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, generation: str
) -> None:
    (tmp_path / "label_studio_ml").mkdir()
    (tmp_path / "label_studio_ml" / "__init__.py").touch()
    (tmp_path / "label_studio_ml" / "model.py").write_text(BASES[generation])
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 10, 3), np.uint8))
    for name in [name for name in sys.modules if name.startswith(("label_studio", "labelloop_"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path, str(FAR_SIDE / "names")])
    openmmlab: Any = importlib.import_module("labelloop_openmmlab")
    monkeypatch.setattr(openmmlab, "load_model", lambda *_: (None, None, {"CLASSES": ["car"]}))
    template = load("mmdetection")
    made = template.MMDetection(config_file="c.py", checkpoint_file="c.pth", label_config=CONFIG)
    ((control, shown, labels),) = made.controls
    assert (control.name, shown.value_name, labels) == ("box", "image", {"car": "Car"})
    task = {"id": 7, "data": {"image": str(tmp_path / "a.png")}}
    assert openmmlab.read_task(made, task, shown.value_name).shape == (8, 10, 3)
    with pytest.raises(ValueError, match="has no picture"):
        openmmlab.read_task(made, {"id": 7, "data": {"other": "x"}}, shown.value_name)
    reader = load("mmocr").MMOCR("c", "c", "c", "c", label_config=CONFIG, label="car")
    assert (reader.place.name, reader.label[1]) == ("box", "Car")
    for name in [name for name in sys.modules if name.startswith(("label_studio", "labelloop_"))]:
        del sys.modules[name]

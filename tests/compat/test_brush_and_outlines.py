"""What the backend for MMDetection writes of a mask: the brush's run-length code, and outlines."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import labelloop.compat
from reference.brush import decode_rle

FAR_SIDE = Path(labelloop.compat.__file__).parent


@pytest.fixture(scope="module")
def backend() -> Iterator[ModuleType]:
    """The example, imported as a hosted process would."""
    before = set(sys.modules)
    sys.path.append(str(FAR_SIDE / "names"))
    spec = importlib.util.spec_from_file_location("mmdetection_example", FAR_SIDE / "examples" / "mmdetection.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(FAR_SIDE / "names"))
    for name in set(sys.modules) - before:
        if name.startswith(("label_studio", "labelloop_openmmlab")):
            del sys.modules[name]


@pytest.mark.parametrize(
    "data", [b"", b"a", b"ab", b"aab", b"abb", bytes(range(256)) * 3, b"x" * 70_000 + b"ab", b"ab" * 40_000]
)
def test_run_lengths_are_read_back(backend: ModuleType, data: bytes) -> None:
    encode: Any = sys.modules["label_studio_sdk.converter.brush"].encode_rle
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
    ("said", "meant"),
    [("cpu", "cpu"), ("gpu:0", "cuda:0"), ("cuda", "cuda"), ("openvino", "cpu"), ("openvino:gpu", "cpu")],
)
def test_devices_of_openmmlab(backend: ModuleType, capfd: pytest.CaptureFixture[str], said: str, meant: str) -> None:
    assert backend.device_of(said) == meant
    assert ("the CPU is used" in capfd.readouterr().out) is said.startswith("openvino")

"""MMDetection and MMYOLO behind `labelloop start`, from the configs in their packages and weights made here.

Needs the runtime: labelloop runtimes create openmmlab --find-links ../shared/openmmlab/wheels
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from labelloop.runtimes import venvs
from reference.brush import decode_rle
from reference.openmmlab import make_models, runtime
from reference.running_server import jpeg
from reference.stand import Stand

__all__ = ["runtime"]

pytestmark = [pytest.mark.openmmlab, pytest.mark.slow]

PICTURE = "data:image/jpeg;base64," + base64.b64encode(jpeg(128, 96)).decode()


def page() -> bytes:
    """Dark words on light ground, 128x96, as a PNG."""
    drawn = np.full((96, 128, 3), 235, np.uint8)
    for row, word in enumerate(("TOTAL", "12.50", "thanks")):
        cv2.putText(drawn, word, (10, 28 + 28 * row), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (20, 20, 20), 2)
    return cv2.imencode(".png", drawn)[1].tobytes()


CONFIG = (
    '<View><Image name="img" value="$image"/>'
    '<RectangleLabels name="box" toName="img"><Label value="Round" predicted_values="ball"/><Label value="cube"/></RectangleLabels>'
    '<PolygonLabels name="outline" toName="img"><Label value="ball"/><Label value="cube"/></PolygonLabels>'
    '<BrushLabels name="brush" toName="img"><Label value="ball"/><Label value="cube"/></BrushLabels></View>'
)

OCR_CONFIG = (
    '<View><Image name="img" value="$image"/><Rectangle name="place" toName="img"/>'
    '<Labels name="kind" toName="img"><Label value="Heading"/><Label value="Line" predicted_values="Text"/></Labels>'
    '<TextArea name="words" toName="img" perRegion="true"/></View>'
)

FEW = "test_cfg=dict(nms_pre=30, max_per_img=5, score_thr=0.0)"
OCR = (
    "test_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile', color_type='color_ignore_orientation'),"
    "dict(type='Resize', scale=(256, 256), keep_ratio=True), dict(type='PackTextDetInputs',"
    "meta_keys=('ori_shape', 'img_shape', 'scale_factor'))]))"
)
SMALL = (
    "\ntest_dataloader = dict(dataset=dict(pipeline=[dict(type='LoadImageFromFile'),"
    "dict(type='Resize', scale=(320, 320), keep_ratio=True), dict(type='Pad', size=(320, 320)), dict(type='PackDetInputs',"
    "meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'))]))"
)
CONFIGS = {
    "rtmdet_ins": ("mmdet/.mim/configs/rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", f"model = dict(bbox_head=dict(num_classes=2), {FEW[:-1]}, mask_thr_binary=0.0))" + SMALL),  # all of the picture
    "faster_rcnn": (
        "mmdet/.mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        "model = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]), roi_head=dict(bbox_head=dict(num_classes=2)), "
        "test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=5)))" + SMALL,
    ),
    "mmyolo": ("mmyolo/.mim/configs/yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py", f"model = dict(bbox_head=dict(head_module=dict(num_classes=2)), {FEW})"),
    "dbnet": ("mmocr/.mim/configs/textdet/dbnet/dbnet_resnet18_fpnc_1200e_icdar2015.py", OCR),
    "crnn": ("mmocr/.mim/configs/textrecog/crnn/crnn_mini-vgg_5e_mj.py", ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(runtime: venvs.Runtime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    make_models(runtime, folder, CONFIGS, classes=("ball", "cube"))
    return folder


def backend(stand: Stand, runtime: venvs.Runtime, template: str) -> list[str]:
    """The first arguments of `labelloop start` for a fresh backend."""
    said = stand.run("init", "backend", "--from", template, "--root-dir", str(stand.home.parent))
    assert said.returncode == 0, said.stderr
    return ["backend", "--root-dir", str(stand.home.parent), "--python", str(runtime.python)]


@pytest.mark.parametrize(
    ("name", "drawn"),
    [
        ("rtmdet_ins", {"rectanglelabels", "polygonlabels", "brushlabels"}),
        ("faster_rcnn", {"rectanglelabels", "polygonlabels"}),
        ("mmyolo", {"rectanglelabels", "polygonlabels"}),
    ],
)
def test_a_family_of_detectors(
    runtime: venvs.Runtime, models: Path, tmp_path: Path, name: str, drawn: set[str]
) -> None:
    stand = Stand(tmp_path / "home")
    shared, aliases = tmp_path / "pictures", tmp_path / "aliases.json"
    shared.mkdir()
    (shared / "b.jpg").write_bytes(jpeg(128, 96))
    aliases.write_text('{"cube": "Round", "ball": "no label of this project"}')
    files = [f"config_file={models / name}.py", f"checkpoint_file={models / name}.pth"]
    files += [f"image_dir={shared}", f"labels_file={aliases}", "LABEL_STUDIO_HOSTNAME=http://127.0.0.1:9"]
    device = {"rtmdet_ins": "cpu", "faster_rcnn": "cuda:0", "mmyolo": "gpu:0"}[name]  # the CPU where there is none
    command = [*backend(stand, runtime, "mmdetection"), "--with", *files, f"device={device}", "score_threshold=0"]
    with stand.serving(*command) as caller:
        tasks = [{"id": 1, "data": {"image": PICTURE}}, {"id": 2, "data": {"image": "/data/upload/1/b.jpg"}}]
        results = caller.predict(tasks, CONFIG)
    assert len(results) == 2
    assert all(one["result"] for one in results), results
    regions = [region for one in results for region in one["result"]]
    assert drawn <= {region["type"] for region in regions}, results
    for region in regions:
        label = region["value"][region["type"]][0]
        assert label == "Round" if region["from_name"] == "box" else label in ("ball", "cube")
        assert (region["original_width"], region["original_height"]) == (128, 96)
        if region["type"] == "brushlabels":
            assert bytes(decode_rle(region["value"]["rle"])) == b"\xff" * (4 * 128 * 96)


def test_lines_of_text(runtime: venvs.Runtime, models: Path, tmp_path: Path) -> None:
    stand = Stand(tmp_path / "home")
    shared = tmp_path / "pictures"
    shared.mkdir()
    (shared / "receipt.png").write_bytes(page())
    files = [f"det_config={models}/dbnet.py", f"det_ckpt={models}/dbnet.pth"]
    files += [f"recog_config={models}/crnn.py", f"recog_ckpt={models}/crnn.pth", f"image_dir={shared}"]
    command = [*backend(stand, runtime, "mmocr"), "--with", *files, "device=cpu", "score_threshold=0"]
    inline = "data:image/png;base64," + base64.b64encode(page()).decode()
    tasks = [{"id": 1, "data": {"image": "/data/upload/1/receipt.png"}}, {"id": 2, "data": {"image": inline}}]
    with stand.serving(*command) as caller:
        first, second = caller.predict(tasks, OCR_CONFIG)
    assert len(first["result"]) == len(second["result"]), "the same picture, from the shared folder and from the task"
    lines: dict[str, dict[str, Any]] = {}
    for region in first["result"]:
        lines.setdefault(region["id"], {})[region["from_name"]] = region
        assert region["original_width"] == 128
    assert lines, "a network that says anything finds something"
    for line in lines.values():
        assert {name: part["type"] for name, part in line.items()} == {
            "place": "rectangle",
            "kind": "labels",
            "words": "textarea",
        }
        place = line["place"]["value"]
        assert place.keys() == {"x", "y", "width", "height", "rotation"}
        assert place.items() <= line["kind"]["value"].items()
        assert place.items() <= line["words"]["value"].items()
        assert line["kind"]["value"]["labels"] == ["Line"]
        (text,) = line["words"]["value"]["text"]
        assert isinstance(text, str)
        assert 0 <= line["words"]["score"] <= 1

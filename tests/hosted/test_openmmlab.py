"""MMDetection and MMYOLO behind `labelloop start`, from the configs in their packages and weights made here.

Needs the runtime: labelloop runtimes create openmmlab --find-links ../shared/openmmlab/wheels
"""

from __future__ import annotations

import base64
import subprocess
from pathlib import Path

import pytest

from labelloop.core.settings import read_settings
from labelloop.engines.isolated import FAR_SIDE
from labelloop.runtimes import venvs
from reference.running_server import jpeg
from reference.stand import Stand

pytestmark = [pytest.mark.openmmlab, pytest.mark.slow]

PICTURE = "data:image/jpeg;base64," + base64.b64encode(jpeg(128, 96)).decode()
CONFIG = (
    '<View><Image name="img" value="$image"/>'
    '<RectangleLabels name="box" toName="img"><Label value="Round" predicted_values="ball"/><Label value="cube"/></RectangleLabels>'
    '<PolygonLabels name="outline" toName="img"><Label value="ball"/><Label value="cube"/></PolygonLabels>'
    '<BrushLabels name="brush" toName="img"><Label value="ball"/><Label value="cube"/></BrushLabels></View>'
)

CHECKPOINT = """
import sys, torch
sys.path[:0] = sys.argv[1:3]
from mmdetection import define_operators, forget_initial_weights
define_operators(torch)
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmdet.registry import MODELS
import mmyolo.models
torch.manual_seed(0)
config = Config.fromfile(sys.argv[3])
init_default_scope(config.default_scope)
forget_initial_weights(config.model)
model = MODELS.build(config.model)
for module in model.modules():
    if isinstance(module, torch.nn.Conv2d) and module.out_channels == 4 and module.bias is not None:
        module.bias.data.fill_(2.0)  # distances from the centre: boxes that are there
meta = {"dataset_meta": {"classes": ["ball", "cube"]}}
torch.save({"state_dict": model.state_dict(), "meta": meta}, sys.argv[4])
"""

FEW = "test_cfg=dict(nms_pre=30, max_per_img=5, score_thr=0.0)"
CASES = {
    "RTMDet": ("mmdet/.mim/configs/rtmdet/rtmdet_tiny_8xb32-300e_coco.py", f"bbox_head=dict(num_classes=2), {FEW}", {"rectanglelabels", "polygonlabels"}),
    "RTMDet-Ins": ("mmdet/.mim/configs/rtmdet/rtmdet-ins_tiny_8xb32-300e_coco.py", f"bbox_head=dict(num_classes=2), {FEW}", {"rectanglelabels"}),
    "Faster R-CNN": (
        "mmdet/.mim/configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
        "roi_head=dict(bbox_head=dict(num_classes=2)), test_cfg=dict(rpn=dict(max_per_img=50), rcnn=dict(score_thr=0.0, max_per_img=5))",
        {"rectanglelabels", "polygonlabels"},
    ),
    "MMYOLO": ("mmyolo/.mim/configs/yolov5/yolov5_n-v61_syncbn_fast_8xb16-300e_coco.py", f"bbox_head=dict(head_module=dict(num_classes=2)), {FEW}", {"rectanglelabels", "polygonlabels"}),
}  # fmt: skip


@pytest.fixture(scope="module")
def runtime() -> venvs.Runtime:
    found = venvs.look(read_settings().home, "openmmlab")
    if found.state != "ready":
        pytest.skip("no runtime: labelloop runtimes create openmmlab --find-links ../shared/openmmlab/wheels")
    return found


@pytest.mark.parametrize("family", CASES)
def test_a_family_of_detectors(runtime: venvs.Runtime, tmp_path: Path, family: str) -> None:
    base, changes, drawn = CASES[family]
    config, checkpoint = tmp_path / "config.py", tmp_path / "weights.pth"
    (installed,) = runtime.path.glob("lib/python3*/site-packages")
    config.write_text(f"_base_ = {str(installed / base)!r}\nmodel = dict({changes})\n")
    stand = Stand(tmp_path / "home")
    said = stand.run("init", "coco-detector", "--from", "mmdetection", "--root-dir", str(tmp_path))
    assert said.returncode == 0, said.stderr
    paths = [FAR_SIDE / "examples", FAR_SIDE / "names", config, checkpoint]
    subprocess.run([runtime.python, "-c", CHECKPOINT, *paths], check=True, capture_output=True)
    arguments = ["coco-detector", "--root-dir", str(tmp_path), "--python", str(runtime.python)]
    options = [f"config_file={config}", f"checkpoint_file={checkpoint}", "device=cpu", "score_threshold=0"]
    with stand.serving(*arguments, "--with", *options) as caller:
        results = caller.predict([{"id": number, "data": {"image": PICTURE}} for number in range(2)], CONFIG)
    assert len(results) == 2
    regions = [region for one in results for region in one["result"]]
    assert drawn <= {region["type"] for region in regions}, results
    for region in regions:
        assert region["value"][region["type"]][0] in (
            ("Round", "cube") if region["from_name"] == "box" else ("ball", "cube")
        )
        assert (region["original_width"], region["original_height"]) == (128, 96)

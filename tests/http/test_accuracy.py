"""The whole path pinned with numbers: from an upload behind a token, through HTTP and percent, to COCO box mAP."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import cv2
import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.engines.labels import COCO
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.wire import decode_regions
from labelloop.serving.models import add_model, load_engine
from reference.coco_map import Detection, Reference, box_map

LABELS = "".join(f'<Label value="{escape(name)}"/>' for name in COCO)
CONFIG = (
    '<View><Image name="img" value="$image"/>'
    f'<RectangleLabels name="box" toName="img" model_score_threshold="0">{LABELS}</RectangleLabels></View>'
)


@pytest.mark.parametrize("model", ["yolox_nano_416", "nanodet_m_320", "deimv2_atto_320"])
def test_map_through_http_is_that_of_a_plain_decode(start, studio, shared: Path, tmp_path: Path, model: str) -> None:
    settings = read_settings(home=tmp_path / "home")
    file, folder = shared / f"data/models/{model}.onnx", shared / "data/datasets/coco32"
    truth = folder / "annotations.json"
    backend = start(models=(), load=lambda version: load_engine(backend.parts.store.registry, settings, version))
    add_model(backend.parts.store.registry, file, ModelCard(name="m", labels=COCO), settings)
    backend.parts.projects.refresh()
    project = studio.add_project("coco", CONFIG)
    images = json.loads(truth.read_text())["images"]
    contents = {image["id"]: (folder / "images" / image["file_name"]).read_bytes() for image in images}
    tasks = [
        {"id": number, "data": {"image": studio.add_upload(project, f"{number}.jpg", content)}}
        for number, content in contents.items()
    ]
    version = backend.setup(1, config=CONFIG, studio=studio)
    items = backend.predict(tasks, config=CONFIG).json()["results"]
    assert {item["model_version"] for item in items} == {version}
    config = parse_config(CONFIG)
    ours = {
        task["id"]: [
            Detection(region.shape.xyxy, region.score, COCO.index(region.label))
            for region in decode_regions(item["result"], config)
        ]
        for task, item in zip(tasks, items, strict=True)
    }
    plain = Reference(file)
    theirs = {
        number: plain(np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR_RGB)))
        for number, content in contents.items()
    }
    assert box_map(ours, truth) == pytest.approx(box_map(theirs, truth), abs=0.005)

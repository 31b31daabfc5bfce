"""From the last correction to a better model that is live: trigger, data set, training, evaluation, promotion.

python benchmarks/loop.py --data FOLDER_WITH_COCO_TRAIN_VAL --model yolox_nano_416.onnx --budget 60

FOLDER has train.json (COCO detection) and images/. Its pictures become tasks of a Label Studio that behaves as the real
one (labelloop.testing), people's annotations included; the server's own parts do everything else. The stages' seconds
are those of the run's log, so they hold what a user waits for, the start of the child process and the export included.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

import httpx

from labelloop.app import assemble, close, training_of
from labelloop.core.cards import ModelCard
from labelloop.core.logs import configure_logs
from labelloop.core.settings import read_settings
from labelloop.core.tasks import Event
from labelloop.jobs.training import summary
from labelloop.serving.models import add_model
from labelloop.store.loops import LoopOptions
from labelloop.testing import FakeLabelStudio

COCO = tuple(f"class {number}" for number in range(80))


def config_of(labels: list[str]) -> str:
    shown = "".join(f'<Label value="{label}"/>' for label in labels)
    return (
        f'<View><Image name="i" value="$image"/><RectangleLabels name="r" toName="i">{shown}</RectangleLabels></View>'
    )


def results(
    picture: dict[str, object], boxes: list[dict[str, object]], names: dict[int, str]
) -> list[dict[str, object]]:
    """COCO boxes as an annotator's regions."""
    width, height = float(picture["width"]), float(picture["height"])  # type: ignore[arg-type]
    rows = []
    for number, box in enumerate(boxes):
        x, y, w, h = box["bbox"]  # type: ignore[misc]
        value = {"x": 100 * x / width, "y": 100 * y / height, "width": 100 * w / width, "height": 100 * h / height}
        value |= {"rotation": 0, "rectanglelabels": [names[box["category_id"]]]}  # type: ignore[index,dict-item]
        row = {"id": f"b{number}", "from_name": "r", "to_name": "i", "type": "rectanglelabels", "value": value}
        rows.append(row | {"original_width": picture["width"], "original_height": picture["height"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="ONNX file to begin with; nothing: a cold start.")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--budget", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    configure_logs(level="warning")
    dataset = json.loads((arguments.data / "train.json").read_text())
    names = {category["id"]: category["name"] for category in dataset["categories"]}
    with tempfile.TemporaryDirectory() as home, FakeLabelStudio() as studio:
        settings = read_settings(home=Path(home), label_studio_url=studio.url, label_studio_token=studio.token)
        project = studio.add_project("benchmark", config_of(list(names.values())))
        http = httpx.Client(base_url=studio.url, headers={"Authorization": f"Token {studio.token}"}, timeout=30)
        for picture in dataset["images"][: arguments.pictures]:
            content = (arguments.data / "images" / picture["file_name"]).read_bytes()
            (task,) = studio.add_tasks(project, [{"image": studio.add_upload(project, picture["file_name"], content)}])
            boxes = [box for box in dataset["annotations"] if box["image_id"] == picture["id"]]
            body = {"result": results(picture, boxes, names)}
            http.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status()
        parts = assemble(settings)
        try:
            if arguments.model:
                version = add_model(
                    parts.store.registry, arguments.model, ModelCard(name="base", labels=COCO), settings
                )
                parts.store.registry.bind(project, version.id)
            training = training_of(parts.store)
            options = LoopOptions(min_new=20, quiet_s=0, budget_s=arguments.budget, seed=arguments.seed)
            training.loops.set(project, studio.url, enabled=True, options=options)
            parts.jobs.start()
            for task in range(1, 21):
                parts.store.events.record(Event("ANNOTATION_CREATED", project, (task,), (task,)))
            begun = time.perf_counter()
            while not (runs := training.runs.of_project(project)) or runs[0].stage in (
                "pull",
                "train",
                "evaluate",
                "promote",
            ):
                if runs and training.jobs.get(runs[0].job_id).ended:
                    break
                time.sleep(0.05)
            print(f"trigger to live: {time.perf_counter() - begun:.1f} s with a budget of {arguments.budget:g} s")
            job = training.jobs.get(runs[0].job_id)
            for line in training.jobs.lines(job.id):
                print(f"  {(line.at - job.created_at).total_seconds():6.1f} s  {line.text}")
            for line in summary(training.runs.of_project(project)[0]):
                print(f"  {line}")
        finally:
            close(parts)
            http.close()


if __name__ == "__main__":
    main()

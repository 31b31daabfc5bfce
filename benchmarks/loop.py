"""From the last correction to a better model that is live: trigger, data set, training, evaluation, promotion; and how
long a webhook takes meanwhile.

python benchmarks/loop.py --data FOLDER_WITH_COCO_TRAIN_VAL --model yolox_nano_416.onnx --budget 60

FOLDER has train.json (COCO detection) and images/. Its pictures become tasks of a Label Studio that behaves as the real
one (labelloop.testing), people's annotations included; the server's own parts do everything else. The stages' seconds
are those of the run's log, so they hold what a user waits for, the start of the child process and the export included.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from labelloop.app import assemble, create_app, training_of
from labelloop.core.cards import ModelCard
from labelloop.core.logs import configure_logs
from labelloop.core.settings import read_settings
from labelloop.core.tasks import Event
from labelloop.jobs.training import summary
from labelloop.serving.models import add_model
from labelloop.store.loops import LoopOptions
from labelloop.testing import FakeLabelStudio, LoopbackServer

TURN_S = 3.0
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


class Webhooks(threading.Thread):
    """Tells the server of an annotation ten times a second, as Label Studio does inside an annotator's click. With
    `turns` the trainer works and is stopped by turns, so that both halves know the same neighbours on the machine."""

    def __init__(self, url: str, project: int, *, turns: bool) -> None:
        super().__init__(daemon=True)
        self._url, self._project, self._turns = url, project, turns
        self._end = threading.Event()
        self._taken_ms: dict[str, list[float]] = {"trains": [], "is stopped": []}
        self._lost = 0

    def run(self) -> None:
        project, number = {"id": self._project, "title": "benchmark"}, 0
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as http:
            while not self._end.wait(0.1):
                number += 1
                stopped = self._turns and int(time.monotonic() / TURN_S) % 2 == 1
                if not signal_trainer(signal.SIGSTOP if stopped else signal.SIGCONT):
                    continue
                about = {"id": number, "task": number, "updated_at": f"2026-01-02T00:00:00.{number:06d}Z"}
                body = {"action": "ANNOTATION_UPDATED", "project": project, "task": {"id": number}, "annotation": about}
                begun = time.perf_counter()
                self._lost += not http.post("/webhook", json=body).is_success
                self._taken_ms["is stopped" if stopped else "trains"].append(1000 * (time.perf_counter() - begun))

    def stop(self) -> None:
        self._end.set()
        self.join()
        for what, taken in self._taken_ms.items():
            if taken:
                p50, p95 = (float(np.percentile(taken, share)) for share in (50, 95))
                print(f"{len(taken)} webhooks while it {what}: p50 {p50:.1f} ms, p95 {p95:.1f}, most {max(taken):.1f}")
        print(f"{self._lost} webhooks lost")


def signal_trainer(number: signal.Signals) -> bool:
    """Send a signal to the trainer and what it has started; whether there is one."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status, command = (entry / "stat").read_text(), (entry / "cmdline").read_bytes()
        except OSError:  # it ended while we looked
            continue
        if int(status.rpartition(")")[2].split()[1]) == os.getpid() and b"trainers.child" in command:
            os.killpg(int(entry.name), number)
            return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, help="ONNX file to begin with; nothing: a cold start.")
    parser.add_argument("--pictures", type=int, default=200)
    parser.add_argument("--budget", type=float, default=60)
    parser.add_argument("--turns", action="store_true", help="Stop the trainer by turns, to compare webhooks.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    configure_logs(level="warning")
    sys.setswitchinterval(0.0005)  # as `labelloop serve` does
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
        with LoopbackServer(create_app(settings, parts), lifespan="on") as server:
            if arguments.model:
                version = add_model(
                    parts.store.registry, arguments.model, ModelCard(name="base", labels=COCO), settings
                )
                parts.store.registry.bind(project, version.id)
            training = training_of(parts.store)
            options = LoopOptions(min_new=20, quiet_s=0, budget_s=arguments.budget, seed=arguments.seed)
            training.loops.set(project, studio.url, enabled=True, options=options)
            for task in range(1, 21):
                parts.store.events.record(Event("ANNOTATION_CREATED", project, (task,), (task,)))
            begun = time.perf_counter()
            webhooks = Webhooks(server.url, project, turns=arguments.turns)
            webhooks.start()
            while not (runs := training.runs.of_project(project)) or runs[0].stage in (
                "pull",
                "train",
                "further",
                "evaluate",
                "promote",
            ):
                if runs and training.jobs.get(runs[0].job_id).ended:
                    break
                time.sleep(0.05)
            print(f"trigger to live: {time.perf_counter() - begun:.1f} s with a budget of {arguments.budget:g} s")
            webhooks.stop()
            job = training.jobs.get(runs[0].job_id)
            for line in training.jobs.lines(job.id):
                print(f"  {(line.at - job.created_at).total_seconds():6.1f} s  {line.text}")
            for line in summary(training.runs.of_project(project)[0]):
                print(f"  {line}")
        http.close()


if __name__ == "__main__":
    main()

"""How fast `labelloop prelabel` is, against the model alone and Label Studio's import alone, measured beside it.

python benchmarks/prelabel.py --tasks 5000 --model yolox_nano_416.onnx    a real detector, pictures made up
python benchmarks/prelabel.py --tasks 100000                              an engine that finds nothing: the job itself

Label Studio is the fake one, in a process of its own; the job runs in a `labelloop worker`, as it does for people.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="person"/><Label value="car"/><Label value="dog"/></RectangleLabels></View>'
)
PICTURES = 64


class Place(NamedTuple):
    """The fake: `twin` is a project with as many tasks, for the import alone."""

    url: str
    token: str
    project: int
    twin: int
    pid: int


def pictures() -> list[str]:
    """Noise on a slope, 320 x 240, as data URIs: no network is measured."""
    import cv2
    import numpy as np

    chance = np.random.default_rng(1)
    slope = np.linspace(0, 200, 320)[None, :, None]
    found = []
    for _ in range(PICTURES):
        noise = chance.integers(0, 55, (240, 320, 3))
        content = bytes(cv2.imencode(".jpg", (slope + noise).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 60])[1])
        found.append("data:image/jpeg;base64," + base64.b64encode(content).decode())
    return found


def serve_studio(tasks: int, with_pictures: bool) -> None:
    """Until its input closes."""
    from labelloop.testing import FakeLabelStudio

    uris = pictures() if with_pictures else ["x.jpg"]
    with FakeLabelStudio() as studio:
        projects = [studio.add_project(title, CONFIG) for title in ("streets", "twin streets")]
        for project in projects:
            studio.add_tasks(project, ({"image": uris[n % len(uris)]} for n in range(tasks)))
        print(json.dumps([studio.url, studio.token, *projects, os.getpid()]), flush=True)
        sys.stdin.read()


@contextmanager
def studio(arguments: argparse.Namespace) -> Iterator[Place]:
    command = [sys.executable, __file__, "--studio", "--tasks", str(arguments.tasks)]
    command += ["--model", str(arguments.model)] * bool(arguments.model)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        yield Place(*json.loads(running.stdout.readline()))
        running.stdin.close()


def model_alone(home: Path, model: str, seconds: float) -> float:
    """Pictures per second through the prediction path, in pages of 500, with nothing read and nothing stored."""
    code = f"import prelabel; print(prelabel.predict_only({str(home)!r}, {model!r}, {seconds}))"
    said = subprocess.check_output([sys.executable, "-c", code], cwd=Path(__file__).parent, text=True)
    return float(said.splitlines()[-1])  # the lines before are its log


def predict_only(home: str, model: str, seconds: float) -> float:
    import cv2

    from labelloop.app import assemble
    from labelloop.core.settings import read_settings
    from labelloop.core.tasks import Task
    from labelloop.serving.projects import build_view
    from labelloop.serving.stage import Priority

    sys.setswitchinterval(0.0005)
    cv2.setNumThreads(1)
    parts = assemble(read_settings(home=Path(home)))
    view = build_view(parts.store.registry.catalogue().find(model), CONFIG, threshold=None, aliases={})
    uris = pictures()
    tasks = [Task(n, {"image": uris[n % PICTURES]}, 1) for n in range(500)]

    async def run() -> float:
        await parts.predictor.predict(tasks[:50], view, priority=Priority.BULK, deadline_s=600)
        begun, done = time.perf_counter(), 0
        while time.perf_counter() - begun < seconds:
            done += len(await parts.predictor.predict(tasks, view, priority=Priority.BULK, deadline_s=600))
        return done / (time.perf_counter() - begun)

    return asyncio.run(run())


def import_alone(place: Place, items: Sequence[dict[str, Any]], tasks: int) -> float:
    """Predictions per second, 500 at a time, that look like those of the job."""
    from labelloop.labelstudio.client import Client

    with Client(place.url, place.token) as client:
        ids = [row["id"] for row in client.tasks(place.twin, page_size=tasks, include=("id", "data")).tasks]
        begun = time.perf_counter()
        for start in range(0, len(ids), 500):
            part = ids[start : start + 500]
            batch = [items[n % len(items)] | {"task": task} for n, task in enumerate(part)]
            assert client.import_predictions(place.twin, batch).dropped == 0
        return len(ids) / (time.perf_counter() - begun)


def memory_mb(pid: int, field: str = "VmRSS") -> float:
    found = re.search(rf"{field}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


def run_job(place: Place, home: Path, model: str, tasks: int) -> tuple[float, dict[int, float], list[float]]:
    """Tasks per second from the first stored page to the end; the worker's memory in MB after each page; and
    seconds per 1,000 tasks, in order."""
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store
    from labelloop.serving.projects import build_view
    from labelloop.store.jobs import Work
    from labelloop.store.pages import progress

    store = open_store(read_settings(home=home))
    store.registry.save_connection(place.url, place.token)
    version = store.registry.catalogue().find(model)
    view = build_view(version, CONFIG, threshold=None, aliases={})
    job, _ = store.jobs.create(Work(place.url, place.project, version.id, view.name))
    environment = os.environ | {"LABELLOOP_HOME": str(home), "LABELLOOP_LOG_LEVEL": "warning"}
    worker = subprocess.Popen([sys.executable, "-m", "labelloop", "worker", "--until-idle"], env=environment)
    first, seen, memory, marks = 0, 0, {}, [time.perf_counter()]
    begun = marks[0]
    while not store.jobs.get(job.id).ended:
        done = progress(store.engine, job.id).done
        if done and not first:
            first, begun = done, time.perf_counter()
        if done > seen:
            memory[done] = memory_mb(worker.pid)
            marks += [time.perf_counter()] * (done // 1000 - seen // 1000)
            seen = done
        time.sleep(0.05)
    seconds = time.perf_counter() - begun
    worker.wait(60)
    ended, found = store.jobs.get(job.id), progress(store.engine, job.id)
    assert ended.state == "done", ended.error
    assert (found.stored, found.failed) == (tasks, 0), found
    return (found.done - first) / seconds, memory, [after - before for before, after in itertools.pairwise(marks[1:])]


def check(place: Place, tasks: int) -> list[dict[str, Any]]:
    """Exactly one prediction per task; returns some of them as the import takes them."""
    from labelloop.labelstudio.client import Client

    with Client(place.url, place.token) as client:
        (version,) = client.model_versions(place.project)
        assert version.count == tasks, version
        page = client.tasks(place.project, page_size=500, include=("id", "predictions"), everything=True)
        assert all(len(row["predictions"]) == 1 for row in page.tasks)
        kept = ("result", "score", "model_version")
        return [{name: row["predictions"][0][name] for name in kept} for row in page.tasks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--model", type=Path, help="an ONNX detector with the classes of COCO")
    parser.add_argument("--studio", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.studio:
        serve_studio(arguments.tasks, with_pictures=arguments.model is not None)
        return
    with tempfile.TemporaryDirectory() as folder, studio(arguments) as place:
        home = Path(folder)
        given = [str(arguments.model), "--labels", "coco"] if arguments.model else ["--engine", "empty"]
        command = [sys.executable, "-m", "labelloop", "models", "add", *given, "--name", "measured"]
        environment = os.environ | {"LABELLOOP_HOME": folder}
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        before = model_alone(home, "measured", 8) if arguments.model else 0.0
        rate, memory, marks = run_job(place, home, "measured", arguments.tasks)
        after = model_alone(home, "measured", 8) if arguments.model else 0.0
        imports = import_alone(place, check(place, arguments.tasks), arguments.tasks)
        report(rate, memory, marks, (before, after), imports)


def report(
    rate: float, memory: dict[int, float], marks: Sequence[float], models: tuple[float, float], imports: float
) -> None:
    model = sum(models) / 2
    ceiling = min(model, imports) if model else imports
    print(f"the job: {rate:.0f} tasks/s, {rate / ceiling:.2f} of the smaller of the two alone")
    if model:
        print(f"the model alone: {models[0]:.0f} before and {models[1]:.0f} after, pictures/s")
    print(f"the import alone: {imports:.0f} predictions/s")
    early, last = min(done for done in memory if done >= 500), max(memory)
    print(f"memory of the worker: {memory[early]:.0f} MB at {early} tasks, {memory[last]:.0f} MB at {last}")
    if len(marks) > 9:
        tenth = len(marks) // 10
        means = sum(marks[:tenth]) / tenth, sum(marks[-tenth:]) / tenth
        print(f"seconds per 1,000 tasks: {means[0]:.2f} in the first tenth, {means[1]:.2f} in the last")


if __name__ == "__main__":
    main()

"""How fast `labelloop prelabel` is, against the model alone and Label Studio's import alone, measured beside it.

python benchmarks/prelabel.py --model yolox_nano_416.onnx --kills 3     a real Label Studio, 5,000 made-up pictures
python benchmarks/prelabel.py --fake --tasks 100000                     the job itself: a Label Studio in memory, and
                                                                        a model that finds nothing

The job runs in a `labelloop worker` as it does for people. With --kills it is done once more in another project, by
workers that are killed on the way. Every run ends with a look at every task: it must have one prediction.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="person"/><Label value="car"/><Label value="dog"/></RectangleLabels></View>'
)
PICTURES = 64
TURN_S = 4.0
TITLES = ("streets", "twin streets", "streets of the killed")


class Place(NamedTuple):
    """A Label Studio with three projects of as many tasks: for the job, for the import alone, and for the kills."""

    url: str
    token: str
    project: int
    twin: int
    killed: int
    group: int
    """Process group of the server."""


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


def serve_fake(tasks: int, with_pictures: bool) -> None:
    """Until its input closes."""
    from labelloop.testing import FakeLabelStudio

    uris = pictures() if with_pictures else ["x.jpg"]
    with FakeLabelStudio() as studio:
        projects = [studio.add_project(title, CONFIG) for title in TITLES]
        for project in projects:
            studio.add_tasks(project, ({"image": uris[n % len(uris)]} for n in range(tasks)))
        print(json.dumps([studio.url, studio.token, *projects, os.getpid()]), flush=True)
        sys.stdin.read()


@contextmanager
def fake_studio(arguments: argparse.Namespace) -> Iterator[Place]:
    command = [sys.executable, __file__, "--serve-fake", "--tasks", str(arguments.tasks)]
    command += ["--model", str(arguments.model)] * bool(arguments.model)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as running:
        assert running.stdout is not None
        assert running.stdin is not None
        yield Place(*json.loads(running.stdout.readline()))
        running.stdin.close()


@contextmanager
def real_studio(arguments: argparse.Namespace) -> Iterator[Place]:
    """The runtime that `labelloop runtimes create label-studio` made."""
    from labelloop.core.settings import read_settings
    from labelloop.labelstudio.client import Client
    from labelloop.runtimes import label_studio

    uris = pictures()
    with label_studio.start(read_settings().home) as server, Client(server.url, server.token) as client:
        projects = [client.create_project(title, CONFIG).id for title in TITLES]
        for project, start in itertools.product(projects, range(0, arguments.tasks, 1000)):
            numbers = range(start, min(start + 1000, arguments.tasks))
            client.import_tasks(project, [{"data": {"image": uris[n % PICTURES]}} for n in numbers])
        yield Place(server.url, server.token, *projects, server.pid)


def predict_for_ever(home: str, model: str) -> None:
    """Pictures through the prediction path, with nothing read and nothing stored; says after each hundred."""
    import cv2

    from labelloop.app import assemble
    from labelloop.core.settings import read_settings
    from labelloop.core.tasks import Task
    from labelloop.serving.projects import Lens
    from labelloop.serving.stage import Priority

    sys.setswitchinterval(0.0005)
    cv2.setNumThreads(1)
    parts = assemble(read_settings(home=Path(home)))
    view = Lens().view(parts.store.registry.catalogue().find(model), CONFIG)
    uris = pictures()
    tasks = [Task(n, {"image": uris[n % PICTURES]}, 1) for n in range(100)]

    async def run() -> None:
        while True:
            await parts.predictor.predict(tasks, view, priority=Priority.BULK, deadline_s=600)
            print("", flush=True)

    asyncio.run(run())


class Turns:
    """Gives the machine to the job and to the model alone by turns, a few seconds each, because the speed of a shared
    machine changes from one second to the next. Whose turn it is not is stopped by a signal: SIGSTOP, then SIGCONT."""

    def __init__(self, place: Place, home: Path, model: str) -> None:
        code = f"import prelabel; prelabel.predict_for_ever({str(home)!r}, {model!r})"
        command = [sys.executable, "-c", code]
        self._peer = subprocess.Popen(
            command, cwd=Path(__file__).parent, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        self._studio = place.group
        self._pictures = 0
        threading.Thread(target=self._count, daemon=True).start()
        while not self._pictures:
            time.sleep(0.05)
        self._peer.send_signal(signal.SIGSTOP)
        self._before = self._pictures
        self._before_s = processor_s(pid=self._peer.pid)
        self._peer_s = self._job_s = 0.0
        self._since = time.perf_counter()

    def _count(self) -> None:
        assert self._peer.stdout is not None
        for line in self._peer.stdout:
            self._pictures += 100 * (line == b"\n")  # the other lines are its log

    def clock(self) -> float:
        """Seconds that the job had."""
        return self._job_s + time.perf_counter() - self._since

    def swap(self, worker: subprocess.Popen[bytes]) -> None:
        """Call it often; now and then it takes a while."""
        if time.perf_counter() - self._since < TURN_S:
            return
        self._job_s += time.perf_counter() - self._since
        worker.send_signal(signal.SIGSTOP)
        os.killpg(self._studio, signal.SIGSTOP)
        self._peer.send_signal(signal.SIGCONT)
        begun = time.perf_counter()
        time.sleep(TURN_S)
        self._peer.send_signal(signal.SIGSTOP)
        self._peer_s += time.perf_counter() - begun
        os.killpg(self._studio, signal.SIGCONT)
        worker.send_signal(signal.SIGCONT)
        self._since = time.perf_counter()

    def end(self) -> tuple[float, float]:
        """Pictures per second of the model alone, and its processor seconds a picture."""
        pictures, used_s = self._pictures - self._before, processor_s(pid=self._peer.pid) - self._before_s
        self._peer.kill()
        self._peer.wait()
        return pictures / self._peer_s, used_s / pictures


def import_alone(place: Place, items: Sequence[dict[str, Any]], sizes: Sequence[int]) -> float:
    """Predictions per second, that look like those of the job and come in imports as large as its own."""
    from labelloop.labelstudio.client import Client

    with Client(place.url, place.token) as client:
        ids = [row["id"] for page in client.task_pages(place.twin, include=("id",)) for row in page.tasks]
        seconds, at = 0.0, 0
        for size in sizes:
            part, at = ids[at : at + size], at + size
            batch = [items[n % len(items)] | {"task": task} for n, task in enumerate(part)]
            begun = time.perf_counter()
            assert client.import_predictions(place.twin, batch).dropped == 0
            seconds += time.perf_counter() - begun
        return len(ids) / seconds


def processor_s(*, pid: int | None = None, group: int | None = None) -> float:
    """Processor seconds of a process, or of all processes in a group, so far: they tell what a task costs also where
    other programs take turns with ours."""
    found = 0
    for file in [Path(f"/proc/{pid}/stat")] if pid else Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # a process that has just ended
            fields = file.read_text().rpartition(")")[2].split()
            found += (int(fields[11]) + int(fields[12])) * (group in (None, int(fields[2])))
    return found / os.sysconf("SC_CLK_TCK")


def memory_mb(pid: int) -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) / 1024 if found else 0.0


class Run(NamedTuple):
    """How one job went. `stored` holds (tasks done, seconds, megabytes of the worker) after each page; `used` the
    processor seconds of the worker and of Label Studio, from the first stored page to the last."""

    stored: list[tuple[int, float, float]]
    used: tuple[float, float]
    sizes: list[int]
    kills: int
    seconds: float

    @property
    def rate(self) -> float:
        """Tasks per second from the first stored page to the last."""
        (first, begun, _), (last, ended, _) = self.stored[0], self.stored[-1]
        return (last - first) / (ended - begun)

    def seconds_per_1000(self, of: tuple[float, float]) -> float:
        """In a part of the run, for instance the last quarter: (0.75, 1.0)."""
        total = self.stored[-1][0]
        part = [row for row in self.stored if of[0] * total <= row[0] <= of[1] * total]
        return (part[-1][1] - part[0][1]) / (part[-1][0] - part[0][0]) * 1000


def worker_command(*, stopped_for: float) -> list[str]:
    """A worker. Its clock goes on while it is stopped for the other's turn, and what it does depends on how much is
    predicted in some seconds: these become `stopped_for` times as many, or it would import more often than without
    turns."""
    code = f"""
import sys
from labelloop.cli import main
from labelloop.jobs import preannotate
preannotate.PAGE_S *= {stopped_for}
preannotate.LONGEST_WAIT_S *= {stopped_for}
sys.argv = ["labelloop", "worker", "--until-idle"]
main()
"""
    return [sys.executable, "-P", "-c", code]


def run_job(
    place: Place, project: int, home: Path, model: str, tasks: int, *, kills: int = 0, turns: Turns | None = None
) -> Run:
    """Create a job and run workers until it is done; `kills` of them are killed at moments that chance chooses."""
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_store
    from labelloop.serving.projects import Lens
    from labelloop.store.jobs import Work
    from labelloop.store.pages import progress

    store = open_store(read_settings(home=home))
    store.registry.save_connection(place.url, place.token)
    version = store.registry.catalogue().find(model)
    view = Lens().view(version, CONFIG)
    job, _ = store.jobs.create(Work(place.url, project, version.id, view.name))
    chance = random.Random(tasks)
    moments = sorted(chance.uniform(0.05, 0.95) * tasks for _ in range(kills))
    environment = os.environ | {"LABELLOOP_HOME": str(home), "LABELLOOP_LOG_LEVEL": "warning"}
    clock = turns.clock if turns else time.perf_counter
    begun = clock()
    stored: list[tuple[int, float, float]] = []
    used: list[tuple[float, float]] = []
    while not store.jobs.get(job.id).ended:
        worker = subprocess.Popen(worker_command(stopped_for=2 if turns else 1), env=environment)
        try:
            while worker.poll() is None:
                done = progress(store.engine, job.id).done
                if done and (not stored or done > stored[-1][0]):
                    stored.append((done, clock(), memory_mb(worker.pid)))
                    used.append((processor_s(pid=worker.pid), processor_s(group=place.group)))
                if moments and done >= moments[0]:
                    moments.pop(0)
                    time.sleep(chance.uniform(0, 5))  # any moment of a page
                    worker.send_signal(signal.SIGKILL)
                    worker.wait()
                elif turns:
                    turns.swap(worker)
                time.sleep(0.2)  # each look costs a millisecond or two of the two cores
        finally:
            worker.kill()  # it may be stopped, and would stay so
    ended, found = store.jobs.get(job.id), progress(store.engine, job.id)
    assert ended.state == "done", ended.error
    assert (found.stored, found.failed) == (tasks, 0), found
    sizes = [after - before for before, after in itertools.pairwise([0, *(done for done, _, _ in stored)])]
    spent = (used[-1][0] - used[0][0], used[-1][1] - used[0][1])
    return Run(stored, spent, sizes, kills - len(moments), clock() - begun)


def check(place: Place, project: int, tasks: int) -> list[dict[str, Any]]:
    """Exactly one prediction per task; returns some of them as the import takes them."""
    from labelloop.labelstudio.client import Client

    kept = ("result", "score", "model_version")
    seen, some = 0, []
    with Client(place.url, place.token) as client:
        (version,) = client.model_versions(project)
        assert version.count == tasks, version
        for page in client.task_pages(project, page_size=1000, include=("id", "predictions"), everything=True):
            assert all(len(row["predictions"]) == 1 for row in page.tasks)
            seen += len(page.tasks)
            some = some or [{name: row["predictions"][0][name] for name in kept} for row in page.tasks]
    assert seen == tasks, seen
    return some


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=5000)
    parser.add_argument("--model", type=Path, help="an ONNX detector with the classes of COCO; none: finds nothing")
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--fake", action="store_true", help="the fake Label Studio, in a process of its own")
    parser.add_argument("--serve-fake", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve_fake:
        serve_fake(arguments.tasks, with_pictures=arguments.model is not None)
        return
    start: Callable[[argparse.Namespace], Any] = fake_studio if arguments.fake else real_studio
    with tempfile.TemporaryDirectory() as folder, start(arguments) as place:
        measure(place, Path(folder), arguments)


def measure(place: Place, home: Path, arguments: argparse.Namespace) -> None:
    tasks: int = arguments.tasks
    given = [str(arguments.model), "--labels", "coco"] if arguments.model else ["--engine", "empty"]
    command = [sys.executable, "-m", "labelloop", "models", "add", *given, "--name", "measured"]
    subprocess.run(command, env=os.environ | {"LABELLOOP_HOME": str(home)}, check=True, stdout=subprocess.DEVNULL)
    turns = Turns(place, home, "measured") if arguments.model else None
    run = run_job(place, place.project, home, "measured", tasks, turns=turns)
    alone = turns.end() if turns else None
    some = check(place, place.project, tasks)
    report(run, alone, import_alone(place, some, run.sizes))
    if arguments.kills:
        killed = run_job(place, place.killed, home, "measured", tasks, kills=arguments.kills)
        check(place, place.killed, tasks)
        print(f"{killed.kills} workers killed: {killed.seconds:.0f} s, and one prediction for each of {tasks} tasks")


def report(run: Run, alone: tuple[float, float] | None, imports: float) -> None:
    ceiling = min(alone[0], imports) if alone else imports
    print(f"the job: {run.rate:.1f} tasks/s, {run.rate / ceiling:.2f} of the smaller of the two alone")
    if alone:
        print(f"the model alone: {alone[0]:.1f} pictures/s, by turns with the job")
    print(f"the import alone: {imports:.0f} predictions/s, in {len(run.sizes)} imports as the job made them")
    worker_ms, studio_ms = (1000 * seconds / (run.stored[-1][0] - run.stored[0][0]) for seconds in run.used)
    model = f", the model alone {1000 * alone[1]:.1f}" if alone else ""
    print(f"processor ms a task: worker {worker_ms:.1f}, Label Studio {studio_ms:.1f}{model}")
    early, last = next(row for row in run.stored if row[0] >= 500), run.stored[-1]
    print(f"memory of the worker: {early[2]:.0f} MB at {early[0]} tasks, {last[2]:.0f} MB at {last[0]}")
    if len(run.sizes) >= 12:
        early_s, late_s = run.seconds_per_1000((0.0, 0.25)), run.seconds_per_1000((0.75, 1.0))
        print(f"seconds per 1,000 tasks: {early_s:.2f} in the first quarter, {late_s:.2f} in the last")


if __name__ == "__main__":
    main()

"""Worker processes that are killed in the middle of a film, and one that a long film must not fill."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.desk import Desk, film_progress
from labelloop.core.regions import Size
from labelloop.labelstudio.video import decode_track
from labelloop.store.jobs import Job
from labelloop.testing import FakeLabelStudio
from labelloop.video.lifespans import boxes_by_frame
from reference.film_scene import FILM_CONFIG, HEIGHT, SIDE, WIDTH, SquareEngine, across, write_scene
from reference.waiting import wait

pytestmark = pytest.mark.slow

WORKER = """
import os, resource, sys, time
from pathlib import Path
from labelloop.app import open_worker
from labelloop.core.settings import read_settings
from labelloop.serving import films
from reference.film_scene import SquareEngine

home, root, url, token, seconds = sys.argv[1:]
films.PART_S = 0.3
seen = open(Path(home) / f"looked-{os.getpid()}", "ab", buffering=0)

def look(count):
    time.sleep(float(seconds))
    seen.write(b".")

settings = read_settings(
    home=Path(home), local_files_root=Path(root), label_studio_url=url, label_studio_token=token, import_settle_s=1.0
)
with open_worker(settings, load=lambda _: SquareEngine(look)) as worker:
    worker.run(until_idle=True)
peak_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
Path(home, f"peak-{os.getpid()}").write_text(str(peak_kb))
"""


@pytest.fixture
def desk(studio: FakeLabelStudio, tmp_path: Path) -> Desk:
    config = FILM_CONFIG.format(rate=25)
    made = Desk(
        studio,
        tmp_path / "home",
        "",
        config=config,
        field="video",
        labels=SquareEngine.classes,
        local_files_root=tmp_path,
    )
    made.settings.home.mkdir(parents=True, exist_ok=True)
    return made


def add_film(desk: Desk, path: Path) -> int:
    (task,) = desk.studio.add_tasks(desk.project, [{"video": f"/data/local-files/?d={path.name}"}])
    desk.tasks.append(task)
    return task


def start(desk: Desk, root: Path, *, seconds: float = 0.0) -> subprocess.Popen[bytes]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_"))}
    tests = str(Path(__file__).parents[1])
    environment["PYTHONPATH"] = os.pathsep.join([tests, environment.get("PYTHONPATH", "")])
    arguments = [str(desk.settings.home), str(root), desk.studio.url, desk.studio.token, str(seconds)]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], env=environment, stdout=subprocess.DEVNULL)


def frame_of(desk: Desk, job: Job) -> int:
    found = film_progress(desk.store.engine, job.id)
    return found.frame if found else 0


def stored_boxes(desk: Desk, task: int) -> dict[int, Any]:
    (row,) = desk.studio.predictions(task)
    (item,) = row["result"]
    (region,) = decode_track(item, size=Size(WIDTH, HEIGHT))
    return boxes_by_frame(region.shape)


def test_a_worker_that_is_killed_is_followed_at_the_frame(desk: Desk, tmp_path: Path) -> None:
    task = add_film(desk, write_scene(tmp_path / "film.mp4", frames=400))
    job = desk.job()
    reached = [0]
    for share in (0.25, 0.6):
        worker = start(desk, tmp_path, seconds=0.03)
        try:
            wait(lambda share=share: frame_of(desk, job) > 400 * share, seconds=90)
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
        reached.append(frame_of(desk, job))
    last = start(desk, tmp_path)
    assert last.wait(120) == 0
    assert desk.store.jobs.get(job.id).state == "done"
    looked = [len(path.read_text()) for path in desk.settings.home.glob("looked-*")]
    assert len(looked) == 3
    # a kill costs what was on its way and not yet kept: two parts of 0.3 s, and the frames in the window
    assert sum(looked) < 400 + 2 * 60
    boxes = stored_boxes(desk, task)
    assert set(boxes) == set(range(1, 401))
    for frame, box in boxes.items():
        left, top = across(frame)
        assert box.xyxy == pytest.approx((left, top, left + SIDE, top + SIDE), abs=8), frame


def test_a_long_film_needs_no_more_memory_than_a_short_one(desk: Desk, tmp_path: Path) -> None:
    peaks = []
    for name, frames in (("short.mp4", 100), ("long.mp4", 600)):
        add_film(desk, write_scene(tmp_path / name, frames=frames))
        job = desk.job()
        worker = start(desk, tmp_path)
        assert worker.wait(300) == 0
        assert desk.store.jobs.get(job.id).state == "done"
        peaks.append(int((desk.settings.home / f"peak-{worker.pid}").read_text()))
    # 500 frames of 184 kB would be 92 MB
    assert peaks[1] - peaks[0] < 30_000, f"{peaks} kB"
    assert not re.search("warning", desk.log(job))

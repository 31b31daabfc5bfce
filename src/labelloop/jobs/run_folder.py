"""What one run of the learning loop keeps on this machine: data set, checkpoints, logs, and what trainers have made.

It is on one machine, and a worker elsewhere pulls again; nothing here is needed by a run that has ended but its logs.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

from labelloop.core.errors import LabelloopError
from labelloop.core.settings import Settings
from labelloop.jobs.choose import FURTHER, OUT
from labelloop.jobs.folder import MANIFEST, read_folder
from labelloop.jobs.training import Training
from labelloop.learning.trainers.process import LOG


class RunFolder:
    """`path` is the run's folder, `data` its data set (jobs/folder)."""

    def __init__(self, settings: Settings, job_id: str) -> None:
        self.path = runs_folder(settings) / job_id
        self.data = self.path / "data"
        self._read = (0, 0), ""
        """Which manifest was read last (its inode and time), and its digest."""

    def holds(self, digest: str) -> bool:
        """Whether the data set with this digest is here. This is asked twice a second of a training, so a manifest is
        read once: of 200 pictures with 2,800 boxes that takes 33 ms, in which others wait."""
        try:
            found = (self.data / MANIFEST).stat()
        except FileNotFoundError:
            return False
        mark = found.st_ino, found.st_mtime_ns
        if self._read[0] != mark:
            self._read = mark, read_folder(self.data).manifest.digest
        return self._read[1] == digest

    def make_room(self) -> None:
        """For another data set."""
        shutil.rmtree(self.data, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)

    def forget_training(self) -> None:
        """Remove what was learned from another data set."""
        for part in self.path.iterdir():
            if part.is_dir() and part != self.data:
                shutil.rmtree(part, ignore_errors=True)
            elif part.suffix == ".json":
                part.unlink()

    def tidy(self) -> None:
        """The pictures and checkpoints of a run that is done are of no use to anybody; its logs are."""
        kept = {OUT: "log.txt"} | {name: f"{name}.txt" for name in FURTHER.values()}
        for trainer, name in kept.items():
            log = self.path / trainer / LOG
            if log.is_file():
                shutil.move(log, self.path / name)
        for part in self.path.iterdir() if self.path.is_dir() else ():  # halves that a kill left included
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            elif part.name not in kept.values():
                part.unlink(missing_ok=True)


def runs_folder(settings: Settings) -> Path:
    """Where runs have their folders."""
    return settings.home / "runs"


def sweep(settings: Settings, training: Training, *, kept_s: float = 86_400.0) -> int:
    """Remove what runs left that nobody will go on with; how many. A failed or cancelled one keeps its checkpoint for a
    day, because `labelloop jobs resume` goes on from it."""
    removed = 0
    for folder in runs_folder(settings).glob("*"):
        try:
            job = training.jobs.get(folder.name)
        except LabelloopError:
            job = None
        old = job is not None and job.finished_at is not None and time.time() - job.finished_at.timestamp() > kept_s
        if job is None or (old and job.state != "done"):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed

"""A trainer at work: its child process is looked after by a thread of its own, so that a run goes on meanwhile."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock

from labelloop.learning.trainers.base import Progress, Trained, TrainRequest, decode, encode, replace_file
from labelloop.learning.trainers.process import Limits, run


class AtWork:
    """One trainer at a time, from its start to its result. Close it when the run is let go."""

    def __init__(self, job_id: str) -> None:
        self._threads = ThreadPoolExecutor(1, thread_name_prefix=f"train-{job_id}")
        self._closing = Event()
        self._trainer: Future[Trained] | None = None
        self._news: list[Progress] = []
        self._lock = Lock()

    @property
    def idle(self) -> bool:
        """Nobody was started, or the last result has been fetched."""
        return self._trainer is None

    def take_up(self, done: Path) -> bool:
        """Whether a trainer has ended here already, in a process that was killed before anybody said so: `done` is
        where it wrote down what it made."""
        if not done.is_file():
            return False
        self._trainer = Future()
        self._trainer.set_result(decode(done.read_bytes(), Trained))
        return True

    def start(self, name: str, request: TrainRequest, *, limits: Limits, done: Path) -> None:
        def work() -> Trained:
            trained = run(name, request, on_event=self._hear, should_stop=self._closing.is_set, limits=limits)
            replace_file(done, lambda path: _write(path, encode(trained)))
            return trained

        self._trainer = self._threads.submit(work)

    def news(self) -> list[Progress]:
        """What it has said since the last call."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def wait(self, seconds: float) -> bool:
        """Whether it has ended, after so long at most."""
        assert self._trainer is not None
        return bool(wait([self._trainer], timeout=seconds).done)

    def result(self) -> Trained:
        """What it has made. Raises what it raised, and Stopped when it was closed meanwhile."""
        assert self._trainer is not None
        trainer, self._trainer = self._trainer, None
        return trainer.result()

    def pause(self, seconds: float) -> None:
        """Wait, unless everything is being closed."""
        self._closing.wait(seconds)

    def close(self) -> None:
        """Stop it; its checkpoint stays."""
        self._closing.set()
        self._threads.shutdown()

    def _hear(self, progress: Progress) -> None:
        """In the trainer's thread."""
        with self._lock:
            self._news.append(progress)


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)

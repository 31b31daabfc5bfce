"""Between predictions and the rows that are kept of them (store/scores): small, and written after the answer is out."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from labelloop.core.regions import Prediction, Region
from labelloop.core.tasks import Task
from labelloop.labelstudio.labelmap import LabelMap
from labelloop.learning.pool import Floats, Observation, score_of
from labelloop.serving.projects import View
from labelloop.store.scores import Scores, Seen

log = structlog.get_logger(__name__)

WAITING = 1000
"""Answers that may wait to be written down: what a database that is away for a while costs in memory."""
GATHER_S = 0.25
"""How long answers gather before they are written: a transaction for each would compete with those who answer."""
CLOSE_S = 5.0


class _Content(msgspec.Struct, frozen=True, array_like=True):
    """An Observation as it is kept: 8 bytes of score and one or two of label per region. The doubles are kept whole, so
    that what is reckoned from them later is what was sent."""

    scores: bytes
    labels: tuple[str, ...]
    places: tuple[int, ...]
    hidden: float


_decoder = msgspec.msgpack.Decoder(_Content)


def remember(
    task_id: int, regions: Sequence[Region], hidden: float, *, label_of: Callable[[Region], str | None]
) -> Seen:
    """What is kept of a prediction: its drawn regions, under the labels that the annotator sees (`label_of`), and the
    best score in [0, 1] that was not drawn."""
    names: dict[str, int] = {}
    places = tuple(names.setdefault(label_of(region) or "", len(names)) for region in regions)
    scores = np.fromiter(map(score_of, regions), "<f8", len(regions)).tobytes()
    return Seen(task_id, msgspec.msgpack.encode(_Content(scores, tuple(names), places, hidden)))


def recall(seen: Seen) -> Observation:
    """The observation that was kept."""
    content = _decoder.decode(seen.content)
    return Observation(
        seen.task_id,
        scores=tuple(np.frombuffer(content.scores, "<f8").tolist()),
        labels=tuple(content.labels[place] for place in content.places),
        hidden=content.hidden,
        inconsistency=seen.inconsistency or 0.0,
    )


def packed(embedding: Floats) -> bytes:
    """A vector [d] as it is kept: single precision."""
    return np.asarray(embedding, "<f4").tobytes()


def unpacked(content: bytes) -> NDArray[np.float32]:
    """A vector [d] that was kept."""
    return np.frombuffer(content, "<f4")


def drawn_as(label_map: LabelMap) -> Callable[[Region], str | None]:
    """The label under which a model's region is drawn; where several pictures have labels of their own, the first."""

    def label_of(region: Region) -> str | None:
        targets = label_map.targets_for(region.label, type(region.shape))
        return targets[0].label if targets else region.label

    return label_of


class _Answer(NamedTuple):
    tasks: Sequence[Task]
    predictions: Sequence[Prediction]
    view: View


class Recorder:
    """Writes predictions down behind the back of whoever waits for them. `note` costs microseconds; a thread of its own
    does the rest, all answers of a moment in one transaction. When the database is away for long, the newest answers
    are dropped and the log says so: they are made again when they are needed."""

    def __init__(self, scores: Scores) -> None:
        self._scores = scores
        self._waiting: queue.Queue[_Answer | None] = queue.Queue(WAITING)
        self._closing = threading.Event()
        self._full = False
        self._thread = threading.Thread(target=self._work, name="recorder", daemon=True)
        self._thread.start()

    def note(self, tasks: Sequence[Task], predictions: Sequence[Prediction], view: View) -> None:
        """Keep what was answered; never waits, never raises."""
        try:
            self._waiting.put_nowait(_Answer(tasks, predictions, view))
        except queue.Full:
            if not self._full:
                log.warning("predictions are not written down: the database is too slow", waiting=WAITING)
            self._full = True

    def flush(self) -> None:
        """Wait until everything that was noted is written or given up."""
        self._waiting.join()

    def close(self) -> None:
        """Write what waits, for at most CLOSE_S."""
        self._closing.set()
        with contextlib.suppress(queue.Full):  # then it stays: the thread is a daemon
            self._waiting.put(None, timeout=CLOSE_S)
            self._thread.join(CLOSE_S)

    def _work(self) -> None:
        while True:
            taken = [self._waiting.get()]
            self._closing.wait(GATHER_S)
            while not self._waiting.empty():
                taken.append(self._waiting.get())
            answers = [answer for answer in taken if answer is not None]
            try:
                _put(self._scores, answers)
                self._full = False
            except Exception as error:  # the next answers may be luckier; these are made again when they are needed
                log.warning("predictions were not written down", answers=len(answers), error=str(error))
            for _ in taken:
                self._waiting.task_done()
            if len(answers) < len(taken):
                return


def keep(scores: Scores, tasks: Sequence[Task], predictions: Sequence[Prediction], view: View) -> None:
    """Write down what was predicted without an error; for callers who can wait."""
    _put(scores, [_Answer(tasks, predictions, view)])


def _put(scores: Scores, answers: Sequence[_Answer]) -> None:
    latest: dict[tuple[int, str], dict[int, tuple[Prediction, View]]] = defaultdict(dict)
    for tasks, predictions, view in answers:
        for task, found in zip(tasks, predictions, strict=True):
            if task.id is not None and task.project_id is not None and found.error is None:
                latest[task.project_id, view.name][task.id] = found, view  # whoever was asked twice is kept once
    for (project_id, version), found_last in latest.items():
        rows = [
            remember(task_id, found.regions, found.hidden, label_of=drawn_as(view.label_map))
            for task_id, (found, view) in found_last.items()
        ]
        scores.put(project_id, version, rows)

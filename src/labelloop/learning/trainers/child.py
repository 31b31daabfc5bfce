"""The other end of `process`, which starts `main`: one trainer, in a process of its own.

The job comes as one line of JSON on stdin, which then stays open: its end means that the parent is gone. Events
leave as lines of JSON through a pipe; stdout and stderr belong to the libraries, and go to the log.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from importlib.metadata import EntryPoint
from io import FileIO
from pathlib import Path

import msgspec

from labelloop.core.errors import LabelloopError
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Stopped,
    Trained,
    Trainer,
    TrainerRefused,
    TrainRequest,
    decode,
    encode,
)

PROGRESS_EVERY_S = 0.1
"""Bare progress is passed on this often, not at every step: who follows a run should not slow it down."""
LAST_WORDS_S = 1.5
LOCK_WAIT_S = 15.0


class Job(msgspec.Struct, frozen=True):
    """`target` is "module:attribute": the parent looks entry points up, this interpreter may not know them."""

    name: str
    target: str
    nice: int
    request: TrainRequest


class Refused(msgspec.Struct, frozen=True, tag=True):
    why: str


class Failed(msgspec.Struct, frozen=True, tag=True):
    """`kind` is the name of the exception's class; `ours` when its message was written for people."""

    kind: str
    message: str
    hint: str = ""
    ours: bool = False


class Halted(msgspec.Struct, frozen=True, tag=True):
    """The trainer let Stopped pass."""


Outcome = Trained | Refused | Failed | Halted
Event = Progress | Outcome


def main(pipe: int) -> None:
    """Do the job on stdin; `pipe` is the file descriptor for events."""
    os.set_inheritable(pipe, False)  # or what the trainer starts would keep the pipe open after our end
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    job = decode(sys.stdin.buffer.readline(), Job)
    _hold_on_to(_lifeline())
    os.nice(job.nice)
    try:
        with os.fdopen(pipe, "wb", buffering=0) as events, (job.request.out / "lock").open("w") as lock:
            send = _sender(events, stopping)
            send(_outcome(job, _reporter(send, stopping), lock.fileno(), stopping))
    finally:
        if stopping.is_set():  # the parent may be gone, and with it whoever would end what the trainer started
            _end_group()


def _outcome(job: Job, report: Report, lock: int, stopping: threading.Event) -> Outcome:
    try:
        _take(lock, job.request.out, stopping)
        trainer: Trainer = EntryPoint(job.name, job.target, "labelloop.trainers").load()()
        why = trainer.refuses(job.request)
        return Refused(why) if why else trainer.train(job.request, report)
    except Stopped:
        return Halted()
    except TrainerRefused as refusal:  # it had to look closer to see it
        return Refused(str(refusal))
    except LabelloopError as error:
        traceback.print_exc()
        return Failed(type(error).__name__, error.message, error.hint, ours=True)
    except Exception as error:  # a trainer may raise anything; the parent makes it a TrainerFailed
        traceback.print_exc()
        return Failed(type(error).__name__, str(error))


def _sender(events: FileIO, stopping: threading.Event) -> Callable[[Event], None]:
    def send(event: Event) -> None:
        try:
            events.write(encode(event) + b"\n")
        except BrokenPipeError:  # the parent is gone: we see it here before the kernel's signal arrives
            stopping.set()

    return send


def _reporter(send: Callable[[Event], None], stopping: threading.Event) -> Report:
    last = -PROGRESS_EVERY_S

    def report(progress: Progress) -> None:
        nonlocal last
        now = time.monotonic()
        if progress.message or progress.metrics or progress.finished or now - last >= PROGRESS_EVERY_S:
            last = now
            send(progress)
        if stopping.is_set():
            raise Stopped

    return report


def _take(lock: int, out: Path, stopping: threading.Event) -> None:
    """One run at a time in `out`: the child of a parent that was just killed may still be writing its last words."""
    until = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if stopping.wait(0.05):
                raise Stopped from None
            if time.monotonic() > until:
                raise LabelloopError(
                    f"Another run is at work in {out}.", hint="Wait for it, or give this run a folder of its own."
                ) from None


def _lifeline() -> int:
    """Our stdin under another number; what the trainer starts gets an empty one."""
    line = os.dup(0)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.close(empty)
    return line


def _hold_on_to(line: int) -> None:
    """End this process and its group when `line` ends, which is when the parent is gone, however it went."""

    def wait() -> None:
        while os.read(line, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(LAST_WORDS_S)
        _end_group()

    threading.Thread(target=wait, daemon=True).start()


def _end_group() -> None:
    """SIGKILL for us and all that the trainer started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

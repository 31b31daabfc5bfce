"""Run one trainer in a child process that can be stopped, has limits, and never outlives us.

`run` blocks; call it from a thread that lives as long as the run (see `runtimes/processes`). Nothing of the trainer
happens in this process: it may crash, leak, or load another version of a library that we use.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec

import labelloop
from labelloop.core import plugins
from labelloop.learning.trainers.base import (
    Progress,
    Stopped,
    Trained,
    TrainerError,
    TrainerFailed,
    TrainerRefused,
    TrainRequest,
    decode,
    encode,
)
from labelloop.learning.trainers.child import Event, Failed, Halted, Job, Outcome, Refused
from labelloop.runtimes.processes import child, inherited_environment, stop, tail

LOG = "log.txt"
SECRETS = ("LABELLOOP_", "LABEL_STUDIO_")
"""Our settings hold tokens and passwords; a trainer, perhaps a stranger's script, needs none of them."""
LOG_LINES = 30  # the traceback of a crash in C lists two or three threads
CHECK_S = 0.2
CHECK_MEMORY_S = 0.5


_START = """\
import importlib.util, sys
found = importlib.util.spec_from_file_location(
    "labelloop", sys.argv[1] + "/__init__.py", submodule_search_locations=[sys.argv[1]]
)
sys.modules["labelloop"] = importlib.util.module_from_spec(found)
found.loader.exec_module(sys.modules["labelloop"])
from labelloop.learning.trainers.child import main
main(int(sys.argv[2]))
"""
"""Gives this labelloop to an interpreter that may have another one, or none. Not by PYTHONPATH: our folder may lie in a
site-packages, and our numpy must not stand before theirs."""


class Limits(msgspec.Struct, frozen=True):
    """`overtime_s`: how long after its budget a run may take to finish its file. `memory_bytes`: resident memory of
    the trainer and what it starts together (Linux); None: no limit. `nice`: how much less urgent than we are; more than
    threads for batches (serving/stage)."""

    overtime_s: float = 60.0
    memory_bytes: int | None = None
    stop_grace_s: float = 1.5
    nice: int = 15


USUAL = Limits()


def run(
    name: str,
    request: TrainRequest,
    *,
    on_event: Callable[[Progress], object] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    limits: Limits = USUAL,
    python: Path | None = None,
) -> Trained:
    """Train with the trainer called `name`, in the interpreter `python` (ours by default).

    `on_event` and `should_stop` are called in this thread, the latter some five times a second. A run that ended early,
    whatever ended it, goes on from its last checkpoint when it is started again with the same `request.out`.

    A trainer that fails after it had reported a finished model (`Progress.finished`) gives that, and the reason goes to
    `on_event`. Raises Stopped after `should_stop`, TrainerRefused, and TrainerFailed with the last lines of its log.
    """
    job = Job(name, plugins.entry_point("labelloop.trainers", name).value, limits.nice, request)
    heard = _Heard(on_event)
    try:
        return _checked(_trained(job, heard, should_stop, limits, python or Path(sys.executable)), job)
    except TrainerFailed as error:
        if heard.last is None or heard.last.finished is None:
            raise
        why = f"what was finished before counts: {error.message.splitlines()[0]}"
        on_event(Progress(step=heard.last.step, seconds=heard.last.seconds, message=why))
        return _checked(heard.last.finished, job)


class _Heard:
    """Passes progress on, and keeps the last that brought a finished model."""

    def __init__(self, on_event: Callable[[Progress], object]) -> None:
        self._on_event = on_event
        self.last: Progress | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.finished is not None:
            self.last = progress
        self._on_event(progress)


def _trained(job: Job, hear: _Heard, should_stop: Callable[[], bool], limits: Limits, python: Path) -> Trained:
    job.request.out.mkdir(parents=True, exist_ok=True)
    log = job.request.out / LOG
    with _child(job, log, python) as (process, pipe):
        try:
            outcome = _follow(process, pipe, job, limits, hear, should_stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(limits.stop_grace_s)  # first on its own: a SIGTERM at the exit would hide its status
        except BaseException:
            stop(process, grace_s=limits.stop_grace_s)
            raise
        stop(process, grace_s=limits.stop_grace_s)
    if isinstance(outcome, Trained):
        return outcome
    raise _error(outcome, process.returncode, job, log)


@contextlib.contextmanager
def _child(job: Job, log: Path, python: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    reading, writing = os.pipe()
    argv: list[str | Path] = [python, "-c", _START, Path(labelloop.__file__).parent, str(writing)]
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, reading)
        try:
            process = stack.enter_context(
                child(argv, log=log, env=_environment(job.request), stdin=subprocess.PIPE, pass_fds=(writing,))
            )
        finally:
            os.close(writing)
        assert process.stdin is not None
        stack.callback(_close, process.stdin.close)
        with contextlib.suppress(BrokenPipeError):  # it died at once; its log says why
            process.stdin.write(encode(job) + b"\n")
            process.stdin.flush()
        yield process, reading


def _close(close: Callable[[], None]) -> None:
    with contextlib.suppress(BrokenPipeError):
        close()


def _environment(request: TrainRequest) -> dict[str, str]:
    ours = {key: value for key, value in inherited_environment().items() if not key.startswith(SECRETS)}
    threads = str(request.threads)
    return ours | {
        # a waiting OpenMP thread spins by default, which takes a core away from the server
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": threads,
        "MKL_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "PYTHONUNBUFFERED": "1",  # the last lines before a crash are the ones that are needed
        "PYTHONFAULTHANDLER": "1",
    }


# --- while it runs ----------------------------------------------------------------------------------


def _follow(
    process: subprocess.Popen[bytes],
    pipe: int,
    job: Job,
    limits: Limits,
    on_event: Callable[[Progress], object],
    should_stop: Callable[[], bool],
) -> Outcome | None:
    """Pass progress on until the child closes its pipe; its outcome, None when it ended without one."""
    began = checked_memory = time.monotonic()
    for event in _events(pipe):
        if isinstance(event, Progress):
            on_event(event)
        elif event is not None:
            return event
        if should_stop():
            raise Stopped
        now = time.monotonic()
        _check_time(now - began, job, limits)
        if limits.memory_bytes and now - checked_memory > CHECK_MEMORY_S:
            checked_memory = now
            _check_memory(process.pid, job, limits.memory_bytes)
    return None


def _events(pipe: int) -> Iterator[Event | None]:
    """Events as they come, None whenever none came for CHECK_S; ends with the pipe."""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        rest = b""
        while True:
            if not selector.select(CHECK_S):
                yield None
                continue
            data = os.read(pipe, 65_536)
            if not data:
                return
            *lines, rest = (rest + data).split(b"\n")
            yield from (decode(line, Event) for line in lines)  # type: ignore[arg-type]


def _check_time(seconds: float, job: Job, limits: Limits) -> None:
    if seconds > job.request.budget_s + limits.overtime_s:
        raise TrainerFailed(
            f"The trainer {job.name} was stopped after {seconds:.0f} s: it was given {job.request.budget_s:.0f} s and "
            f"{limits.overtime_s:.0f} s more to finish.",
            hint="Give it more time, or fewer pictures. It goes on from its last checkpoint, if it wrote one.",
        )


def _check_memory(group: int, job: Job, allowed: int) -> None:
    used = resident_bytes(group)
    if used > allowed:
        raise TrainerFailed(
            f"The trainer {job.name} was stopped: it uses {used / 1e6:,.0f} MB of memory, of {allowed / 1e6:,.0f} MB "
            "that it may use.",
            hint="Allow it more memory, or train with smaller pictures or batches (its options).",
        )


def resident_bytes(group: int) -> int:
    """Resident memory of all processes of a process group; 0 where there is no /proc. Shared pages count once for
    each process."""
    total = 0
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it ended while we looked
            # the name, in parentheses, may hold spaces and parentheses; the group is the third field after it
            if int((entry / "stat").read_text().rpartition(")")[2].split()[2]) == group:
                total += int((entry / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total


# --- how it ended -----------------------------------------------------------------------------------


def _checked(trained: Trained, job: Job) -> Trained:
    for one in (trained, trained.source):
        if one is not None and not one.model.is_file():
            raise TrainerFailed(
                f"The trainer {job.name} says that it left {one.model}, and there is no such file.",
                hint="Trained.model is the path of one finished file.",
            )
    return trained


def _error(outcome: Outcome | None, status: int, job: Job, log: Path) -> TrainerError:
    if isinstance(outcome, Refused):
        return TrainerRefused(f"The trainer {job.name} cannot do this: {outcome.why}")
    if isinstance(outcome, Failed) and outcome.ours:
        return TrainerFailed(outcome.message, hint=outcome.hint)
    if isinstance(outcome, Failed):
        why, hint = f"{outcome.kind}: {outcome.message}", _hint(outcome, log)
    elif isinstance(outcome, Halted):
        why, hint = "somebody else stopped it (SIGTERM)", f"Start it again: it goes on. Its log is {log}."
    elif status < 0:
        why = f"it was ended by {signal.Signals(-status).name}"
        hint = "Did the machine run out of memory? The kernel's log says so. " if status == -signal.SIGKILL else ""
        hint += f"Its log is {log}."
    else:
        why, hint = f"it ended with status {status} without a result", f"Its log is {log}."
    return TrainerFailed(
        f"The trainer {job.name} failed: {why}. The last lines of its log:\n{tail(log, lines=LOG_LINES)}\n", hint=hint
    )


def _hint(failed: Failed, log: Path) -> str:
    text = failed.message.lower()
    if failed.kind in ("ModuleNotFoundError", "ImportError"):
        return (
            "Install it into the interpreter that trains; for labelloop's own trainers: pip install 'labelloop[train]'."
        )
    if failed.kind == "MemoryError" or "out of memory" in text or "can't allocate memory" in text:
        return "Train with smaller pictures or batches (its options), or on a machine with more memory."
    return f"Its log is {log}."

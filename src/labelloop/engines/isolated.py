"""Any model in a process of its own, in an interpreter of the user's choice (Python 3.8 and newer).

What runs there is `compat/host.py`, which needs the standard library only, with an adapter that knows the kind of
model. It may crash, leak, pin other versions of our libraries, or never come back: here that is an error of one call.
A process that died is started again by the next call; one that keeps dying is left alone for a while, and every call
says why. Nothing outlives us: the kernel ends it with the thread that started it, and its end of the line tells it too.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from pathlib import Path
from typing import Any

import msgspec
import structlog

import labelloop.compat
from labelloop.compat.host import receive, send
from labelloop.core.errors import LabelloopError, ModelError, ModelFailed
from labelloop.runtimes.processes import child, inherited_environment, stop, tail

log = structlog.get_logger(__name__)

FAR_SIDE = Path(labelloop.compat.__file__).parent
"""Where host and adapters lie."""

DEATHS = 4
"""So many deaths within WATCHED_S without an answer in between, and the next calls fail at once."""
WATCHED_S = 60.0
FIRST_PAUSE_S = 0.5
"""Before the second start after a death; doubled each time. The first is at once: most deaths come alone."""
GRACE_S = 1.5
OLDEST = (3, 8)
ASKING_S = 30.0
MAX_LOG_BYTES = 20_000_000
LOG_LINES = 20

Answer = Callable[..., Any]
"""What the far side may ask; called in a thread of its own."""


class Died(ModelFailed):
    """The process of a model ended while it worked, by itself or because somebody stopped it; the item that did it is
    not known, so each is tried alone."""


class Raised(ModelFailed):
    """The hosted object raised; `kind` is the name of the exception's class there."""

    def __init__(self, message: str, *, hint: str, kind: str) -> None:
        super().__init__(message, hint=hint)
        self.kind = kind


class TooSlow(ModelFailed):
    """It did not answer in time and was stopped; trying each item alone would take that long for each."""


class Program(msgspec.Struct, frozen=True):
    """What to start. `python` "" is our own interpreter, `adapter` a file name beside `compat/host.py`. `opening` is
    called first in every new process, with these arguments; `opening_s` is how long it may take."""

    name: str
    adapter: str
    python: str = ""
    cwd: Path | None = None
    environment: Mapping[str, str] = {}
    opening: tuple[str, Mapping[str, Any]] | None = None
    opening_s: float = 600.0


class Isolated:
    """One model's process, started when it is needed. Safe to use from several threads.

    Its output goes to `log_file`; `answers` are what it may ask us, by name. Close it when the model is let go.
    """

    def __init__(self, program: Program, *, log_file: Path, answers: Mapping[str, Answer] | None = None) -> None:
        self._program = program
        self._log = log_file
        self._answers = answers or {}
        self._life: _Life | None = None
        self._deaths: deque[float] = deque(maxlen=DEATHS)
        self._lock = threading.Lock()
        self._closed = False
        self._opening: _Life | None = None
        self._log_begins = 0

    @property
    def pid(self) -> int | None:
        """Of the process that runs now."""
        life = self._life
        return life.pid if life is not None and life.alive else None

    def call(self, name: str, *, timeout_s: float, lane: str = "", **arguments: Any) -> Any:
        """What the hosted object's method answers. Calls of one `lane` come one after the other, lanes side by side.

        Raises ModelFailed with the end of the log: for what the method raised, when it takes longer than `timeout_s`
        (the process is stopped then, which fails calls on other lanes too), and as Died when the process died.
        """
        life = self._alive()
        try:
            result = life.call(name, lane, arguments, timeout_s=timeout_s)
        except FutureTimeout:
            life.end()
            raise TooSlow(
                f"{self._program.name} did not answer within {timeout_s:g} s and was stopped.{self._last_lines()}",
                hint=f"It is started again when it is needed; its log is {self._log}.",
            ) from None
        except _Ended as ended:
            raise self._death(ended) from None
        except _Raised as error:
            hint = f"The traceback is in its log, {self._log}."
            raise Raised(f"{self._program.name}: {error}.", hint=hint, kind=error.kind) from None
        self._deaths.clear()
        return result

    def restart(self) -> None:
        """End the process; the next call starts another."""
        with self._lock:
            life, self._life = self._life, None
        if life is not None:
            life.end()

    def close(self) -> None:
        """End the process for good. Returns when it is gone."""
        self._closed = True
        opening = self._opening
        if opening is not None:  # it may take minutes, and whoever waits for it holds the lock
            opening.end()
        self.restart()

    # --- starting ---------------------------------------------------------------------------------------

    def _alive(self) -> _Life:
        with self._lock:
            if self._life is not None and self._life.alive:
                return self._life
            if self._closed:
                raise ModelFailed(f"{self._program.name} was let go.")
            self._pause()
            try:
                life = self._start()
            finally:
                self._opening = None
            self._life = life
        return life

    def _pause(self) -> None:
        """Wait before the next start. Raises ModelFailed when it keeps dying."""
        now = time.monotonic()
        while self._deaths and now - self._deaths[0] > WATCHED_S:
            self._deaths.popleft()
        count = len(self._deaths)
        if count >= DEATHS:
            wait = WATCHED_S - (now - self._deaths[0])
            raise ModelFailed(
                f"{self._program.name} keeps dying: {count} times in the last {WATCHED_S:.0f} s.{self._last_lines()}",
                hint=f"Its log is {self._log}; it is tried again in {wait:.0f} s.",
            )
        if count > 1:
            time.sleep(FIRST_PAUSE_S * 2 ** (count - 2))

    def _start(self) -> _Life:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):
            if self._log.stat().st_size > MAX_LOG_BYTES:
                self._log.replace(self._log.with_suffix(".old.log"))
        self._log_begins = self._log.stat().st_size if self._log.exists() else 0
        self._opening = life = _Life(self._program, self._log, self._answers)
        opening = self._program.opening
        if opening is None:
            return life
        name, arguments = opening
        try:
            life.call(name, "", arguments, timeout_s=self._program.opening_s)
        except FutureTimeout:
            life.end()
            raise ModelFailed(
                f"{self._program.name} was not ready after {self._program.opening_s:g} s.{self._last_lines()}"
            ) from None
        except _Ended as ended:
            raise self._death(ended) from None
        except _Raised as error:
            life.end()
            raise ModelError(
                f"{self._program.name} cannot be opened: {error}.", hint=f"The traceback is in its log, {self._log}."
            ) from None
        return life

    # --- how it ended -----------------------------------------------------------------------------------

    def _death(self, ended: _Ended) -> ModelFailed:
        if self._closed or ended.asked_for:
            return Died(f"{self._program.name} was stopped while it worked.")
        self._deaths.append(time.monotonic())
        log.error("a model's process died", model=self._program.name, how=str(ended), log=str(self._log))
        return Died(f"{self._program.name} died: {ended}.{self._last_lines()}", hint=f"Its log is {self._log}.")

    def _last_lines(self) -> str:
        try:
            lines = tail(self._log, lines=LOG_LINES, since=self._log_begins)
        except OSError:
            return ""
        return f" The last lines of its log:\n{lines}\n" if lines else ""


class _Ended(Exception):
    """The line ended before the answer came."""

    def __init__(self, how: str, *, asked_for: bool) -> None:
        super().__init__(how)
        self.asked_for = asked_for


class _Raised(Exception):
    """The hosted object raised an exception of this kind."""

    def __init__(self, text: str, kind: str) -> None:
        super().__init__(text)
        self.kind = kind


class _Life:
    """One process from its start to its end, with the thread that started it and reads its line."""

    def __init__(self, program: Program, log_file: Path, answers: Mapping[str, Answer]) -> None:
        self._program = program
        self._log = log_file
        self._answers = answers
        self._line, self._theirs = socket.socketpair()
        self._sending = threading.Lock()
        self._waiting: dict[int, Future[Any]] = {}
        self._numbers = itertools.count(1)
        self._ended: _Ended | None = None
        self._asked_for = False
        self._process: subprocess.Popen[bytes] | None = None
        self._began = threading.Event()
        self._thread = threading.Thread(target=self._live, name=f"isolated-{program.name}", daemon=True)
        self._thread.start()
        self._began.wait()
        if self._process is None:
            self._line.close()
            raise ModelError(
                f"{program.name} cannot be started with {self._python}: {self._ended}.",
                hint="Give the path of a Python interpreter, for instance --python /path/to/env/bin/python.",
            )

    @property
    def alive(self) -> bool:
        return self._ended is None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def _python(self) -> str:
        return self._program.python or sys.executable

    def call(self, name: str, lane: str, arguments: Mapping[str, Any], *, timeout_s: float) -> Any:
        """Raises TimeoutError, _Ended or _Raised."""
        number = next(self._numbers)
        future: Future[Any] = Future()
        self._waiting[number] = future
        try:
            if self._ended is not None:
                raise self._ended
            with self._sending, contextlib.suppress(OSError):  # the reader says how it ended
                send(self._line, {"id": number, "call": name, "lane": lane, "with": arguments})
            return future.result(timeout_s)
        finally:
            self._waiting.pop(number, None)

    def end(self) -> None:
        """Returns when the process is gone."""
        self._asked_for = True
        if self._process is not None:
            stop(self._process, grace_s=GRACE_S)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    # --- in the thread of its own -----------------------------------------------------------------------

    def _live(self) -> None:
        how = ""
        argv: Sequence[str | Path] = [
            self._python, FAR_SIDE / "host.py", str(self._theirs.fileno()), FAR_SIDE / self._program.adapter
        ]  # fmt: skip
        try:
            _require_python(self._python)
            with child(
                argv,
                log=self._log,
                env=_environment(self._program.environment),
                cwd=self._program.cwd,
                pass_fds=(self._theirs.fileno(),),
            ) as process:
                self._process = process
                self._theirs.close()
                self._began.set()
                self._read()
                stop(process, grace_s=GRACE_S)
                how = _how(process.returncode)
        except OSError as error:
            how = error.strerror or str(error)
        finally:
            self._theirs.close()
            self._ended = _Ended(how or "its line broke", asked_for=self._asked_for)
            self._began.set()
            for future in list(self._waiting.values()):
                with contextlib.suppress(Exception):  # answered in this moment
                    future.set_exception(self._ended)
            if self._process is not None:
                self._line.close()

    def _read(self) -> None:
        """Deliver answers and answer questions until the line ends."""
        while True:
            try:
                message = receive(self._line)
            except (OSError, ValueError):
                return
            if message is None:
                return
            if "ask" in message:  # in a thread of its own: it may take long, and answers to others must not wait
                threading.Thread(target=self._answer, args=(message,), daemon=True).start()
                continue
            future = self._waiting.get(message["id"])
            if future is None or future.done():
                continue  # nobody waits any more
            error = message.get("error")
            if error is None:
                future.set_result(message["result"])
            else:
                where = f" ({error['where']})" if error["where"] else ""
                future.set_exception(_Raised(f"{error['kind']}: {error['message']}{where}", error["kind"]))

    def _answer(self, message: Mapping[str, Any]) -> None:
        try:
            outcome = {"result": self._answers[message["call"]](**message["with"])}
        except LabelloopError as error:
            outcome = {"error": {"message": str(error)}}
        except Exception as error:  # it goes to the far side, which raises it where it was asked
            log.exception("a hosted model was not answered", model=self._program.name, asked=message["call"])
            outcome = {"error": {"message": f"{type(error).__name__}: {error}"}}
        with self._sending, contextlib.suppress(OSError):
            send(self._line, {"ask": message["ask"], **outcome})


def _require_python(python: str) -> None:
    """The starter in between could only say it in the log. Raises OSError."""
    if not os.access(python, os.X_OK) or Path(python).is_dir():
        raise FileNotFoundError(2, "there is no such program")
    if python == sys.executable:
        return
    release = _release_of(python)
    if release < OLDEST:
        said = f"it is Python {release[0]}.{release[1]}" if release else "it is no Python"
        raise OSError(errno.ENOEXEC, f"{said}, and {OLDEST[0]}.{OLDEST[1]} or newer is needed")


@functools.cache
def _release_of(python: str) -> tuple[int, ...]:
    """(3, 11) of an interpreter, empty for another program; one that is too slow to say it gets its chance."""
    asked = [python, "-c", "import sys; print(sys.version_info[0], sys.version_info[1])"]
    try:
        done = subprocess.run(
            asked, env=_environment({}), capture_output=True, text=True, errors="replace", timeout=ASKING_S, check=False
        )
        return tuple(int(number) for number in done.stdout.split()[-2:])
    except subprocess.TimeoutExpired:
        return OLDEST
    except (OSError, ValueError):
        return ()


def _environment(given: Mapping[str, str]) -> dict[str, str]:
    """Ours without what points Python at our packages and without our own settings, which may hold passwords."""
    without = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
    ours = {k: v for k, v in inherited_environment(without=without).items() if not k.startswith("LABELLOOP_")}
    # the last lines before a crash are the ones that are needed
    return ours | {"PYTHONUNBUFFERED": "1", "PYTHONFAULTHANDLER": "1"} | dict(given)


def _how(status: int | None) -> str:
    if status is None or status >= 0:
        return f"it ended with status {status}"
    name = signal.Signals(-status).name
    memory = "; did the machine run out of memory?" if -status == signal.SIGKILL else ""
    return f"it was ended by {name}{memory}"

"""Child processes that never outlive us, whichever way we end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path

from labelloop.core.errors import RuntimeSetupError

_DIE_WITH_PARENT = """\
import ctypes, os, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("the parent is gone")
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Asks the kernel for SIGTERM on the parent's death (1 is PR_SET_PDEATHSIG, which survives exec), then becomes the
program. A program in between, not `preexec_fn`: Python code between fork and exec can deadlock in a process with
threads. The look at the parent closes the gap in which it died before we asked."""


@contextlib.contextmanager
def child(
    argv: Sequence[str | Path],
    *,
    log: Path,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: int = subprocess.DEVNULL,
    pass_fds: Sequence[int] = (),
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `argv` (its first item an absolute path) in a process group of its own, output appended to `log`.

    Leaving the block ends the whole group: SIGTERM, and SIGKILL for what is left after 10 s. Should this process be
    killed without a chance to say so, the kernel sends the child SIGTERM (Linux). The kernel looks at the *thread*
    that started the child: call this from a thread that lives as long as the child shall.

    Ctrl-C on the terminal reaches only us, so that the order of stopping is ours.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", _DIE_WITH_PARENT, str(os.getpid()), *map(str, argv)],
            env=env,
            cwd=cwd,
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        stop(process)


def inherited_environment(*, without: Collection[str] = ()) -> dict[str, str]:
    """Our environment to hand on, less some names."""
    return {name: value for name, value in os.environ.items() if name not in without}


def stop(process: subprocess.Popen[bytes], *, grace_s: float = 10.0) -> None:
    """End `process` and its group; returns when the process is gone. Harmless when it has already ended."""
    _signal_group(process.pid, signal.SIGTERM)
    try:
        process.wait(grace_s)
    except subprocess.TimeoutExpired:
        _signal_group(process.pid, signal.SIGKILL)
        process.wait()
    else:
        _signal_group(process.pid, signal.SIGKILL)  # children which outlived the leader


def _signal_group(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # the whole group has ended
        os.killpg(pid, number)


def has_ended(pid: int) -> bool:
    """Whether a child of ours has ended; it can still be waited for afterwards."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def tail(log: Path, *, lines: int = 15, since: int = 0) -> str:
    """The last lines of a log, for an error message; none from before the byte `since`."""
    with log.open("rb") as file:
        file.seek(max(since, log.stat().st_size - 16_384))
        return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])


def take_port(port: int, *, host: str = "127.0.0.1") -> int:
    """`port` if it is free, any free one for 0. Raises RuntimeSetupError when it is taken."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        try:
            probe.bind((host, port))
        except OSError as error:
            raise RuntimeSetupError(
                f"Port {port} on {host} is not free ({error.strerror}).",
                hint="Stop what listens there, or choose another port; 0 takes any free one.",
            ) from error
        return int(probe.getsockname()[1])

"""Children end with us: when we leave, when they refuse, and when we are killed.

Each child opens a named pipe for writing, so the end of file on it is the kernel's word that all holders are gone.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes.processes import child, stop, tail, take_port

WAIT = (
    "import signal, sys; pipe = open(sys.argv[1], 'w'); print('ready', file=pipe, flush=True); "
    "signal.sigwait([signal.SIGINT])"
)
IGNORE_SIGTERM = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAIT
WITH_GRANDCHILD = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', sys.argv[2], sys.argv[1]]))"


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[IO[bytes]]:
    os.mkfifo(tmp_path / "pipe")
    with os.fdopen(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        yield file


def read(pipe: IO[bytes]) -> bytes:
    assert select.select([pipe], [], [], 20)[0], "nothing happened in 20 s"
    return pipe.read(100)


def test_leaving_the_block_ends_the_child(tmp_path: Path, pipe: IO[bytes]) -> None:
    with child([sys.executable, "-c", WAIT, tmp_path / "pipe"], log=tmp_path / "log") as process:
        assert read(pipe) == b"ready\n"
        assert process.poll() is None
    assert process.returncode == -signal.SIGTERM
    assert read(pipe) == b""


def test_a_child_that_ignores_sigterm_is_killed(tmp_path: Path, pipe: IO[bytes]) -> None:
    with child([sys.executable, "-c", IGNORE_SIGTERM, tmp_path / "pipe"], log=tmp_path / "log") as process:
        assert read(pipe) == b"ready\n"
        stop(process, grace_s=0.1)
        assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("code", [WAIT, IGNORE_SIGTERM], ids=["willing", "stubborn"])
def test_children_of_the_child_end_with_it(tmp_path: Path, pipe: IO[bytes], code: str) -> None:
    with child([sys.executable, "-c", WITH_GRANDCHILD, tmp_path / "pipe", code], log=tmp_path / "log"):
        assert read(pipe) == b"ready\n"
    assert read(pipe) == b""


@pytest.mark.skipif(sys.platform != "linux", reason="the death signal is Linux's")
def test_sigkill_of_the_parent_takes_the_child_along(tmp_path: Path, pipe: IO[bytes]) -> None:
    parent_code = (
        "import sys; from pathlib import Path; from labelloop.runtimes.processes import child\n"
        "with child([sys.executable, '-c', sys.argv[2], sys.argv[1]], log=Path(sys.argv[1] + '.log')) as c: c.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", parent_code, tmp_path / "pipe", WAIT]) as parent:
        assert read(pipe) == b"ready\n"
        parent.kill()
    assert read(pipe) == b""


def test_output_is_appended_to_the_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("before\n")
    with child([sys.executable, "-c", "print('out'); import sys; sys.exit('err')"], log=log) as process:
        assert process.wait(20) == 1
    assert sorted(log.read_text().split()) == ["before", "err", "out"]


def test_a_taken_port_is_an_error_and_zero_finds_one() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(RuntimeSetupError, match=rf"Port {port} .* not free"):
            take_port(port)
    assert take_port(port) == port
    assert take_port(0) > 0


def test_tail_gives_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(10_000)))
    assert tail(log, lines=2) == "line 9998\nline 9999"

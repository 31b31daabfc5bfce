"""A process of its own for a model: what it answers, what its end means, and that nothing of it stays behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest

from labelloop.core.errors import ModelError, ModelFailed
from labelloop.engines import isolated
from labelloop.engines.isolated import Died, Isolated, Program
from reference.interpreters import interpreter

ADAPTER = """
import os, subprocess, sys, time

class Hosted:
    def __init__(self, ask):
        self.ask = ask
        self.opened = 0
    def open(self, **options):
        self.opened += 1
        if options.get("fail"):
            raise ImportError("no module of that name")
    def same(self, value):
        return value
    def kind(self, value):
        return [type(value).__name__, getattr(value, "shape", None)]
    def twice(self, number):
        return self.ask("double", number=number)
    def speak(self, text):
        print(text)
        return self.opened
    def fail(self):
        raise ValueError("this picture is too dark")
    def leave(self):
        sys.exit("enough")
    def unwritable(self):
        return object()
    def die(self):
        print("about to die")
        os._exit(3)
    def hang(self):
        time.sleep(600)
    def wait_for(self, path):
        with open(path) as pipe:
            return pipe.read()
    def hold(self, path):
        subprocess.Popen([sys.executable, "-c", "import sys, time; open(sys.argv[1], 'w'); time.sleep(600)", path])
        self.pipe = open(path, "w")
        self.pipe.write("ready\\n")
        self.pipe.flush()

def host(ask):
    return Hosted(ask)
"""

Make = Callable[..., Isolated]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    adapter = tmp_path / "adapter.py"
    adapter.write_text(ADAPTER)
    made: list[Isolated] = []

    def begin(**options: Any) -> Isolated:
        program = Program("test", str(adapter), opening=("open", {}), **options)
        made.append(Isolated(program, log_file=tmp_path / "log.txt", answers={"double": double}))
        return made[-1]

    yield begin
    for one in made:
        one.close()


def double(number: int) -> int:
    if number < 0:
        raise ModelError("negative numbers are not doubled here")
    return 2 * number


@pytest.mark.parametrize("version", ["3.8", "3.9", "3.10", "3.11", "3.12", "3.13"])
def test_it_runs_in_any_python_from_3_8_on(make: Make, version: str) -> None:
    host = make(python=interpreter(version))
    value = {"text": "äöü \udcff", "deep": [1, 2.5, None, True, {"a": []}]}
    assert host.call("same", value=value, timeout_s=20) == value
    assert host.call("same", value=[b"\0\xff" * 5, b""], timeout_s=20) == [b"\0\xff" * 5, b""]
    assert host.call("twice", number=21, timeout_s=20) == 42


def test_arrays_stay_arrays_where_there_is_a_numpy(make: Make) -> None:
    host = make()
    picture = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert host.call("kind", value=picture, timeout_s=20) == ["ndarray", [4, 5, 3]]
    back = host.call("same", value={"a": picture, "b": picture[:, :, 0].astype(np.float32)}, timeout_s=20)
    np.testing.assert_array_equal(back["a"], picture)
    assert back["b"].dtype == np.float32


@pytest.mark.parametrize(
    ("call", "says"),
    [
        ("fail", "ValueError: this picture is too dark"),
        ("leave", "SystemExit: enough"),
        ("unwritable", "cannot be written as JSON"),
        ("nothing_like_it", "AttributeError"),
    ],
)
def test_what_a_model_raises_fails_one_call(make: Make, call: str, says: str) -> None:
    host = make()
    with pytest.raises(ModelFailed, match=says):
        host.call(call, timeout_s=20)
    assert host.call("speak", text="on", timeout_s=20) == 1  # the same process


def test_a_question_that_cannot_be_answered_is_raised_where_it_was_asked(make: Make) -> None:
    with pytest.raises(ModelFailed, match="negative numbers are not doubled"):
        make().call("twice", number=-1, timeout_s=20)


def test_what_it_prints_is_in_its_log_and_in_the_error_when_it_dies(make: Make, tmp_path: Path) -> None:
    host = make()
    host.call("speak", text="hello", timeout_s=20)
    with pytest.raises(Died, match=r"(?s)status 3.*hello.*about to die"):
        host.call("die", timeout_s=20)
    assert "hello" in (tmp_path / "log.txt").read_text()
    assert host.call("same", value=1, timeout_s=20) == 1


def test_a_process_that_keeps_dying_is_left_alone_for_a_while(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "FIRST_PAUSE_S", 0.01)
    host = make()
    for _ in range(isolated.DEATHS):
        with pytest.raises(Died):
            host.call("die", timeout_s=20)
    with pytest.raises(ModelFailed, match="keeps dying: 4 times"):
        host.call("same", value=1, timeout_s=20)
    assert host.pid is None
    monkeypatch.setattr(isolated, "WATCHED_S", 0.0)
    assert host.call("same", value=1, timeout_s=20) == 1


def test_deaths_with_answers_between_them_are_no_reason_to_give_up(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "FIRST_PAUSE_S", 0.01)
    host = make()
    for _ in range(isolated.DEATHS + 1):
        with pytest.raises(Died):
            host.call("die", timeout_s=20)
        assert host.call("same", value=1, timeout_s=20) == 1


def test_one_that_never_answers_is_stopped(make: Make) -> None:
    host = make()
    first = host.call("speak", text="", timeout_s=20) and host.pid
    with pytest.raises(ModelFailed, match=r"did not answer within 0\.2 s"):
        host.call("hang", timeout_s=0.2)
    assert host.call("same", value=1, timeout_s=20) == 1
    assert host.pid != first


def test_lanes_go_side_by_side(make: Make, tmp_path: Path) -> None:
    host, pipe = make(), tmp_path / "pipe"
    os.mkfifo(pipe)
    answers: list[str] = []
    training = threading.Thread(
        target=lambda: answers.append(host.call("wait_for", path=str(pipe), lane="fit", timeout_s=30))
    )
    training.start()
    with pipe.open("w") as file:  # opens when the other lane has
        assert host.call("same", value=1, timeout_s=20) == 1
        file.write("trained")
    training.join(30)
    assert answers == ["trained"]


def test_a_death_fails_whoever_waits(make: Make, tmp_path: Path) -> None:
    host, pipe = make(), tmp_path / "pipe"
    os.mkfifo(pipe)
    failed: list[Exception] = []

    def train() -> None:
        try:
            host.call("wait_for", path=str(pipe), lane="fit", timeout_s=30)
        except ModelFailed as error:
            failed.append(error)

    training = threading.Thread(target=train)
    training.start()
    with pipe.open("w"):
        assert host.pid is not None
        os.kill(host.pid, signal.SIGKILL)
        training.join(30)
    assert "SIGKILL" in str(failed[0])


def test_an_interpreter_that_is_none_is_a_clear_error(make: Make) -> None:
    with pytest.raises(ModelError, match="cannot be started with /nowhere/python"):
        make(python="/nowhere/python").call("same", value=1, timeout_s=20)


@pytest.mark.parametrize(
    ("prints", "says"),
    [
        ("3 7", "it is Python 3.7, and 3.8 or newer is needed"),
        ("2 7", "it is Python 2.7"),
        ("hello", "it is no Python"),
    ],
    ids=["one year too old", "much too old", "another program"],
)
def test_an_interpreter_that_is_too_old_is_told_before_it_is_tried(
    make: Make, tmp_path: Path, prints: str, says: str
) -> None:
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\necho {prints}\n")
    program.chmod(0o755)
    with pytest.raises(ModelError, match=says):
        make(python=str(program)).call("same", value=1, timeout_s=20)


def test_a_model_that_does_not_open_says_why(tmp_path: Path, make: Make) -> None:
    make()
    program = Program("broken", str(tmp_path / "adapter.py"), opening=("open", {"fail": True}))
    host = Isolated(program, log_file=tmp_path / "log.txt")
    with pytest.raises(ModelError, match="broken cannot be opened: ImportError: no module of that name"):
        host.call("same", value=1, timeout_s=20)
    assert host.pid is None


def test_after_close_there_is_no_process_and_no_start(make: Make) -> None:
    host = make()
    host.call("same", value=1, timeout_s=20)
    host.close()
    assert host.pid is None
    with pytest.raises(ModelFailed, match="was let go"):
        host.call("same", value=1, timeout_s=20)


def test_close_does_not_wait_for_a_model_that_never_opens(tmp_path: Path, make: Make) -> None:
    make()
    program = Program("slow", str(tmp_path / "adapter.py"), opening=("wait_for", {"path": str(tmp_path / "pipe")}))
    os.mkfifo(tmp_path / "pipe")
    host = Isolated(program, log_file=tmp_path / "log.txt")
    failed: list[Exception] = []

    def call() -> None:
        try:
            host.call("same", value=1, timeout_s=60)
        except ModelFailed as error:
            failed.append(error)

    calling = threading.Thread(target=call)
    calling.start()
    with (tmp_path / "pipe").open("w"):  # it opens now, and waits for a line that never comes
        host.close()
        calling.join(30)
    assert "was stopped" in str(failed[0])


PARENT = """
import sys
from pathlib import Path
from labelloop.engines.isolated import Isolated, Program
host = Isolated(Program("test", sys.argv[1]), log_file=Path(sys.argv[2]))
host.call("hold", path=sys.argv[3], timeout_s=30)
host.call("hang", timeout_s=600)
"""


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[IO[bytes]]:
    os.mkfifo(tmp_path / "held")
    with os.fdopen(os.open(tmp_path / "held", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        yield file


def test_nothing_outlives_a_parent_that_is_killed(make: Make, tmp_path: Path, pipe: IO[bytes]) -> None:
    """The model and what it started hold a pipe: its end is the kernel's word that all of them are gone."""
    make()
    argv = [sys.executable, "-c", PARENT, tmp_path / "adapter.py", tmp_path / "log.txt", tmp_path / "held"]
    with subprocess.Popen(argv) as parent:
        assert select.select([pipe], [], [], 30)[0]
        assert pipe.read(100) == b"ready\n"
        parent.send_signal(signal.SIGKILL)
    assert select.select([pipe], [], [], 30)[0], "somebody still holds the pipe"
    assert pipe.read(100) == b""

"""The child process of a trainer: what reaches the caller, limits, stopping, and that nothing is left behind."""

from __future__ import annotations

import ast
import os
import re
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import msgspec
import pytest
import stub_trainers

from labelloop.core.cards import ModelCard
from labelloop.core.errors import LabelloopError
from labelloop.learning.trainers import base, process
from labelloop.learning.trainers.base import Progress, Stopped, TrainerFailed, TrainerRefused, TrainRequest
from reference.own_children import own_children


@pytest.fixture(autouse=True)
def stub(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_trainers.install(tmp_path_factory.mktemp("stub"), monkeypatch)


@pytest.fixture
def pipe(tmp_path: Path) -> Iterator[IO[bytes]]:
    os.mkfifo(tmp_path / "pipe")
    with os.fdopen(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK), "rb", buffering=0) as file:
        yield file


def all_gone(pipe: IO[bytes]) -> bool:
    """Waits for the end of file: nobody holds the other end any more."""
    return bool(select.select([pipe], [], [], 20)[0]) and pipe.read(1) == b""


def request(tmp_path: Path, **options: Any) -> TrainRequest:
    return TrainRequest(
        data=tmp_path, labels=("cat", "dog"), out=tmp_path / "out", budget_s=60, options=options, base_card=CARD
    )


CARD = ModelCard(name="before", labels=("x",))


def test_progress_and_the_result_arrive(tmp_path: Path) -> None:
    events: list[Progress] = []
    trained = process.run("obedient", request(tmp_path, do="finish", steps=3), on_event=events.append)
    assert trained.model == tmp_path / "out" / "model.onnx"
    assert trained.card == ModelCard(name="m", labels=("cat", "dog"))
    assert [(event.step, event.loss, event.message) for event in events] == [
        (1, 1, "step 1"),
        (2, 1 / 2, "step 2"),
        (3, 1 / 3, "step 3"),
    ]
    assert "a library prints this" in (tmp_path / "out" / "log.txt").read_text()


def test_the_child_is_nice_passive_in_a_group_of_its_own_and_knows_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABELLOOP_PASSWORD", "secret")
    events: list[Progress] = []
    process.run("obedient", request(tmp_path, do="tell", steps=0), on_event=events.append)
    assert ast.literal_eval(events[0].message) == {
        "OMP_WAIT_POLICY": "PASSIVE",
        "OMP_NUM_THREADS": "1",
        "LABELLOOP_PASSWORD": None,
        "nice": min(os.nice(0) + 15, 19),
        "python": sys.executable,
        "stdin": "",
        "group": True,
    }


def test_another_interpreter_can_be_given(tmp_path: Path) -> None:
    """A link in a folder without pyvenv.cfg is the bare interpreter: it sees only what the environment names."""
    other = tmp_path / "other-python"
    packages = os.pathsep.join(path for path in sys.path if path)
    other.write_text(f'#!/bin/sh\nPYTHONPATH="$PYTHONPATH:{packages}" exec {os.path.realpath(sys.executable)} "$@"\n')
    other.chmod(0o755)
    events: list[Progress] = []
    process.run("obedient", request(tmp_path, do="tell", steps=0), on_event=events.append, python=other)
    assert ast.literal_eval(events[0].message)["python"] == os.path.realpath(sys.executable)


def test_bare_progress_is_thinned_and_a_loss_that_is_no_number_is_none(tmp_path: Path) -> None:
    events: list[Progress] = []
    with pytest.raises(Stopped):
        process.run(
            "obedient", request(tmp_path, do="wait"), on_event=events.append, should_stop=lambda: len(events) > 2
        )
    assert {event.loss for event in events} == {None}


# --- stopping ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"do": "wait"}, id="it-reports"),
        pytest.param({"do": "wait", "helper": True}, id="with-a-process-of-its-own"),
        pytest.param({"do": "hang", "deaf": True}, id="hangs-and-ignores-sigterm"),
        pytest.param({"do": "hang", "helper": True}, id="hangs-with-a-process-of-its-own"),
    ],
)
def test_a_run_can_be_stopped_and_nothing_is_left(tmp_path: Path, pipe: IO[bytes], options: dict[str, Any]) -> None:
    begun = threading.Event()
    with pytest.raises(Stopped):
        process.run(
            "obedient",
            request(tmp_path, pipe=str(tmp_path / "pipe"), **options),
            on_event=lambda _: begun.set(),
            should_stop=begun.is_set,
            limits=process.Limits(stop_grace_s=0.2),
        )
    assert all_gone(pipe)


def test_an_error_in_the_callback_ends_the_child(tmp_path: Path, pipe: IO[bytes]) -> None:
    def fail(event: Progress) -> None:
        raise RuntimeError("full disk")

    with pytest.raises(RuntimeError, match="full disk"):
        process.run("obedient", request(tmp_path, do="wait", pipe=str(tmp_path / "pipe")), on_event=fail)
    assert all_gone(pipe)


def test_a_killed_run_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(TrainerFailed, match=r"SIGKILL[\s\S]*last words"):
        process.run("obedient", request(tmp_path, do="crash", signal="SIGKILL"))
    seen: list[Progress] = []
    with pytest.raises(Stopped):
        process.run(
            "obedient",
            request(tmp_path, do="finish", steps=5, wait_at=3),
            on_event=seen.append,
            should_stop=lambda: bool(seen) and seen[-1].step in (0, 3),
        )
    trained = process.run("obedient", request(tmp_path, do="finish", steps=5))
    assert trained.metrics == {"done_before": 3}


PARENT = """\
import sys
from pathlib import Path
from labelloop.learning.trainers import process
from labelloop.learning.trainers.base import decode, TrainRequest
process.run("obedient", decode(Path(sys.argv[1]).read_bytes(), TrainRequest), on_event=lambda e: print("begun", flush=True))
"""


@pytest.mark.parametrize("options", [{"do": "wait", "helper": True}, {"do": "hang", "deaf": True, "helper": True}])
def test_sigkill_of_the_parent_leaves_no_orphan(tmp_path: Path, pipe: IO[bytes], options: dict[str, Any]) -> None:
    """Also not a deaf one's helper: the kernel's death signal reaches only the child, the closed pipe ends the rest."""
    (tmp_path / "request").write_bytes(base.encode(request(tmp_path, pipe=str(tmp_path / "pipe"), **options)))
    with subprocess.Popen([sys.executable, "-c", PARENT, tmp_path / "request"], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == b"begun\n"
        parent.kill()
    assert all_gone(pipe)


def test_a_second_run_in_the_same_folder_waits_for_the_dying_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    hold = (
        "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True);"
        "sys.stdin.read()"
    )
    lock = tmp_path / "out" / "lock"
    with subprocess.Popen([sys.executable, "-c", hold, lock], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        assert holder.stdout.readline() == b"held\n"
        threading.Timer(0.3, holder.stdin.close).start()
        assert process.run("obedient", request(tmp_path, do="finish", steps=1)).metrics == {"done_before": 0}
        assert holder.wait(20) == 0


# --- what goes wrong --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "message", "hint"),
    [
        ({"do": "finish", "refuse": "There are no boxes."}, TrainerRefused, "cannot do this: There are no boxes.", ""),
        ({"do": "refuse_late"}, TrainerRefused, "cannot do this: It has no neck. Take another.", ""),
        ({"do": "raise_ours"}, TrainerFailed, "^The base model is no good. Take another.$", "Take another"),
        ({"do": "raise_theirs", "what": "value"}, TrainerFailed, r"ValueError: seven\.[\s\S]*Traceback", "log.txt"),
        ({"do": "raise_theirs", "what": "import"}, TrainerFailed, "No module named 'torch'", r"labelloop\[train\]"),
        ({"do": "raise_theirs", "what": "memory"}, TrainerFailed, "MemoryError", "smaller pictures"),
        ({"do": "leave"}, TrainerFailed, r"status 3[\s\S]*last words", "log.txt"),
        ({"do": "crash", "signal": "SIGKILL"}, TrainerFailed, r"SIGKILL[\s\S]*last words", "run out of memory"),
        ({"do": "crash", "signal": "SIGSEGV"}, TrainerFailed, r"SIGSEGV[\s\S]*last words", "log.txt"),
        ({"do": "promise"}, TrainerFailed, r"nothing\.onnx, and there is no such file", "finished file"),
        ({"do": "no_such_method"}, TrainerFailed, "AttributeError", "log.txt"),
    ],
    ids=lambda value: value.get("what", value.get("signal", value["do"])) if isinstance(value, dict) else "",
)
def test_each_end_says_what_happened(
    tmp_path: Path, options: dict[str, Any], error: type[LabelloopError], message: str, hint: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        process.run("obedient", request(tmp_path, **options))
    assert type(raised.value) is error
    assert re.search(hint, raised.value.hint)


def test_a_sigterm_from_somebody_else_is_told_apart_from_our_stop(tmp_path: Path) -> None:
    before = own_children()

    def terminate(_event: Progress) -> None:
        (child,) = own_children() - before
        os.kill(child, signal.SIGTERM)

    with pytest.raises(TrainerFailed, match="somebody else stopped it"):
        process.run("obedient", request(tmp_path, do="wait"), on_event=terminate)


def test_over_time_is_stopped(tmp_path: Path) -> None:
    short = msgspec.structs.replace(request(tmp_path, do="wait"), budget_s=0.5)
    with pytest.raises(TrainerFailed, match="was stopped after 1 s: it was given 0 s and 0 s more"):
        process.run("obedient", short, limits=process.Limits(overtime_s=0.1))


def test_over_memory_is_stopped(tmp_path: Path, pipe: IO[bytes]) -> None:
    with pytest.raises(TrainerFailed, match=r"uses \d+ MB of memory, of 200 MB"):
        process.run(
            "obedient",
            request(tmp_path, do="eat", bytes=300_000_000, pipe=str(tmp_path / "pipe")),
            limits=process.Limits(memory_bytes=200_000_000),
        )
    assert all_gone(pipe)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"then": "crash", "signal": "SIGSEGV"}, "it was ended by SIGSEGV"),
        ({"then": "eat", "bytes": 300_000_000}, "MB of memory, of 200 MB"),
        ({"then": "raise_ours"}, "The base model is no good."),
        ({"then": "promise"}, "there is no such file"),
    ],
    ids=["it crashes", "it takes too much memory", "it fails", "it leaves nothing"],
)
def test_what_was_finished_outlives_what_the_trainer_tries_next(
    tmp_path: Path, options: dict[str, Any], why: str
) -> None:
    events: list[Progress] = []
    trained = process.run(
        "obedient",
        request(tmp_path, do="try_more", **options),
        on_event=events.append,
        limits=process.Limits(memory_bytes=200_000_000),
    )
    assert trained.model.read_bytes() == b"first"
    assert events[-1].step == 7
    assert events[-1].message.startswith("what was finished before counts: ")
    assert why in events[-1].message
    assert "\n" not in events[-1].message


def test_an_unknown_trainer_names_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(LabelloopError, match=r"no trainer called 'obediant'. Did you mean 'obedient'"):
        process.run("obediant", request(tmp_path))


# --- the request ------------------------------------------------------------------------------------


def test_the_fingerprint_says_whether_a_checkpoint_fits(tmp_path: Path) -> None:
    def changed(**values: Any) -> str:
        return msgspec.structs.replace(request(tmp_path, size=416), **values).fingerprint()

    (tmp_path / "model.onnx").write_bytes(b"one")
    mine = changed()
    assert changed(out=tmp_path / "else", budget_s=5, device="cuda", threads=8) == mine
    others = [
        changed(seed=1),
        changed(labels=("dog", "cat")),
        changed(options={"size": 320}),
        changed(base=tmp_path / "model.onnx"),
    ]
    (tmp_path / "manifest.json").write_text("{}")
    others.append(changed())
    assert len({mine, *others}) == 6


def test_a_wrong_option_names_the_near_one() -> None:
    class Options(msgspec.Struct, frozen=True):
        size: int = 416

    assert base.read_options({"size": 320}, Options, trainer="t").size == 320
    with pytest.raises(base.TrainerError, match=r"no option 'sise'. Did you mean 'size'"):
        base.read_options({"sise": 320}, Options, trainer="t")
    with pytest.raises(base.TrainerError, match="cannot be used"):
        base.read_options({"size": "big"}, Options, trainer="t")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "checkpoint"
    base.replace_file(target, lambda path: path.write_text("one"))

    def fail(path: Path) -> None:
        path.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space"):
        base.replace_file(target, fail)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["one"]

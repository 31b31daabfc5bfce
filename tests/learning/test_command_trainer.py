"""The trainer `command`: a stranger's program is told what to do, followed, checked, and stopped."""

from __future__ import annotations

import json
import shlex
import sys
import threading
from pathlib import Path
from typing import Any

import msgspec
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import LabelloopError
from labelloop.demo import belt
from labelloop.engines.detect import DetectEngine
from labelloop.learning.trainers import process
from labelloop.learning.trainers.base import Progress, Stopped, TrainRequest
from labelloop.learning.trainers.command import CommandTrainer
from reference import tiny_models

ROOT = Path(__file__).resolve().parents[2]


def request(tmp_path: Path, *command: str, **changes: Any) -> TrainRequest:
    (tmp_path / "out").mkdir(exist_ok=True)
    labels = changes.pop("labels", ("cat", "dog"))
    made = TrainRequest(
        data=tmp_path, labels=labels, out=tmp_path / "out", budget_s=30, options={"command": list(command)}
    )
    return msgspec.structs.replace(made, **changes)


def python(code: str) -> tuple[str, str, str]:
    return sys.executable, "-c", code


def quiet(progress: Progress) -> None:
    del progress


COPY = "import os, shutil, sys; shutil.copy(sys.argv[1], os.environ['TRAIN_MODEL'])"


def model_of(tmp_path: Path, *names: str) -> Path:
    """A file that finds one thing; its metadata name the classes when there are names."""
    metadata = tiny_models.ultralytics_metadata(names, size_wh=(640, 640)) if names else {}
    thing = tiny_models.Thing((10, 10, 50, 50), 0, 0.9)
    return tiny_models.build_v8(tmp_path / "given.onnx", [thing], classes=len(names) or 2, metadata=metadata)


def test_the_program_is_told_everything(tmp_path: Path) -> None:
    base = model_of(tmp_path, "cat", "dog")
    code = (
        "import os, sys, json; told = {k: v for k, v in os.environ.items() if k.startswith('TRAIN_')};"
        "json.dump([told, open(told['TRAIN_LABELS']).read(), sys.argv[1:], sys.stdin.read(), os.getcwd()],"
        " open('told.json', 'w'));" + COPY.replace("sys.argv[1]", "told['TRAIN_BASE']")
    )
    asked = request(tmp_path, *python(code), "{data}/x", "{budget_s}", "{other}", base=base, seed=7, threads=2)
    CommandTrainer().train(asked, quiet)
    told, labels, arguments, stdin, folder = json.loads((tmp_path / "out" / "told.json").read_text())
    out = str(tmp_path / "out")
    assert told == {
        "TRAIN_DATA": str(tmp_path),
        "TRAIN_LABELS": f"{out}/labels.txt",
        "TRAIN_BASE": str(base),
        "TRAIN_OUT": out,
        "TRAIN_MODEL": f"{out}/model.onnx",
        "TRAIN_CHECKPOINT": f"{out}/checkpoint",
        "TRAIN_BUDGET_S": "30",
        "TRAIN_THREADS": "2",
        "TRAIN_DEVICE": "cpu",
        "TRAIN_SEED": "7",
    }
    assert (labels, stdin, folder) == ("cat\ndog\n", "", out)
    assert arguments == [f"{tmp_path}/x", "30", "{other}"]


def test_lines_of_json_with_a_step_are_progress_and_others_are_not(tmp_path: Path) -> None:
    lines = [
        "loading",
        json.dumps({"step": 1, "steps": 2, "loss": 0.5}),
        json.dumps({"epoch": 1}),
        "{broken",
        json.dumps({"step": 2, "steps": 2, "metrics": {"AP50": 0.25}, "message": "done", "lr": 0.1}),
    ]
    code = "import sys; [print(line) for line in sys.argv[2:]];" + COPY
    seen: list[Progress] = []
    asked = request(tmp_path, *python(code), str(model_of(tmp_path, "cat", "dog")), *lines)
    trained = CommandTrainer().train(asked, seen.append)
    assert seen[0].message.startswith(sys.executable)
    told = [event for event in seen[1:] if event.step]
    assert {(event.step, event.steps, event.loss) for event in told} == {(1, 2, 0.5), (2, 2, None)}
    assert [event.message for event in told if event.message] == ["done"]
    assert trained.metrics == {"AP50": 0.25}


@pytest.mark.parametrize(
    ("named", "card", "labels"),
    [
        (("dog", "cat"), "", ("dog", "cat")),
        ((), "", ("cat", "dog")),
        ((), "labels: [dog, cat]", ("dog", "cat")),
        (("x", "y"), "labels: [dog, cat]\nname: mine", ("dog", "cat")),
    ],
    ids=["from-the-file", "from-the-project", "from-the-card", "the-card-wins"],
)
def test_where_the_class_names_come_from(
    tmp_path: Path, named: tuple[str, ...], card: str, labels: tuple[str, ...]
) -> None:
    code = COPY + "; open('model.yaml', 'w').write(sys.argv[2])" if card else COPY
    trained = CommandTrainer().train(
        request(tmp_path, *python(code), str(model_of(tmp_path, *named)), card, base_card=ModelCard(name="before")),
        quiet,
    )
    assert trained.card.labels == labels
    assert trained.card.name == ("mine" if "mine" in card else "before")
    assert trained.card.family == "ultralytics-v8"


@pytest.mark.slow
def test_a_folder_of_transformers_is_a_model_too(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="needs the extra labelloop[train]")
    from reference import tiny_transformers

    made = tiny_transformers.detector(tmp_path / "made", kind="rt_detr_v2", labels=("cat", "dog"))
    code = "import os, shutil, sys; shutil.copytree(sys.argv[1], os.environ['TRAIN_MODEL'].removesuffix('.onnx'))"
    asked = request(tmp_path, *python(code), str(made), base_card=ModelCard(name="before"))
    for _ in range(2):  # what an earlier try left is not in the way
        trained = CommandTrainer().train(asked, quiet)
    assert (trained.model.name, trained.card.engine, trained.card.name) == ("model.zip", "transformers", "before")
    assert trained.card.labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise SystemExit(3)", "ended with status 3"),
        ("pass", r"left no model\.onnx"),
        ("import os; open(os.environ['TRAIN_MODEL'], 'w').write('no model')", "not an ONNX file|cannot load"),
    ],
    ids=["status", "no-file", "not-onnx"],
)
def test_what_the_program_does_wrong_is_said(tmp_path: Path, code: str, message: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.onnx").write_bytes(b"that of an earlier run")
    with pytest.raises(LabelloopError, match=message):
        CommandTrainer().train(request(tmp_path, *python(code)), quiet)


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    asked = request(tmp_path, *python(COPY), str(model_of(tmp_path, "x", "y")))
    with pytest.raises(LabelloopError, match=r"classes \(x, y\) are none of the project's \(cat, dog\)"):
        CommandTrainer().train(asked, quiet)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({}, "no program to run"),
        ({"command": ["/no/such/program"]}, "is not there"),
        ({"command": "python 'open"}, "No closing quotation"),
        ({"comand": ["x"]}, "Did you mean 'command'"),
        ({"command": [sys.executable]}, None),
        ({"command": f"{shlex.quote(sys.executable)} train.py"}, None),
    ],
    ids=["nothing", "missing", "quotation", "misspelt", "list", "text"],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], why: str | None) -> None:
    said = CommandTrainer().refuses(request(tmp_path, options=options))
    assert (said is None) if why is None else (why in str(said))


def test_a_silent_program_is_stopped_and_a_program_that_leaves_a_child_behind_is_not_waited_for(tmp_path: Path) -> None:
    def stop_soon(progress: Progress) -> None:
        if not progress.message:  # the first check while it is silent
            raise Stopped

    with pytest.raises(Stopped):
        CommandTrainer().train(request(tmp_path, *python("import time; time.sleep(600)")), stop_soon)
    left = (
        "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import sys; sys.stdin.read()'],"
        " stdin=subprocess.PIPE); open('pid', 'w').write(str(child.pid)); import os; os._exit(4)"
    )
    with pytest.raises(LabelloopError, match="status 4"):
        CommandTrainer().train(request(tmp_path, *python(left)), quiet)


def test_through_the_child_process_stop_reaches_the_program(tmp_path: Path) -> None:
    begun = threading.Event()
    code = "import json, time; print(json.dumps({'step': 1}), flush=True); time.sleep(600)"

    def note(progress: Progress) -> None:
        if progress.step:
            begun.set()

    with pytest.raises(Stopped):
        process.run("command", request(tmp_path, *python(code)), on_event=note, should_stop=begun.is_set)
    assert '{"step": 1}' in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.slow
def test_the_example_trains_a_model_that_is_served(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="needs the extra train")
    belt.write_data_set(tmp_path, train=range(4), val=())
    seen: list[Progress] = []
    asked = request(tmp_path, sys.executable, str(ROOT / "examples/train_command.py"), labels=belt.LABELS, budget_s=4.0)
    trained = process.run("command", asked, on_event=seen.append)
    assert trained.card.labels == belt.LABELS
    assert (trained.card.family, trained.card.iou_threshold) == ("detr-raw", 0.5)
    assert DetectEngine.describe(trained.model, trained.card).input.size_wh == (256, 256)
    assert [event.step for event in seen] == sorted(event.step for event in seen)

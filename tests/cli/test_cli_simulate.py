"""`labelloop simulate` as people run it: real child processes, real files, a sentence for whatever is wrong."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import msgspec
import pytest

from labelloop.cli import main
from labelloop.formats import coco
from learning import stub_trainers
from reference.belt import write_squares
from reference.numbered import write_numbered
from reference.tiny_networks import tiny_yolox

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs the command in this process, in a folder with 12 labelled pictures and 4 held out; returns the exit status,
    stdout and stderr."""
    (tmp_path / "package").mkdir()
    stub_trainers.install(tmp_path / "package", monkeypatch)
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    write_numbered(tmp_path / "parts", "train", range(1, 13))
    write_numbered(tmp_path / "parts", "val", range(101, 105))

    def go(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["labelloop", "simulate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return go


USUAL = (
    "parts/train.json", "--images", "parts/images", "--held-out", "parts/val.json", "--start", "none",
    "--trainer", "counting", "--seeds", "1", "--budget", "2,4", "-o", "out",
)  # fmt: skip


def test_a_simulation_goes_on_with_more_seeds_and_leaves_a_curve(run: Run, tmp_path: Path) -> None:
    status, said, _ = run(*USUAL, "--no-full")
    assert status == 0
    assert "12 pictures to choose from; 4 with 4 boxes held out." in said
    assert "3 trainings to do, 0 rows are there." in said
    assert "random, seed 0, 4 pictures: AP50 0.50" in said
    status, said, _ = run(*USUAL, "--seeds", "2", "--resume")
    assert status == 0
    assert "5 trainings to do, 4 rows are there." in said
    assert "uncertainty against random: AP50 +0.000 ± 0.000" in said
    with (tmp_path / "out/curve.csv").open() as file:
        found = [(row["strategy"], row["seed"], row["pictures"]) for row in csv.DictReader(file)]
    per_seed = [("uncertainty", 2), ("uncertainty", 4), ("random", 2), ("random", 4), ("full", 12)]
    assert found == [(name, str(seed), str(size)) for seed in range(2) for name, size in per_seed]
    assert cv2.imread(str(tmp_path / "out/curve.png")) is not None
    assert "Learning curve on parts/train.json" in (tmp_path / "out/curve.svg").read_text()
    assert "0 trainings to do, 10 rows are there." in run(*USUAL, "--seeds", "2", "--resume")[1]


def test_pictures_that_cannot_be_had_are_left_out_and_named(run: Run, tmp_path: Path) -> None:
    (tmp_path / "parts/images/3.png").unlink()
    (tmp_path / "parts/images/4.png").write_bytes(b"no picture")
    (tmp_path / "parts/images/5.png").write_bytes((tmp_path / "parts/images/101.png").read_bytes())
    status, said, _ = run(*USUAL, "--no-full", "--strategy", "random")
    assert status == 0
    assert "9 pictures to choose from" in said
    assert "left out: picture 3: " in said
    assert "3.png cannot be read: No such file or directory" in said
    assert "left out: picture 4: " in said
    assert "left out: picture 5: the same picture as in task 101, held out" in said


def cases() -> dict[str, tuple[tuple[str, ...], str, str]]:
    return {
        "no such file": (("--held-out", "no.json"), "no.json cannot be read", ""),
        "no such folder": (("--images", "no"), "There is no folder no.", "--images"),
        "no such model file": (("--start", "no.onnx"), "There is no file no.onnx.", "or none"),
        "no such model": (("--start", "nobody"), "There is no model nobody", "models add"),
        "no such trainer": (("--trainer", "hed"), "There is no trainer called 'hed'", "head"),
        "a trainer that wants a model": (("--trainer", "head"), "There is no model to start from", ""),
        "no such strategy": (("--strategy", "margn"), "There is no strategy called 'margn'", "margin"),
        "a budget of words": (("--budget", "2,many"), "'many' is no number of pictures", "--budget 20,40,80"),
        "budgets that shrink": (("--budget", "4,2"), "The budgets 4, 2 do not grow", "larger"),
        "too large a budget": (
            ("--budget", "99"),
            "A budget of 99 pictures is more than the 12",
            "4 more are held out",
        ),
        "no seeds": (("--seeds", "0"), "0 seeds are no simulation", ""),
        "no share": (("--val-share", "1.5"), "1.5 is no share", "--val-share 0.2"),
        "wrong times": (("--times", "draw=3"), "'draw=3' is no time of an action", "add"),
        "nothing to go on with": (("--resume",), "out holds no simulation to go on with", "--resume"),
        "out is a file": (("-o", "parts/train.json"), "parts/train.json is a file", "-o"),
        "out is not empty": (("-o", "parts"), "parts is not empty", "--resume"),
    }


@pytest.mark.parametrize(("change", "message", "hint"), cases().values(), ids=cases())
def test_whatever_is_wrong_is_said_in_two_lines(run: Run, change: tuple[str, ...], message: str, hint: str) -> None:
    status, _, said = run(*USUAL, *change)
    assert status == 1
    what, _, then = said.rstrip("\n").rpartition("\n") if "\n" in said.rstrip("\n") else (said, "", "")
    assert message in what
    assert hint in then
    assert "Traceback" not in said


def test_another_simulation_does_not_go_on_in_its_folder(run: Run) -> None:
    assert run(*USUAL, "--strategy", "random", "--no-full", "--budget", "2")[0] == 0
    status, _, said = run(*USUAL, "--resume", "--val-share", "0.3", "--times", "add=25")
    assert status == 1
    assert "another set of times per action" in said
    assert "another folder with -o" in said


def test_ctrl_c_ends_the_training_and_says_how_to_go_on(run: Run, tmp_path: Path) -> None:
    """A process of its own, as a terminal has it; the trainer never ends by itself."""
    words = [*USUAL, "--trainer", "endless"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("LABEL")}
    environment |= {"LABELLOOP_HOME": str(tmp_path / "home")}
    program = [sys.executable, "-m", "labelloop", "simulate", *words]
    process = subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    trainer = tmp_path / "package/endless.txt"
    deadline = time.monotonic() + 60
    while not trainer.exists():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "the trainer never began"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said, wrong = process.communicate(timeout=30)
    assert process.returncode == 130, wrong
    assert "Stopped. Go on with the same command and --resume." in said
    assert "Traceback" not in wrong
    with pytest.raises(ProcessLookupError):
        os.kill(int(trainer.read_text()), 0)


@pytest.mark.slow
@pytest.mark.parametrize("start", ["tiny.onnx", "none"])
def test_a_simulation_with_a_real_trainer(run: Run, tmp_path: Path, start: str) -> None:
    """`head` from a model, `scratch` from nothing."""
    write_squares(tmp_path / "squares", pictures=24)
    tiny_yolox(tmp_path / "tiny.onnx")
    found = coco.read(tmp_path / "squares/train.json")
    images = tuple(msgspec.structs.replace(image, id=image.id + 1) for image in found.images)
    rows = tuple(msgspec.structs.replace(row, id=row.id + 1, image_id=row.image_id + 1) for row in found.annotations)
    coco.write(tmp_path / "squares/all.json", coco.Dataset(images, rows, found.categories))
    status, _, wrong = run(
        "squares/all.json", "--images", "squares/images", "--start", start, "--seeds", "1", "--budget", "4,8",
        "--train-steps", "12", "--val-share", "0.3", "-o", "out",
    )  # fmt: skip
    assert status == 0, wrong
    with (tmp_path / "out/curve.csv").open() as file:
        points = [(row["strategy"], float(row["ap50"])) for row in csv.DictReader(file)]
    assert [name for name, _ in points] == ["uncertainty", "uncertainty", "random", "random", "full"]
    assert points[0] == ("uncertainty", points[2][1]), "the first training is shared"
    assert all(0 <= value <= 1 for _, value in points)
    trainer = {"tiny.onnx": "head", "none": "scratch"}[start]
    assert f'"trainer": "{trainer}"' in (tmp_path / "out/plan.json").read_text()

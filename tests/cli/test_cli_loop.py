"""`labelloop loop`, `train` and what follows as processes, the way people run them; the trainer is a stub's."""

from __future__ import annotations

import base64
import json
import os
import re
from pathlib import Path

import httpx
import pytest

from labelloop.core.settings import read_settings
from labelloop.serving.models import open_store
from learning import stub_trainers
from reference.running_server import CONFIG, jpeg
from reference.terminal import Terminal
from reference.tiny_models import Thing, build_v8, ultralytics_metadata
from reference.waiting import wait

pytestmark = pytest.mark.slow  # each command is a process

SIDE = 320
PLACE = (20, 20, 100, 100)
"""Where people see a car. The model that serves the project sees it elsewhere."""


@pytest.fixture
def parts(terminal: Terminal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """A project of 24 annotated pictures that differ, and of two that nobody has touched."""
    (tmp_path / "stub").mkdir()
    stub_trainers.install(tmp_path / "stub", monkeypatch)
    terminal.environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
    project = terminal.studio.add_project("parts", CONFIG)
    pictures = [base64.b64encode(jpeg(SIDE, SIDE, seed=number)).decode() for number in range(26)]
    tasks = terminal.studio.add_tasks(project, [{"image": f"data:image/jpeg;base64,{one}"} for one in pictures])
    left, top, right, bottom = (100 * side / SIDE for side in PLACE)
    value = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}
    result = {"id": "r", "from_name": "box", "to_name": "img", "type": "rectanglelabels", "original_width": SIDE}
    result |= {"original_height": SIDE, "value": value | {"rectanglelabels": ["Car"]}}
    headers = {"Authorization": f"Token {terminal.studio.token}"}
    with httpx.Client(base_url=terminal.studio.url, headers=headers, trust_env=False) as http:
        for task in tasks[:24]:
            http.post(f"/api/tasks/{task}/annotations/", json={"result": [result]}).raise_for_status()
    return project


def better(folder: Path) -> Path:
    metadata = ultralytics_metadata(("Car",), size_wh=(SIDE, SIDE))
    things = [Thing(PLACE, 0, 0.9)]
    return build_v8(folder / "better.onnx", things, size_wh=(SIDE, SIDE), classes=1, metadata=metadata)


def test_a_loop_is_switched_looked_at_and_told_how_to_decide(terminal: Terminal, parts: int) -> None:
    unknown = terminal.run("loop", "parts")
    assert unknown.returncode == 1
    assert f"Project {parts} does not learn by itself.\nBegin: labelloop loop {parts} on" in unknown.stderr
    begun = terminal.run("loop", "parts", "on", "--min-new", "5", "--every", "24", "--ask")
    assert begun.returncode == 0, begun.stderr
    assert f"The loop of project {parts} is on. 0 of 5 new annotations. With any, it also begins at 20" in begun.stdout
    assert "Nobody is here to train: run labelloop serve, or labelloop worker." in begun.stdout
    told = terminal.run("loop", "parts", "on", "--every", "0", "--always", "--even-if-few", "--memory", "900", "--json")
    options = json.loads(told.stdout)["options"]
    kept = [options[name] for name in ("min_new", "every_h", "promotion", "even_if_few", "memory_mb")]
    assert kept == [5, None, "always", True, 900], "what is not named stays"
    for words, says in ((("--min-new", "7"), "Nothing was changed"), (("on", "--never", "--ask"), "One of them")):
        refused = terminal.run("loop", "parts", *words)
        assert refused.returncode in (1, 2)
        assert says in refused.stderr
    terminal.studio.stop()
    off = terminal.run("loop", str(parts), "off")
    assert f"is off. Off. Switch it on: labelloop loop {parts} on" in off.stdout
    assert "Nobody is here" not in off.stdout


def test_a_training_waits_for_a_word_goes_live_and_back(terminal: Terminal, parts: int, tmp_path: Path) -> None:
    store = open_store(read_settings(home=terminal.home))
    registry = store.registry
    registry.bind(parts, "cars@1")
    told = {"do": "finish", "steps": 3, "model": str(better(tmp_path))}
    options = [word for name, value in told.items() for word in ("--with", f"{name}={value}")]
    done = terminal.run("train", "parts", "--trainer", "obedient", *options, "--budget", "20", "--ask", "--even-if-few")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "candidate: AP50 1.000, AP 1.000, precision as drawn 1.000, recall 1.000, calibration error 0.100"
        in done.stdout
    )
    assert "live: AP50 0.000" in done.stdout
    assert re.search(r"Car +8 +1\.000 +0\.000 +1\.000 +1\.000 +1\.000", done.stdout), "each class, with its count"
    assert "waiting for a person to promote it" in done.stdout
    assert registry.catalogue().of_project(parts).id == "cars@1"  # type: ignore[union-attr]

    (job,) = store.jobs.newest()
    assert "retrain" in terminal.run("jobs", "list").stdout
    assert "waiting for a person" in terminal.run("jobs", "show", job.id).stdout

    promoted = terminal.run("loop", "parts", "promote")
    assert promoted.returncode == 0, promoted.stderr
    assert "puts the new version live" in promoted.stdout
    wait(lambda: registry.catalogue().of_project(parts).id == "cars@2")  # type: ignore[union-attr]
    state = wait(lambda: ended(terminal))
    assert (state["run"]["outcome"], state["enabled"]) == ("promoted", False)
    assert state["options"]["trainer"] == "auto", "what was said of one training is no wish for later ones"
    shown = terminal.run("models", "show", "cars@2").stdout
    assert re.search(rf"^# live for project {parts} since 20.*, by the learning loop$", shown, re.MULTILINE)
    assert "cars@1 again, instead of cars@2" in terminal.run("models", "rollback", str(parts)).stdout


def ended(terminal: Terminal) -> dict[str, object] | None:
    state: dict[str, object] = json.loads(terminal.run("loop", "parts", "--json").stdout)
    assert isinstance(state["job"], dict)
    return state if state["job"]["finished_at"] else None

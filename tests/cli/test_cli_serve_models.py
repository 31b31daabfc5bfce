"""`labelloop serve` and `labelloop models` as processes, the way people run them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest

from labelloop.core.settings import read_settings
from labelloop.store.db import open_database
from labelloop.store.lineage import Lineage, Lineages
from labelloop.store.schema import now
from reference.running_server import CONFIG, Backend, jpeg
from reference.tiny_models import Thing, build_v8, ultralytics_metadata

PROGRAM = [sys.executable, "-m", "labelloop"]


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_"))}
    return kept | {"LABELLOOP_HOME": str(tmp_path / "home"), "PYTHONUNBUFFERED": "1"}


@contextmanager
def serving(environment: dict[str, str], *arguments: str, cwd: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    process = subprocess.Popen(
        [*PROGRAM, "serve", *arguments],
        env=environment,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, process.stderr and process.stderr.read()
        yield found[0], process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def run(environment: dict[str, str], *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def detector(path: Path, *, names: tuple[str, ...] | None = ("car", "dog", "cat")) -> Path:
    metadata = ultralytics_metadata(names, size_wh=(320, 320)) if names else None
    path.parent.mkdir(parents=True, exist_ok=True)
    return build_v8(path, [Thing((80, 80, 240, 240), 0, 0.9)], size_wh=(320, 320), metadata=metadata)


def boxes(url: str, project: int) -> tuple[str, list[dict]]:
    import base64

    uri = "data:image/jpeg;base64," + base64.b64encode(jpeg(320, 320)).decode()
    body = {"tasks": [{"id": 1, "data": {"image": uri}}], "project": f"{project}.1", "label_config": CONFIG}
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http:
        Backend.wait(lambda: http.get("/ready").status_code == 200, seconds=30)
        (item,) = http.post("/predict", json=body).json()["results"]
    return item["model_version"], item["result"]


def test_a_folder_of_the_rust_backend_works_as_it_is(environment: dict[str, str], tmp_path: Path) -> None:
    detector(tmp_path / "models" / "7.onnx", names=None)
    environment |= {
        "ML_LABELS": "car,dog,cat",
        "ML_PROVIDER": "cpu",
        "ML_BACKEND_ADDR": "127.0.0.1",
        "LABELLOOP_PORT": "0",
    }
    with serving(environment, cwd=tmp_path) as (url, process):
        version, (box,) = boxes(url, 7)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM), "uvicorn ends by the signal it was given"
    assert version.startswith("project-7@1.")
    assert box["value"]["rectanglelabels"] == ["Car"]
    assert box["value"] | {"rectanglelabels": 0} == pytest.approx(
        {"x": 25, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": 0}, abs=0.2
    )


def test_serving_a_file_twice_is_one_version(environment: dict[str, str], tmp_path: Path) -> None:
    file = detector(tmp_path / "my model (1).onnx")
    versions = []
    for _ in range(2):
        with serving(environment, "--model", str(file), "--port", "0", cwd=tmp_path) as (url, _):
            version, found = boxes(url, 3)
            versions.append(version)
            assert len(found) == 1
    assert versions[0] == versions[1]
    assert versions[0].startswith("my-model--1@1.")


def test_a_restart_and_a_kill_change_nothing(environment: dict[str, str], tmp_path: Path) -> None:
    run(environment, "models", "add", detector(tmp_path / "cars.onnx"))
    run(environment, "models", "use", "5", "cars")
    with serving(environment, "--port", "0", cwd=tmp_path) as (url, process):
        before = boxes(url, 5)
        process.kill()
    with serving(environment, "--port", "0", cwd=tmp_path) as (url, _):
        assert boxes(url, 5) == before


def test_the_life_of_a_model(environment: dict[str, str], tmp_path: Path) -> None:
    file = detector(tmp_path / "cars.onnx")
    assert "No models yet" in run(environment, "models", "list").stdout
    assert run(environment, "models", "add", file).stdout.startswith("cars@1: ")
    assert run(environment, "models", "add", file, "--name", "cars").stdout.startswith("cars@1: "), "the same again"
    assert "project 7 uses cars@1" in run(environment, "models", "use", "7", "cars").stdout
    assert re.search(r"cars@1.*3: car, dog, cat.*7", run(environment, "models", "list").stdout)
    assert "sha256:" in run(environment, "models", "show", "cars").stdout
    refused = run(environment, "models", "remove", "cars")
    assert refused.returncode == 1
    assert "serves project 7" in refused.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models", "add", "missing.onnx"], "no file"),
        (["models", "add"], "Give an ONNX file"),
        (["models", "use", "7", "nothing"], "Add one: labelloop models add"),
        (["models", "show", "a@b"], "NAME@VERSION"),
        (["serve", "--model", "missing.onnx"], "no file missing.onnx"),
        (["serve", "--models", "missing"], "no folder"),
        (["serve", "--device", "tpu"], "cuda:0"),
    ],
)
def test_errors_say_the_next_step_without_a_traceback(
    environment: dict[str, str], tmp_path: Path, arguments: list[str], words: str
) -> None:
    done = run(environment, *arguments)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ML_BACKEND_ADDR", "localhost:x", "ML_BACKEND_ADDR cannot be used: 'localhost:x'"),
        ("LABELLOOP_HOME", "a-file/below", "Set LABELLOOP_HOME"),
        ("LABELLOOP_ARTIFACTS_URL", "nothing://x", "Check LABELLOOP_ARTIFACTS_URL"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(
    environment: dict[str, str], tmp_path: Path, variable: str, value: str, words: str
) -> None:
    (tmp_path / "a-file").write_text("")
    value = str(tmp_path / value) if variable == "LABELLOOP_HOME" else value
    done = run(environment | {variable: value}, "models", "list")
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_says_so_before_anything_is_loaded(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        taken = run(environment, "serve", "--port", port, "--model", "missing.onnx")
    elsewhere = run(environment, "serve", "--host", "192.0.2.1", "--port", "0")
    nowhere = run(environment, "serve", "--host", "no..name")
    for done, words, step in [
        (taken, f"Port {port} on 127.0.0.1 is not free", "another port, for instance --port 9191"),
        (elsewhere, "does not have the address 192.0.2.1", "0.0.0.0 for all of its addresses"),
        (nowhere, "The host no..name to listen on is not known", "127.0.0.1 for this machine alone"),
    ]:
        assert done.returncode == 1
        assert words in done.stderr
        assert step in done.stderr
        assert "Traceback" not in done.stderr


def test_a_word_that_other_programs_use_is_no_setting(environment: dict[str, str], tmp_path: Path) -> None:
    environment |= {"port": "1", "host": "nowhere.invalid", "LOG_LEVEL": "DEBUG", "LABELLOOP_PORT": "0"}
    with serving(environment, "--model", str(detector(tmp_path / "cars.onnx")), cwd=tmp_path) as (url, _):
        assert boxes(url, 1)[0].startswith("cars@1.")


def test_a_model_whose_stored_file_is_lost_can_be_added_again(environment: dict[str, str], tmp_path: Path) -> None:
    file = detector(tmp_path / "my cars.onnx")
    assert run(environment, "models", "add", file).stdout.startswith("my-cars@1: ")
    (stored,) = (tmp_path / "home" / "models").rglob("*.onnx")
    stored.unlink()
    assert run(environment, "models", "add", file).stdout.startswith("my-cars@1: ")
    assert stored.read_bytes() == file.read_bytes()


def test_a_bad_file_in_a_folder_does_not_stop_the_good_ones(environment: dict[str, str], tmp_path: Path) -> None:
    folder = tmp_path / "files"
    detector(folder / "good.onnx")
    (folder / "bad.onnx").write_bytes(b"not a model")
    with serving(environment, "--models", str(folder), "--port", "0", cwd=tmp_path) as (url, _):
        assert boxes(url, 1)[0].startswith("good@1.")


def test_a_rollback_and_its_history(environment: dict[str, str], tmp_path: Path) -> None:
    for name in ("cars", "better"):
        run(environment, "models", "add", detector(tmp_path / f"{name}.onnx"))
        assert run(environment, "models", "use", "7", name).returncode == 0
    assert run(environment, "models", "rollback", "7").stdout == "project 7 uses cars@1 again, instead of better@1\n"
    nothing = run(environment, "models", "rollback", "7")
    assert (nothing.returncode, nothing.stdout) == (1, "")
    assert nothing.stderr.startswith("Project 7 has used nothing before cars@1 that is still there.\nChoose one: ")
    shown = run(environment | {"COLUMNS": "150"}, "models", "history", "7").stdout
    assert re.search(r"better@1 +│ cars@1 +│.*rolled back.*\n.*cars@1 +│ better +│", shown)
    assert "Nothing changed yet" in run(environment, "models", "history", "8").stdout


def test_a_trained_version_shows_where_it_comes_from(environment: dict[str, str], tmp_path: Path) -> None:
    run(environment, "models", "add", detector(tmp_path / "cars.onnx"))
    settings = read_settings(home=Path(environment["LABELLOOP_HOME"]))
    lineage = Lineage(
        "cars", 1, 7, "base@1", "ab" * 32, "head", 60.0, "ada", now(), verdict={"sentence": "AP50 0.9: promoted"}
    )
    Lineages(open_database(settings)).record(lineage)
    shown = run(environment, "models", "show", "cars").stdout
    assert shown.startswith(
        "# cars@1\n# trained from base@1 by head in 60 s for project 7, asked for by ada\n"
        f"# data set {'ab' * 32}\n# AP50 0.9: promoted\n"
    )
    assert msgspec.yaml.decode(shown)["name"] == "cars", "still a card"

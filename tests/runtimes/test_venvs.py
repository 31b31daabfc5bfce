"""Runtimes are made from a package built here, so no index is asked; the environment and pip are real."""

from __future__ import annotations

import base64
import hashlib
import json
import sys
import zipfile
from pathlib import Path

import pytest

from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes import venvs


def build_wheel(folder: Path, version: str) -> None:
    """A wheel of one module, `tinything`, with the RECORD that pip checks."""
    info = f"tinything-{version}.dist-info"
    files = {
        "tinything.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: tinything\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: labelloop-tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    digests = {
        name: base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        for name, text in files.items()
    }
    files[f"{info}/RECORD"] = (
        "".join(f"{name},sha256={digests[name]},{len(files[name])}\n" for name in digests) + f"{info}/RECORD,,\n"
    )
    with zipfile.ZipFile(folder / f"tinything-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder, with `tiny` as the only runtime and a folder of wheels as the only index."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    build_wheel(wheels, "1.0")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("1.0")})
    return tmp_path / "home"


def tiny(version: str, *, disk_bytes: int = 1) -> venvs.Spec:
    return venvs.Spec((f"tinything=={version}",), ("tinything",), disk_bytes, "for this test")


@pytest.mark.slow
def test_life_of_a_runtime(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    assert venvs.look(home, "tiny").state == "missing"

    made = venvs.create(home, "tiny", progress=told.append)
    assert (made.state, venvs.look(home, "tiny").state) == ("ready", "ready")
    assert told[-1] == "tiny: ready"

    told.clear()
    venvs.create(home, "tiny", progress=told.append)
    assert told == [], "a runtime that is there is not made again"

    (made.path / venvs.MARKER).unlink()
    assert venvs.look(home, "tiny").state == "incomplete"
    assert venvs.check(home, "tiny").state == "ready", "made by hand: accepted after it was verified"
    assert venvs.look(home, "tiny").state == "ready"

    module = next(made.path.rglob("tinything.py"))
    module.unlink()
    assert venvs.check(home, "tiny").state == "incomplete", "pip was killed while it unpacked"
    (made.path / venvs.MARKER).unlink()
    venvs.create(home, "tiny", progress=told.append)
    assert module.exists()
    assert told[0] == "tiny: removing what is there (incomplete)"

    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("2.0")})
    build_wheel(tmp_path / "wheels", "2.0")
    assert venvs.look(home, "tiny").state == "outdated"
    assert venvs.create(home, "tiny", progress=told.append).state == "ready"
    assert "2.0" in module.read_text()

    assert venvs.remove(home, "tiny")
    assert not made.path.exists()
    assert not venvs.remove(home, "tiny")


@pytest.mark.slow
def test_pip_failing_shows_its_last_lines_and_the_log(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("9.9")})
    with pytest.raises(RuntimeSetupError, match=r"tinything==9\.9") as caught:
        venvs.create(home, "tiny", progress=lambda _: None)
    assert str(home / "runtimes" / "tiny.log") in caught.value.message
    assert "PIP_INDEX_URL" in caught.value.hint
    assert venvs.look(home, "tiny").state == "incomplete"


def test_too_small_a_disk_is_told_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("1.0", disk_bytes=10**18)})
    with pytest.raises(RuntimeSetupError, match=r"needs 1000000000\.0 GB"):
        venvs.create(home, "tiny", progress=lambda _: None)
    assert venvs.look(home, "tiny").state == "missing"


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "python3-venv"),
        ("WARNING: Retrying after connection broken by NewConnectionError(", "network"),
        ("error: subprocess-exited-with-error", "half made is made anew"),
    ],
    ids=["disk full", "no ensurepip", "no network", "anything else"],
)
def test_a_failed_step_says_what_to_do(home: Path, line: str, hint: str) -> None:
    runtime = venvs.look(home, "tiny")
    log = runtime.path.with_suffix(".log")
    log.parent.mkdir(parents=True)
    with pytest.raises(RuntimeSetupError) as caught:
        venvs._run(
            [sys.executable, "-c", f"import sys; sys.exit({line!r})"], log=log, runtime=runtime, progress=lambda _: None
        )
    assert line in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "marker", ["", "{", json.dumps({"requirements": ["tinything==0.9"]})], ids=["empty", "cut short", "older"]
)
def test_a_marker_that_does_not_fit_is_not_ready(home: Path, marker: str) -> None:
    folder = home / "runtimes" / "tiny"
    folder.mkdir(parents=True)
    (folder / venvs.MARKER).write_text(marker)
    assert venvs.look(home, "tiny").state != "ready"
    assert venvs.check(home, "tiny").state != "ready"


def test_an_unknown_runtime_names_the_known_ones(home: Path) -> None:
    with pytest.raises(RuntimeSetupError, match="Known: tiny"):
        venvs.look(home, "tyni")


def test_the_table_has_label_studio_pinned_exactly() -> None:
    assert all("==" in pin for spec in venvs.RUNTIMES.values() for pin in spec.requirements)
    assert venvs.RUNTIMES["label-studio"].requirements == ("label-studio==1.23.2",)

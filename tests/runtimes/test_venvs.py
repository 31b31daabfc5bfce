"""Runtimes are made from a package built here, so no index is asked; the environment and pip are real."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes import venvs
from labelloop.runtimes.source import Build, can_compile_cuda, has_gpu, has_wheel, is_for_cuda
from labelloop.runtimes.source import build_wheel as build_wheel_of


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


def test_a_python_that_is_too_new_is_told_or_an_older_one_taken(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NumPy before 2 would be compiled there, in vain."""
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("1.0")._replace(newest_python=(3, 10))})
    with pytest.raises(RuntimeSetupError, match=rf"not there for Python 3\.{sys.version_info.minor}"):
        venvs.create(home, "tiny", progress=lambda _: None)
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("1.0")._replace(newest_python=(3, 11))})
    runtime = venvs.look(home, "tiny")
    monkeypatch.setattr(sys, "version_info", (3, 13, 0, "final", 0))
    programs(tmp_path / "bin", monkeypatch, **{"python3.11": "#!/bin/sh\nexit 0\n"})
    assert venvs._interpreter(runtime) == str(tmp_path / "bin" / "python3.11")
    programs(tmp_path / "broken", monkeypatch, **{"python3.11": "#!/bin/sh\nexit 1\n"})
    monkeypatch.setenv("PATH", str(tmp_path / "broken"))
    with pytest.raises(RuntimeSetupError, match=r"not there for Python 3\.13") as caught:
        venvs._interpreter(runtime)
    assert "python3.11" in caught.value.hint


def test_too_small_a_disk_is_told_before_anything_is_made(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": tiny("1.0", disk_bytes=10**18)})
    with pytest.raises(RuntimeSetupError, match=r"needs 1000000000\.0 GB"):
        venvs.create(home, "tiny", progress=lambda _: None)
    assert venvs.look(home, "tiny").state == "missing"


@pytest.mark.parametrize("gpu", [True, False], ids=["GPU", "no GPU"])
def test_cudas_libraries_need_room_where_there_is_a_gpu(
    home: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gpu: bool
) -> None:
    programs(tmp_path / "bin", monkeypatch, nvidia_smi=LISTS if gpu else "#!/bin/sh\nexit 9\n")
    spec = tiny("no version", disk_bytes=10**18)._replace(on_gpu=ON_GPU, cuda_disk_bytes=2 * 10**18)
    monkeypatch.setattr(venvs, "RUNTIMES", {"tiny": spec})
    with pytest.raises(RuntimeSetupError, match=rf"needs {2 if gpu else 1}000000000\.0 GB"):
        venvs.create(home, "tiny", progress=lambda _: None)


ON_GPU = "import tinything; print('it is for the CPU')"

SETUP = """\
import pathlib, shutil, sys, zipfile
from setuptools import Command, setup


class Wheel(Command):
    user_options = [("dist-dir=", "d", "")]

    def initialize_options(self):
        self.dist_dir = None

    def finalize_options(self):
        pass

    def egg2dist(self, egg_info, dist_info):  # what `pip download` asks of it
        pathlib.Path(dist_info).mkdir()
        shutil.copy(pathlib.Path(egg_info) / "PKG-INFO", pathlib.Path(dist_info) / "METADATA")

    def run(self):
        tries = pathlib.Path("tries")
        tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
        print("[10/20] compiling", flush=True)
        if len(tries.read_text()) == 1:
            sys.exit("the compiler was killed")
        folder = pathlib.Path(self.dist_dir)
        folder.mkdir(parents=True, exist_ok=True)
        info = "tinybuilt-1.0.dist-info"
        files = {
            "tinybuilt.py": "SAID = 'old'",
            f"{info}/METADATA": "Metadata-Version: 2.1\\nName: tinybuilt\\nVersion: 1.0\\n",
            f"{info}/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
        }
        files[f"{info}/RECORD"] = "".join(f"{name},,\\n" for name in [*files, f"{info}/RECORD"])
        with zipfile.ZipFile(folder / "tinybuilt-1.0-py3-none-any.whl", "w") as wheel:
            for name, text in files.items():
                wheel.writestr(name, text)


setup(name="tinybuilt", version="1.0", cmdclass={"bdist_wheel": Wheel})
"""


LISTS = "#!/bin/sh\necho 'GPU 0: a card (UUID: GPU-0)'\n"
"""What NVIDIA's tool prints where there is a GPU."""


def programs(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Programs that come first on the path; "_" stands for "-"."""
    folder.mkdir()
    for name, text in scripts.items():
        path = folder / name.replace("_", "-")
        path.write_text(text)
        path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_HOME", str(folder / "nowhere"))


@pytest.mark.parametrize(
    ("tool", "found"),
    [(LISTS, True), ("#!/bin/sh\necho 'No devices were found'\n", False), ("#!/bin/sh\nexit 9\n", False), ("no program", False)],
    ids=["one", "none", "no driver", "no tool that runs"],
)  # fmt: skip
def test_a_gpu_is_what_nvidias_tool_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool: str, found: bool
) -> None:
    programs(tmp_path / "bin", monkeypatch, nvidia_smi=tool, nvcc=LISTS)
    assert has_gpu() is found
    assert can_compile_cuda() is found


@pytest.mark.parametrize(
    ("compiler", "said", "built_for_cuda"),
    [("nvcc", None, True), ("other", None, False), ("nvcc", "0", False), ("other", "1", True)],
    ids=["a compiler", "none", "somebody wants it for the CPU", "somebody wants it for CUDA"],
)
def test_mmcv_is_built_for_cuda_where_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str, said: str | None, built_for_cuda: bool
) -> None:
    if compiler == "other" and shutil.which("nvcc"):
        pytest.skip("there is a CUDA compiler here")
    programs(tmp_path / "bin", monkeypatch, nvidia_smi=LISTS, **{compiler: LISTS})
    monkeypatch.delenv("FORCE_CUDA", raising=False)
    if said is not None:
        monkeypatch.setenv("FORCE_CUDA", said)
    (build,) = (step for step in venvs.RUNTIMES["openmmlab"].steps if isinstance(step, Build))
    assert is_for_cuda(build) is built_for_cuda


@pytest.mark.slow
def test_a_package_without_a_wheel_is_built_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut short it goes on where it was, and what it built outlives the runtime; what it built for CUDA lies apart. Where
    there is a GPU it is told why it would not be used."""
    programs(tmp_path / "bin", monkeypatch, nvidia_smi=LISTS, nvcc=LISTS)
    with tarfile.open(tmp_path / "wheels" / "tinybuilt-1.0.tar.gz", "w:gz") as archive:
        info = "Metadata-Version: 2.1\nName: tinybuilt\nVersion: 1.0\n"
        for name, text in {"setup.py": SETUP, "PKG-INFO": info}.items():
            entry = tarfile.TarInfo(f"tinybuilt-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    build = Build(
        "tinybuilt==1.0", replaced=(("setup.py", "SAID = 'old'", "SAID = 'new'"),), gpu=("TINY_CUDA", "1", "0")
    )
    steps = (("tinything==1.0",), build, ("--no-deps", "--only-binary", "tinybuilt", "tinybuilt==1.0"))
    pins = ("tinything==1.0", "tinybuilt==1.0")
    monkeypatch.setattr(
        venvs, "RUNTIMES", {"tiny": venvs.Spec(pins, ("tinybuilt",), 1, "for this test", steps, ON_GPU)}
    )
    told: list[str] = []
    with pytest.raises(RuntimeSetupError, match="the compiler was killed") as caught:
        venvs.create(home, "tiny", progress=told.append)
    assert "TINY_CUDA=0 labelloop runtimes create tiny" in caught.value.hint
    assert "tiny: compiled 10 of 20 files" in told
    assert told.count("tiny: it is for the CPU") == 1
    told.clear()
    made = venvs.create(home, "tiny", progress=told.append)
    assert told[0].startswith("tiny: going on with")
    assert "new" in next(made.path.rglob("tinybuilt.py")).read_text()
    assert venvs.remarks(made) == ["it is for the CPU"]
    monkeypatch.setenv("PATH", os.defpath)
    assert venvs.remarks(made) == [] or has_gpu()
    assert venvs.remove(home, "tiny")
    assert has_wheel(build, home / "runtimes" / "tiny.built-cuda" / "wheels"), "it need not be built again"


def test_mmcv_is_built_from_changed_source_where_no_wheel_is_given(tmp_path: Path) -> None:
    (build,) = (step for step in venvs.RUNTIMES["openmmlab"].steps if isinstance(step, Build))
    ran: list[tuple[list[str], dict[str, str]]] = []

    def run(argv: Sequence[str], environment: Mapping[str, str], cwd: Path | None) -> None:
        ran.append((list(argv), dict(environment)))
        if "download" in argv:
            written = tmp_path / "mmcv-2.0.1"
            for file, old, _ in build.replaced:
                (written / file).parent.mkdir(parents=True, exist_ok=True)
                (written / file).write_text(f"before {old} behind")
            (tmp_path / "archives").mkdir()
            with tarfile.open(tmp_path / "archives" / "mmcv-2.0.1.tar.gz", "w:gz") as archive:
                archive.add(written, "mmcv-2.0.1")
            shutil.rmtree(written)
        elif "setup.py" in argv:
            assert cwd is not None
            assert "-std=c++17" in (cwd / "setup.py").read_text()
            helper = cwd / "mmcv/ops/csrc/common/pytorch_cuda_helper.hpp"
            assert helper.read_text() == "before <ATen/cuda/Atomic.cuh> behind"
            (tmp_path / "wheels").mkdir()
            (tmp_path / "wheels" / f"mmcv-2.0.1-cp3{sys.version_info.minor}-linux.whl").touch()

    wheels = build_wheel_of(build, python=Path("python"), folder=tmp_path, run=run)
    tools, download, built = ran
    assert tools[0][-3:] == ["setuptools<75", "wheel", "ninja"]
    assert download[0][-1] == "mmcv==2.0.1"
    assert {"--no-deps", "--no-build-isolation", "--no-binary"} <= set(download[0])
    assert built == (
        ["python", "setup.py", "bdist_wheel", "-d", str(wheels)],
        {"MMCV_WITH_OPS": "1", "FORCE_CUDA": "1" if can_compile_cuda() else "0"},
    )


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("The virtual environment was not created successfully because ensurepip is not available.", "python3-venv"),
        ("WARNING: Retrying after connection broken by NewConnectionError(", "network"),
        ("error: subprocess-exited-with-error", "goes on where it was"),
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

"""Wheels of packages that have none: built once from source, and kept."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes.processes import inherited_environment

Release = tuple[int, int]
"""(3, 11) of a Python."""

ASKING_S = 20.0

Run = Callable[[Sequence[str], Mapping[str, str], Path | None], None]
"""Runs a program with variables beside ours, in a folder; its output goes to the runtime's log."""


class Build(NamedTuple):
    """A package to build where nobody gives its wheel. `tools` are installed for it, `replaced` texts in its files,
    `environment` variables that the build reads. `gpu` is a variable with its values where CUDA is to be compiled for
    and where not; who sets it has decided. `minutes` is what it takes on one core, for people."""

    requirement: str
    tools: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    gpu: tuple[str, str, str] | None = None
    minutes: int = 1

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]


def has_wheel(build: Build, *folders: Path | None, python: Release | None = None) -> bool:
    """Whether one of the folders has a wheel of this version for a Python, ours by default."""
    name, (major, minor) = build.requirement.replace("==", "-"), python or sys.version_info[:2]
    patterns = [f"{name}-{tag}-*.whl" for tag in (f"cp{major}{minor}", "py3")]
    return any(folder is not None and any(folder.glob(one)) for folder in folders for one in patterns)


def build_wheel(build: Build, *, python: Path, folder: Path, run: Run, release: Release | None = None) -> Path:
    """The folder below `folder` with the wheel, built by `python`, which is of this release. The source that an
    earlier attempt left is used. Raises RuntimeSetupError."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    wheels = folder / "wheels"
    if build.tools:
        run([*pip, "install", "--progress-bar", "off", *build.tools], {}, None)
    source = _source(build, pip, folder, run)
    run([str(python), "setup.py", "bdist_wheel", "-d", str(wheels)], _environment(build), source)
    if not has_wheel(build, wheels, python=release):
        raise RuntimeSetupError(f"{source} was built and left no wheel of {build.requirement} in {wheels}.")
    return wheels


def _source(build: Build, pip: Sequence[str], folder: Path, run: Run) -> Path:
    """The package's source with our changes in it."""
    source = folder / build.requirement.replace("==", "-")
    if source.is_dir():
        return source
    archives = folder / "archives"
    options = ["--no-deps", "--no-build-isolation", "--no-binary", build.package, "-d", str(archives)]
    run([*pip, "download", *options, build.requirement], {}, None)
    archive = next(archives.glob(f"{build.package}-*.tar.gz"), None)
    if archive is None:
        raise RuntimeSetupError(f"The index has no source of {build.requirement}.", hint="Give a wheel: --find-links")
    part = folder / "part"
    shutil.rmtree(part, ignore_errors=True)
    with tarfile.open(archive) as opened:
        opened.extractall(part, filter="data")
    (found,) = part.iterdir()
    for file, old, new in build.replaced:
        _change(found / file, old, new)
    found.rename(source)  # in one step: a source without our changes is never built
    return source


def _change(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    if old not in text:
        raise RuntimeSetupError(f"{path} has no {old!r} any more, which must be {new!r}.")
    path.write_text(text.replace(old, new), encoding="utf-8")


def _environment(build: Build) -> dict[str, str]:
    variables = dict(build.environment)
    if build.gpu is not None:
        name, with_gpu, without = build.gpu
        variables[name] = with_gpu if is_for_cuda(build) else without
    return variables


def is_for_cuda(build: Build) -> bool:
    """Whether it is to be built for the GPU: as its variable says, else where there is one and a compiler for it."""
    if build.gpu is None:
        return False
    name, with_gpu, _ = build.gpu
    said = inherited_environment().get(name)
    return can_compile_cuda() if said is None else said == with_gpu


def can_compile_cuda() -> bool:
    """Whether there is a GPU here and a CUDA compiler."""
    home = inherited_environment().get("CUDA_HOME", "/usr/local/cuda")
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    return compiler is not None and has_gpu()


def has_gpu() -> bool:
    """Whether there is a GPU of NVIDIA's here: its tool lists it. Where that is missing, whether its driver is loaded,
    which alone would also be so in a container that was given no GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return Path("/proc/driver/nvidia/version").exists()
    try:
        listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False, timeout=ASKING_S)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU" in listed.stdout


def worth_telling(line: str) -> str:
    """Every tenth file that ninja has compiled: [30/94]."""
    found = re.match(r"\[(\d+)/(\d+)\]", line)
    return f"compiled {found[1]} of {found[2]} files" if found and int(found[1]) % 10 == 0 else ""

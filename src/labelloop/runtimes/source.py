"""Wheels of packages that have none: built once from source, kept, and gone on with where it was interrupted."""

from __future__ import annotations

import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes.processes import inherited_environment

Run = Callable[[Sequence[str], Mapping[str, str], Path | None], None]
"""Runs a program with variables beside ours, in a folder; its output goes to the runtime's log."""


class Build(NamedTuple):
    """A package to build where nobody gives its wheel. `tools` are installed for it, `replaced` texts in its setup.py,
    `environment` variables that the build reads. `gpu` is a variable with its values where CUDA can be compiled for and
    where not. `minutes` is what it takes on one core, for people."""

    requirement: str
    tools: tuple[str, ...] = ()
    replaced: tuple[tuple[str, str], ...] = ()
    environment: tuple[tuple[str, str], ...] = ()
    gpu: tuple[str, str, str] | None = None
    minutes: int = 1

    @property
    def package(self) -> str:
        return self.requirement.partition("==")[0]


def has_wheel(build: Build, *folders: Path | None) -> bool:
    """Whether one of the folders has a wheel of this version for our Python, which is the runtime's too."""
    name, ours = build.requirement.replace("==", "-"), f"cp{sys.version_info.major}{sys.version_info.minor}"
    patterns = [f"{name}-{tag}-*.whl" for tag in (ours, "py3")]
    return any(folder is not None and any(folder.glob(one)) for folder in folders for one in patterns)


def build_wheel(build: Build, *, python: Path, folder: Path, run: Run) -> Path:
    """The folder below `folder` with the wheel, built by `python`. What is there of an earlier attempt is used: the
    source, and with ninja every file that it had compiled. Raises RuntimeSetupError."""
    pip = [str(python), "-m", "pip", "--disable-pip-version-check"]
    wheels = folder / "wheels"
    if build.tools:
        run([*pip, "install", "--progress-bar", "off", *build.tools], {}, None)
    source = _source(build, pip, folder, run)
    run([str(python), "setup.py", "bdist_wheel", "-d", str(wheels)], _environment(build), source)
    if not has_wheel(build, wheels):
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
    _change(found / "setup.py", build.replaced)
    found.rename(source)  # in one step: a source without our changes is never built
    return source


def _change(path: Path, replaced: Sequence[tuple[str, str]]) -> None:
    text = path.read_text(encoding="utf-8")
    for old, new in replaced:
        if old not in text:
            raise RuntimeSetupError(f"{path} has no {old!r} any more, which must be {new!r}.")
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


def _environment(build: Build) -> dict[str, str]:
    variables = dict(build.environment)
    if build.gpu is not None:
        name, with_gpu, without = build.gpu
        variables[name] = with_gpu if can_compile_cuda() else without
    return variables


def can_compile_cuda() -> bool:
    """Whether there is a GPU here (its driver says so) and a CUDA compiler."""
    home = inherited_environment().get("CUDA_HOME", "/usr/local/cuda")
    compiler = shutil.which("nvcc") or shutil.which("nvcc", path=f"{home}/bin")
    return compiler is not None and Path("/proc/driver/nvidia/version").exists()


def worth_telling(line: str) -> str:
    """Every tenth file that ninja has compiled: [30/94]."""
    found = re.match(r"\[(\d+)/(\d+)\]", line)
    return f"compiled {found[1]} of {found[2]} files" if found and int(found[1]) % 10 == 0 else ""

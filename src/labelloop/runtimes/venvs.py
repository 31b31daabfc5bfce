"""Isolated interpreters: programs whose pins would poison ours live in a virtual environment of their own.

A runtime lies in `HOME/runtimes/NAME`. `runtime.json` in it is written last and says what was installed, so a folder
without it is half made, or made by somebody else's hand: it is verified once, and made anew if it does not pass.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes import openmmlab, source
from labelloop.runtimes.processes import inherited_environment, tail
from labelloop.runtimes.source import Build, Release

Progress = Callable[[str], None]
State = Literal["missing", "incomplete", "outdated", "ready"]

MARKER = "runtime.json"
DONE = "steps.json"
"""In a runtime that is being made: the steps that are done, so that the next attempt goes on behind them."""

Step = tuple[str, ...] | Build


class Spec(NamedTuple):
    """One row of the table. `requirements` are exact pins; `imports` must succeed for the runtime to count as made.

    `steps` are arguments of `pip install`, and packages to build, in order, where one call cannot do it. `on_gpu` is
    Python that prints why a GPU would not be used, `newest_python` the last release that all of it is there for.
    `disk_bytes` is what it needs on the CPU, `cuda_disk_bytes` with CUDA's libraries, which some indexes give to all.
    """

    requirements: tuple[str, ...]
    imports: tuple[str, ...]
    disk_bytes: int
    purpose: str
    steps: tuple[Step, ...] = ()
    on_gpu: str = ""
    newest_python: Release | None = None
    cuda_disk_bytes: int = 0

    @property
    def most_disk_bytes(self) -> int:
        return max(self.disk_bytes, self.cuda_disk_bytes)


class Runtime(NamedTuple):
    """What is on the disk for one row of the table."""

    name: str
    path: Path
    state: State
    spec: Spec

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"


RUNTIMES = {
    "label-studio": Spec(
        requirements=("label-studio==1.23.2",),
        imports=("label_studio", "django"),
        disk_bytes=1_200_000_000,  # 994 MB installed, and the wheel that is being unpacked
        purpose="Label Studio, for the demo and the end-to-end tests",
    ),
    "openmmlab": Spec(
        requirements=openmmlab.REQUIREMENTS,
        imports=openmmlab.IMPORTS,
        disk_bytes=2_500_000_000,  # 1.5 GB installed
        cuda_disk_bytes=7_000_000_000,  # 5.3 GB installed
        purpose="MMDetection, MMYOLO and MMOCR",
        steps=openmmlab.STEPS,
        on_gpu=openmmlab.ON_GPU,
        newest_python=openmmlab.NEWEST_PYTHON,
    ),
}
"""Every runtime labelloop knows how to make."""

_VERIFY = """\
import importlib, importlib.metadata, sys
pins, imports = sys.argv[1].split(","), sys.argv[2].split(",")
for pin in pins:
    name, _, wanted = pin.partition("==")
    package = importlib.metadata.distribution(name)
    if package.version.partition("+")[0] != wanted:  # torch 2.13.0+cpu is torch 2.13.0
        sys.exit(f"{name} is {package.version}, wanted {wanted}")
    missing = [file for file in package.files or () if not file.locate().exists()]
    if missing:
        sys.exit(f"{name} lacks {len(missing)} files, for instance {missing[0]}")
for name in imports:
    importlib.import_module(name)
"""
"""pip installs dependencies first, so complete pinned packages mean that everything below them is complete too."""


def spec_of(name: str) -> Spec:
    """Raises RuntimeSetupError with the known names when there is no such runtime."""
    if name not in RUNTIMES:
        raise RuntimeSetupError(f"There is no runtime called {name!r}.", hint=f"Known: {', '.join(sorted(RUNTIMES))}.")
    return RUNTIMES[name]


def look(home: Path, name: str) -> Runtime:
    """State of one runtime by its marker alone: no process is started, a folder without one is "incomplete"."""
    spec = spec_of(name)
    path = home / "runtimes" / name
    return Runtime(name, path, _state(path, spec), spec)


def list_runtimes(home: Path) -> list[Runtime]:
    """One row for each known runtime, by name."""
    return [look(home, name) for name in sorted(RUNTIMES)]


def check(home: Path, name: str) -> Runtime:
    """State of one runtime after asking its interpreter; writes the marker when a folder without one passes.

    So an environment made by hand with `python -m venv` and pip is as good as one of ours.
    """
    runtime = look(home, name)
    if runtime.state == "missing":
        return runtime
    if _complaint(runtime):
        return runtime._replace(state="outdated" if runtime.state == "outdated" else "incomplete")
    if runtime.state != "ready":
        _write_marker(runtime)
    return runtime._replace(state="ready")


def remarks(runtime: Runtime) -> list[str]:
    """Why it would not use the GPU that is here; nothing where there is none, or where it would."""
    if not runtime.spec.on_gpu or not source.has_gpu():
        return []
    asked = [str(runtime.python), "-c", runtime.spec.on_gpu]
    done = subprocess.run(asked, env=_pip_environment(), capture_output=True, text=True, check=False)
    return done.stdout.splitlines()


def create(
    home: Path, name: str, *, progress: Progress, fresh: bool = False, find_links: Path | None = None
) -> Runtime:
    """Make a runtime, or return the one that is there; `fresh` makes it anew in any case. `find_links` is a folder of
    wheels that pip looks into first. One that was cut short goes on where it was.

    Two processes may call this at a time: the second waits and finds it made. Raises RuntimeSetupError with the last
    lines of pip's log and its path.
    """
    with locked(home / "runtimes" / f"{name}.lock"):
        runtime = look(home, name)
        if runtime.state != "ready" and not fresh:
            runtime = check(home, name)
        if runtime.state == "ready" and not fresh:
            return runtime
        if runtime.state != "missing" and (fresh or not _half_made(runtime)):
            progress(f"{name}: removing what is there ({runtime.state})")
            shutil.rmtree(runtime.path)
        _make(runtime, progress, find_links)
        return runtime._replace(state="ready")


def remove(home: Path, name: str) -> bool:
    """Delete a runtime; false when there was none."""
    runtime = look(home, name)
    with locked(home / "runtimes" / f"{name}.lock"):
        if not runtime.path.exists():
            return False
        # The marker goes first: a deletion that is cut short leaves "incomplete", never "ready".
        (runtime.path / MARKER).unlink(missing_ok=True)
        shutil.rmtree(runtime.path)
    return True


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel releases it when the holder dies.

    Raises BlockingIOError when somebody else holds it and `wait` is false.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _state(path: Path, spec: Spec) -> State:
    if not path.exists():
        return "missing"
    try:
        marker = json.loads((path / MARKER).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return "incomplete"
    return "ready" if marker.get("requirements") == list(spec.requirements) else "outdated"


def _write_marker(runtime: Runtime) -> None:
    marker = runtime.path / MARKER
    partial = marker.with_suffix(".partial")
    partial.write_text(json.dumps({"name": runtime.name, "requirements": list(runtime.spec.requirements)}) + "\n")
    partial.replace(marker)


def _complaint(runtime: Runtime) -> str:
    """What the runtime's interpreter finds wrong with it; empty when it is all there."""
    arguments = [",".join(runtime.spec.requirements), ",".join(runtime.spec.imports)]
    try:
        done = subprocess.run(
            [runtime.python, "-c", _VERIFY, *arguments],
            env=_pip_environment(),
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as error:  # no interpreter, or one that cannot be run
        return str(error)
    lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
    return lines[-1] if done.returncode else ""


def _half_made(runtime: Runtime) -> bool:
    """Whether we were cut short while making it, as it is wanted now."""
    return runtime.state == "incomplete" and 0 < _done(runtime) < len(_steps(runtime.spec))


def _steps(spec: Spec) -> tuple[Step, ...]:
    return spec.steps or (spec.requirements,)


def _done(runtime: Runtime) -> int:
    """How many steps were done by an earlier attempt; 0 when those were other steps."""
    try:
        done = json.loads((runtime.path / DONE).read_text())
    except (OSError, json.JSONDecodeError):
        return 0
    return len(done) if done == _plain(_steps(runtime.spec))[: len(done)] else 0


def _plain(steps: Sequence[Step]) -> list[list[object]]:
    """As JSON gives them back."""
    plain: list[list[object]] = json.loads(json.dumps(steps))
    return plain


def _make(runtime: Runtime, progress: Progress, find_links: Path | None) -> None:
    log, done, steps = runtime.path.parent / f"{runtime.name}.log", _done(runtime), _steps(runtime.spec)
    if not done:
        log.unlink(missing_ok=True)
        _require_space(runtime)
        python = _interpreter(runtime)
        progress(f"{runtime.name}: making a virtual environment in {runtime.path}")
        _run([python, "-m", "venv", str(runtime.path)], log=log, runtime=runtime, progress=progress)
    doing = "going on with" if done else "installing"
    progress(f"{runtime.name}: {doing} {', '.join(runtime.spec.requirements)} (some minutes; log: {log})")
    pip = [str(runtime.python), "-m", "pip", "install", "--progress-bar", "off", "--disable-pip-version-check"]
    links = [find_links.resolve()] if find_links is not None else []
    told: set[str] = set()
    for number, step in enumerate(steps):
        if isinstance(step, Build):
            links += _built(step, runtime, links, log=log, progress=progress)
        elif number >= done:
            given = [word for folder in links for word in ("--find-links", str(folder))]
            _run([*pip, *given, *step], log=log, runtime=runtime, progress=progress)
        (runtime.path / DONE).write_text(json.dumps(_plain(steps[: max(done, number + 1)])))
        for remark in remarks(runtime):  # the first of them before something is built for an hour
            if remark not in told:
                progress(f"{runtime.name}: {remark}")
                told.add(remark)
    if complaint := _complaint(runtime):
        raise RuntimeSetupError(
            f"The runtime {runtime.name} was installed and does not work: {complaint}.", hint=f"pip's log: {log}."
        )
    _write_marker(runtime)
    progress(f"{runtime.name}: ready")


def _interpreter(runtime: Runtime) -> str:
    """What makes the environment: our own Python, or the newest here that is not too new. Raises RuntimeSetupError."""
    ours, newest = sys.version_info[:2], runtime.spec.newest_python
    if newest is None or ours <= newest:
        return str(getattr(sys, "_base_executable", sys.executable))  # a venv made by a venv would depend on it
    known = [f"python3.{minor}" for minor in range(newest[1], 10, -1)]
    for path in filter(None, map(shutil.which, known)):
        if subprocess.run([path, "-c", "import ensurepip, venv"], capture_output=True, check=False).returncode == 0:
            return path
    raise RuntimeSetupError(
        f"The runtime {runtime.name} is not there for Python {ours[0]}.{ours[1]}, on which labelloop runs.",
        hint=f"Install one of {', '.join(known)} beside it, then run the command again.",
    )


def _release_of(runtime: Runtime) -> Release | None:
    """Of the runtime's Python, as its folder says."""
    found = [re.fullmatch(r"python(\d+)\.(\d+)", path.name) for path in runtime.path.glob("lib/python*")]
    return next(((int(one[1]), int(one[2])) for one in found if one), None)


def _built(build: Build, runtime: Runtime, links: list[Path], *, log: Path, progress: Progress) -> list[Path]:
    """The folder with the wheel that we built, now or earlier; none where one was given. It stays when the runtime is
    removed: it is what takes long."""
    for_cuda = source.is_for_cuda(build)
    folder = runtime.path.parent / f"{runtime.name}.built{'-cuda' if for_cuda else ''}"
    release = _release_of(runtime)
    if source.has_wheel(build, *links, python=release):
        return []
    if not source.has_wheel(build, folder / "wheels", python=release):
        where = "for CUDA and the CPU" if for_cuda else "for the CPU"
        progress(f"{runtime.name}: building {build.requirement} {where}, some {build.minutes} minutes of one core")

        def run(argv: Sequence[str], environment: Mapping[str, str], cwd: Path | None) -> None:
            _run(argv, log=log, runtime=runtime, progress=progress, environment=environment, cwd=cwd)

        try:
            source.build_wheel(build, python=runtime.python, folder=folder, run=run, release=release)
        except RuntimeSetupError as error:
            if not for_cuda or build.gpu is None:
                raise
            name, _, without = build.gpu
            again = f"{name}={without} labelloop runtimes create {runtime.name}"
            hint = f"{error.hint} To build it for the CPU alone: {again}"
            raise RuntimeSetupError(error.message, hint=hint) from error
    return [folder / "wheels"]


def _require_space(runtime: Runtime) -> None:
    folder = runtime.path.parent
    spec, free = runtime.spec, shutil.disk_usage(folder).free
    needed = spec.most_disk_bytes if spec.on_gpu and source.has_gpu() else spec.disk_bytes
    if free < needed:
        raise RuntimeSetupError(
            f"The runtime {runtime.name} needs {needed / 1e9:.1f} GB; {free / 1e9:.1f} GB are free in {folder}.",
            hint="Make room, or put labelloop's data elsewhere with LABELLOOP_HOME.",
        )


def _run(
    argv: Sequence[str],
    *,
    log: Path,
    runtime: Runtime,
    progress: Progress,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> None:
    """Run one step with its output in `log`, telling now and then what it is at."""
    with (
        log.open("a") as file,
        subprocess.Popen(
            argv,
            env=_pip_environment() | dict(environment or {}),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        try:
            for line in process.stdout or ():
                file.write(line)
                if shown := _worth_telling(line):
                    progress(f"{runtime.name}: {shown}")
        except BaseException:  # Ctrl-C, or a full disk under the log: do not leave pip behind
            process.terminate()
            raise
    if process.returncode:
        raise RuntimeSetupError(
            f"The runtime {runtime.name} could not be made; the last lines of {log}:\n{tail(log)}\n",
            hint=_advice(log.read_text(errors="replace"), runtime),
        )


def _worth_telling(line: str) -> str:
    """pip prints hundreds of lines; the big downloads and the last step are what people wait for."""
    if line.startswith("Installing collected packages"):
        return f"unpacking {line.count(',') + 1} packages"
    found = re.match(r"\s*Downloading (\S+?)-[^-\s/]+-\S+ \(([\d.]+ [MG]B)\)", line)
    if found:
        return f"downloading {found[1].rpartition('/')[2]} ({found[2]})"
    return source.worth_telling(line)


def _advice(text: str, runtime: Runtime) -> str:
    if "No space left on device" in text:
        return f"The disk is full: make {runtime.spec.most_disk_bytes / 1e9:.1f} GB of room and run the command again."
    if "ensurepip is not available" in text:
        return "Python's venv module is not installed: on Debian and Ubuntu, apt install python3-venv."
    if re.search(r"NewConnectionError|Temporary failure in name resolution|Could not find a version|ReadTimeout", text):
        return "pip could not reach a package index: check the network, a proxy, or PIP_INDEX_URL, and run it again."
    return "Run the command again when that is mended: it goes on where it was."


def _pip_environment() -> dict[str, str]:
    """Ours without what points Python at somebody else's packages."""
    return inherited_environment(without=("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"))

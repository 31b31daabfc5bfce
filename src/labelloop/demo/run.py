"""The main job in one go: a real Label Studio, labelloop beside it, pictures, and predictions on them."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Literal, NoReturn

import msgspec

from labelloop.core.errors import RuntimeSetupError
from labelloop.core.settings import Settings, read_settings
from labelloop.demo import lesson
from labelloop.demo.backend import serve
from labelloop.demo.check import find_problems
from labelloop.demo.project import attach, ensure_project, picture_tasks, pre_annotate
from labelloop.demo.scenario import Scenario, plan
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.records import Project
from labelloop.runtimes import label_studio, venvs
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.runtimes.processes import has_ended, take_port
from labelloop.serving.models import open_registry
from labelloop.store.registry import Registry

Tell = Callable[[str], None]

LABEL_STUDIO_PORT = 8080
PORT = 9090


class Options(msgspec.Struct, frozen=True):
    """`home` is where runtimes lie, `folder` where this demo keeps its data. A port of None is the usual one, or any
    free one when that is taken."""

    home: Path
    folder: Path
    port: int | None = None
    label_studio_port: int | None = None
    model: Path | None = None
    images: Path | None = None
    labels: str | None = None
    annotator: Literal["simulated", "you"] = "simulated"

    @property
    def teaches(self) -> bool:
        """Whether the learning loop is shown: on pictures of our own, not on the user's."""
        return self.model is None and self.images is None


class Demo(msgspec.Struct, frozen=True):
    """A running demo."""

    label_studio: LabelStudio
    backend_url: str
    backend_pid: int
    registry: Registry
    project: Project
    scenario: Scenario
    version: str
    missing: int
    """Tasks that have no prediction."""


def run(options: Options, *, fresh: bool, tell: Tell) -> None:
    """Start everything, say where to click, and go on until Ctrl-C or SIGTERM; then stop everything."""
    with _one_at_a_time(options.folder), _ends_on_sigterm():
        if fresh:
            shutil.rmtree(options.folder / "data", ignore_errors=True)
        try:
            with running(options, tell=tell) as demo:
                tell(_welcome(demo))
                _go_on(demo, options, tell)
        except KeyboardInterrupt:
            tell("Stopped.")


def check(options: Options, *, tell: Tell) -> bool:
    """Do it all in a folder that is thrown away and on free ports; true when Label Studio has what it should have."""
    with (
        tempfile.TemporaryDirectory(prefix="labelloop-demo-", ignore_cleanup_errors=True) as scratch,
        _ends_on_sigterm(),
    ):
        free = msgspec.structs.replace(
            options, folder=Path(scratch), port=options.port or 0, label_studio_port=options.label_studio_port or 0
        )
        with running(free, tell=tell) as demo, _client(demo.label_studio) as client:
            tasks = picture_tasks(client, demo.project, demo.scenario)
            problems = find_problems(client, tasks, demo.scenario, demo.version)
            problems += _check_learning(demo, client, Path(scratch), tell) if options.teaches else []
    for problem in problems:
        tell(f"WRONG: {problem}")
    if not problems:
        what = "read word for word" if demo.scenario.texts else "pre-annotated"
        tell(f"OK: {len(tasks)} pictures {what} by {demo.version}, each on its own task")
    return not problems


@contextlib.contextmanager
def running(options: Options, *, tell: Tell) -> Iterator[Demo]:
    """Everything up and every picture pre-annotated; stopped again when the block is left, the backend first."""
    data = options.folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    settings = _settings(data)
    registry = open_registry(settings)
    scenario = plan(
        registry,
        settings,
        folder=data / "pictures",
        model=options.model,
        images=options.images,
        labels=options.labels,
    )
    if scenario.left_out:
        tell(f"Showing the first {len(scenario.pictures)} pictures; {scenario.left_out} more stay in the folder")
    venvs.create(options.home, "label-studio", progress=tell)
    with contextlib.ExitStack() as stack:
        tell("Starting Label Studio")
        port = _port(options.label_studio_port, LABEL_STUDIO_PORT)
        studio = stack.enter_context(
            label_studio.start(options.home, port=port, data_dir=data / "label-studio", progress=tell)
        )
        client = stack.enter_context(_client(studio))
        project = ensure_project(client, scenario)
        registry.bind(project.id, scenario.model.name, reason="the demo")
        tell(f"Starting labelloop with {scenario.model.id}")
        url, pid = stack.enter_context(serve(data, studio, port=_port(options.port, PORT)))
        version = attach(client, project, url)
        missing = pre_annotate(client, project, version, tell=tell)
        yield Demo(studio, url, pid, registry, project, scenario, version, missing)


def _go_on(demo: Demo, options: Options, tell: Tell) -> None:
    """Show the loop where there is one to show, then wait for Ctrl-C and say what people's corrections bring about."""
    if not options.teaches:
        _wait(demo, lambda: None)
    tell("Drawing parts on a belt, for a project that begins without a model")
    folder = options.folder / "data" / "belt"
    with (
        _client(demo.label_studio) as client,
        lesson.prepared(client, demo.registry, demo.backend_url, folder=folder, budget_s=lesson.BUDGET_S) as taught,
    ):
        follower = lesson.Follower(taught, tell)
        if options.annotator == "simulated":
            lesson.teach(taught, follower, tell=tell, alive=lambda: _stay_alive(demo))
        tell(lesson.what_next(taught))
        _wait(demo, follower.look)


def _check_learning(demo: Demo, client: Client, folder: Path, tell: Tell) -> list[str]:
    with lesson.prepared(
        client, demo.registry, demo.backend_url, folder=folder / "belt", budget_s=lesson.CHECK_BUDGET_S
    ) as taught:
        runs = lesson.teach(taught, lesson.Follower(taught, tell), tell=tell, alive=lambda: _stay_alive(demo))
        problems = lesson.find_problems(taught, runs)
    if not problems:
        tell(f"OK: a project without a model has learned, {' then '.join(map(lesson.score_in_words, runs))}")
    return problems


def _settings(data: Path) -> Settings:
    """The demo's own store, whatever the user's environment says."""
    return read_settings(home=data, database_url="", artifacts_url="", labels=())


def _client(studio: LabelStudio) -> Client:
    return Client(studio.url, studio.personal_access_token)


def _port(wanted: int | None, usual: int) -> int:
    if wanted is not None:
        return wanted
    try:
        return take_port(usual)
    except RuntimeSetupError:
        return 0


def _welcome(demo: Demo) -> str:
    studio, scenario = demo.label_studio, demo.scenario
    shown = "boxes with what is written in them" if scenario.reads_text else "boxes"
    lines = [
        "",
        f"  {scenario.title}:  {studio.url}/projects/{demo.project.id}/data",
        f"  e-mail        {studio.email}",
        f"  password      {studio.password}",
        f"  labelloop     {demo.backend_url}  ({demo.version})",
        "",
        f"  1. Open the first address and log in. {len(scenario.pictures)} pictures are pre-annotated.",
        f"  2. Click a picture: the model's {shown} are there.",
        "  3. Click Label All Tasks: the prediction is now your annotation. Correct what is wrong, then Submit.",
        "",
    ]
    if demo.missing:
        lines.append(f"  {demo.missing} pictures could not be pre-annotated; see {demo.backend_url} for the reasons.")
    return "\n".join([*lines, "Ctrl-C stops both. What you do is kept for the next start (--fresh forgets it)."])


def _wait(demo: Demo, look: Callable[[], object]) -> NoReturn:
    """Until Ctrl-C, or until one of the two ends by itself."""
    while True:
        look()
        _stay_alive(demo)
        time.sleep(0.5)


def _stay_alive(demo: Demo) -> None:
    """Raises RuntimeSetupError when one of the two has ended by itself."""
    logs = {
        demo.label_studio.pid: ("Label Studio", demo.label_studio.log),
        demo.backend_pid: ("labelloop serve", demo.label_studio.data_dir.parent / "labelloop.log"),
    }
    for pid, (name, log) in logs.items():
        if has_ended(pid):
            raise RuntimeSetupError(f"{name} ended by itself.", hint=f"Its log: {log}")


@contextlib.contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Two servers on one SQLite file would damage what people did in it."""
    try:
        with venvs.locked(folder / "lock", wait=False):
            yield
    except BlockingIOError as error:
        raise RuntimeSetupError(
            f"The demo in {folder} is running already.", hint="Stop it there with Ctrl-C."
        ) from error


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM stops the demo in the way of Ctrl-C."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

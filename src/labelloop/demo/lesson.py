"""The learning loop, shown: parts on a belt, a project without a model, and what comes of annotating it.

A simulated annotator draws the first boxes, a model is trained from nothing and goes live, the annotator corrects what
that one is least sure of, and a better one follows. Everything but the annotator is what people use: Label Studio's
API and webhooks, the loop inside `labelloop serve`, the order of the tab.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import msgspec

from labelloop.core.errors import RuntimeSetupError
from labelloop.demo import belt
from labelloop.demo.annotator import Annotator
from labelloop.demo.project import PictureTask, Tell, attach, ensure_project, picture_tasks
from labelloop.demo.scenario import Show, boxes_config
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import parse_filters, query_of
from labelloop.labelstudio.records import Project
from labelloop.store.registry import Registry

TITLE = "Parts on a belt: learns from you"
DESCRIPTION = (
    "Generated pictures. The first boxes are drawn by a simulated annotator, not by a person; "
    "the rest is for you. After 20 more pictures a better model comes by itself."
)
PICTURES = 90
FIRST, THEN = 40, 20
"""How many pictures the simulated annotator does before the first model, and before the second."""
MIN_NEW, QUIET_S = 20, 8.0
"""When the loop begins: soon, for somebody who watches."""
BUDGET_S, CHECK_BUDGET_S = 60.0, 40.0
LOOK_S = 1.0
LONGEST_S = 900.0
"""A run that takes longer than this on the demo's few pictures has gone wrong."""


class Lesson(msgspec.Struct, frozen=True):
    """A project that learns, and the one who knows what lies on its pictures."""

    client: Client
    api: httpx.Client
    """The JSON API of `labelloop serve`."""
    project: Project
    show: Show
    annotator: Annotator

    @property
    def address(self) -> str:
        return f"{self.client.base_url}/projects/{self.project.id}/data"

    def state(self) -> dict[str, Any]:
        """Where the loop is: GET /api/projects/{project}/loop."""
        answer = self.api.get(f"/api/projects/{self.project.id}/loop")
        answer.raise_for_status()
        found: dict[str, Any] = answer.json()
        return found

    def untouched(self) -> list[PictureTask]:
        """Pictures that nobody has annotated, in the order of the tab: the most uncertain first."""
        query = {
            **query_of((), filters=parse_filters(["total_annotations=0"])),
            "ordering": ["tasks:predictions_score"],
        }
        return picture_tasks(self.client, self.project, self.show, query=query)


def draw(folder: Path) -> Mapping[str, tuple[belt.Part, ...]]:
    """Write the pictures into `folder`; what lies on each, by file name."""
    folder.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(2) as pool:  # most of it is OpenCV, which lets other threads run
        scenes = list(pool.map(lambda number: belt.draw_scene(0, number), range(PICTURES)))
    for scene in scenes:
        (folder / scene.name).write_bytes(scene.jpeg)
    return {scene.name: scene.parts for scene in scenes}


@contextlib.contextmanager
def prepared(
    client: Client, registry: Registry, backend_url: str, *, folder: Path, budget_s: float
) -> Iterator[Lesson]:
    """The project with its pictures, connected, without a model, and its loop switched on; one that has learned already
    goes on where it was."""
    parts = draw(folder)
    show = Show(
        TITLE, boxes_config(belt.LABELS), tuple(folder / name for name in parts), fields={"description": DESCRIPTION}
    )
    project = ensure_project(client, show)
    if project.id not in registry.catalogue().bindings:  # or the model that reads text would serve it
        registry.bind(project.id, "none", reason="the demo begins without a model")
    attach(client, project, backend_url)
    body = {"enabled": True, "options": {"min_new": MIN_NEW, "quiet_s": QUIET_S, "budget_s": budget_s}}
    with httpx.Client(base_url=backend_url, timeout=30, trust_env=False) as api:
        api.put(f"/api/projects/{project.id}/loop", json=body).raise_for_status()
        yield Lesson(client, api, project, show, Annotator(client, show.label_config, parts))


def annotate(lesson: Lesson, count: int, *, tell: Tell) -> None:
    """Let the simulated annotator do the next pictures, those that the model is least sure of."""
    tasks = lesson.untouched()[:count]
    boxes = sum(lesson.annotator.annotate(task) for task in tasks)
    tell(f"A simulated annotator has drawn {boxes} boxes on {len(tasks)} pictures")


class Follower:
    """Says what the loop does, each thing once."""

    def __init__(self, lesson: Lesson, tell: Tell) -> None:
        self._lesson = lesson
        self._tell = tell
        self._said: set[tuple[str, str]] = set()

    def look(self) -> dict[str, Any]:
        """Where the loop is, {} while it cannot be asked; says what is new about the latest run."""
        try:
            state = self._lesson.state()
        except httpx.HTTPError:
            return {}  # busy, or about to end: whoever waits for its end hears of that
        run: dict[str, Any] | None = state["run"]
        if run is not None:
            for what, sentence in _news(run, self._lesson.address):
                if (run["job_id"], what) not in self._said:
                    self._said.add((run["job_id"], what))
                    self._tell(sentence)
        return state

    def wait_for_run(self, *, after: str, alive: Callable[[], None]) -> dict[str, Any]:
        """Until a run other than `after` has ended; `alive` raises when something else has. Raises
        RuntimeSetupError."""
        begun = time.monotonic()
        while time.monotonic() - begun < LONGEST_S:
            state = self.look()
            run: dict[str, Any] | None = state.get("run")
            if run is not None and run["job_id"] != after:
                if run["ended_at"] is not None:
                    return run
                job = state["job"]
                if job is not None and job["state"] in ("failed", "cancelled"):
                    raise RuntimeSetupError(f"The training ended: {job['error']}", hint="Its log: labelloop jobs logs")
            alive()
            time.sleep(LOOK_S)
        raise RuntimeSetupError(f"No run of the learning loop ended within {LONGEST_S:g} s.", hint="See labelloop.log.")


def teach(lesson: Lesson, follower: Follower, *, tell: Tell, alive: Callable[[], None]) -> list[dict[str, Any]]:
    """Two rounds: from nothing to a first model, and to a better one; their runs. A project that has begun is left as
    it is."""
    runs: list[dict[str, Any]] = []
    if follower.look().get("run") is not None:
        return runs
    for count in (FIRST, THEN):
        annotate(lesson, count, tell=tell)
        runs.append(follower.wait_for_run(after=runs[-1]["job_id"] if runs else "", alive=alive))
    return runs


def find_problems(lesson: Lesson, runs: list[dict[str, Any]]) -> list[str]:
    """What is wrong after `teach`, asked of Label Studio: a sentence each."""
    problems = [f"run {run['job_id']}: {run['verdict']}" for run in runs if run["outcome"] == "declined"]
    if not runs or runs[0]["outcome"] != "promoted":
        return [*problems, "no first model went live"]
    if runs[0]["trainer"] != "scratch":
        problems.append(f"the first model was trained by {runs[0]['trainer']}")
    version = lesson.client.project(lesson.project.id).model_version or ""
    live = next(run["candidate"] for run in reversed(runs) if run["outcome"] == "promoted")
    if not version.startswith(f"{live}."):
        problems.append(f"Label Studio shows {version or 'no version'}, and {live} is live")
    without = [task.id for task in lesson.untouched() if version not in _versions(lesson.client, task.id)]
    return [*problems, *(f"task {task} has no prediction of {version}" for task in without)]


def score_in_words(run: Mapping[str, Any]) -> str:
    """How good the candidate of a run was on held-out pictures."""
    measured = run["metrics"].get("candidate") or {}
    score = measured.get("ap50")
    return f"AP50 {'unknown' if score is None else f'{score:.2f}'} ({run['outcome']})"


def what_next(lesson: Lesson) -> str:
    """What a person can do now."""
    lines = [
        "",
        f"  {TITLE}:  {lesson.address}",
        "",
        '  1. Open it; the tab "Most uncertain first" has the pictures that teach most.',
        f"  2. Correct {MIN_NEW} pictures and Submit. {QUIET_S:g} s later a training begins.",
        "  3. Watch it here: the new version goes live only if it is better on pictures that were held out.",
        "",
    ]
    return "\n".join(lines)


def _news(run: Mapping[str, Any], address: str) -> list[tuple[str, str]]:
    """What there is to say of a run so far, with a name for each."""
    counts, budget = run["counts"], run["options"]["budget_s"]
    said = []
    if run["stage"] not in ("pull", "done") or run["trainer"]:
        pictures = f"{counts.get('train', 0)} pictures, {counts.get('val', 0)} held out"
        start = f"from {run['base']}" if run["base"] else "from nothing"
        said.append(("train", f"Training {start} on {pictures}: about {budget:g} s"))
    if run["verdict"]:
        said.append(("verdict", run["verdict"]))
    if run["outcome"] == "promoted":
        said.append(("live", f"{run['candidate']} is live; new predictions are on the way"))
        if run["ended_at"] is not None:
            said.append(("done", f"Its predictions are there, the most uncertain first: {address}"))
    return said


def _versions(client: Client, task_id: int) -> list[str]:
    return [row["model_version"] for row in client.predictions(task_id)]

"""A second Label Studio whose project has a number that is known: nothing of it is mixed into what is there."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from labelloop.app import training_of
from labelloop.core.cards import ModelCard
from labelloop.core.errors import ProjectElsewhere
from labelloop.core.settings import read_settings
from labelloop.jobs.submit import view_of
from labelloop.jobs.watchers import Views
from labelloop.labelstudio.records import Project
from labelloop.labelstudio.wire import made_s_of
from labelloop.serving.models import Store, open_store
from labelloop.store import schema
from labelloop.store.homes import same_moment
from labelloop.store.jobs import Work
from reference.running_server import CONFIG, Backend, Start

MADE = datetime(2026, 11, 20, 12, 1, 56, tzinfo=UTC)
OTHER = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
PICTURE = "data:image/png;base64,x"


def called(made: datetime, number: int = 1) -> str:
    """A project as calls of a backend name it."""
    return f"{number}.{int(made.timestamp())}"


def event(action: str, made: datetime, annotation: int) -> dict[str, Any]:
    project = {"id": 1, "created_at": f"{made:%Y-%m-%dT%H:%M:%S}.755126Z", "label_config": CONFIG}
    return {"action": action, "project": project, "annotation": {"id": annotation, "task": 1}, "task": {"id": 1}}


def ask(backend: Backend, path: str, made: datetime, **more: Any) -> tuple[int, Mapping[str, Any]]:
    bodies: dict[str, dict[str, Any]] = {
        "/setup": {"project": called(made), "schema": CONFIG, "hostname": "http://127.0.0.1:9", "access_token": "t"},
        "/predict": {"project": called(made), "label_config": CONFIG, "tasks": [{"id": 1, "data": {"image": PICTURE}}]},
        "/webhook": event("ANNOTATION_CREATED", made, 5),
        "/train": {"project": called(made), "annotations": []},
        "/delete": {"project": called(made)},
    }
    answer = backend.http.post(path, json=bodies[path] | more)
    return answer.status_code, answer.json()


def rows(store: Store) -> dict[str, int]:
    with store.engine.connect() as connection:
        return {
            table.name: connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for table in schema.metadata.sorted_tables
        }


@pytest.mark.parametrize("first", ["/setup", "/predict", "/webhook"])
def test_calls_of_the_other_one_are_refused_and_leave_no_row(start: Start, first: str) -> None:
    backend = start()
    assert ask(backend, first, MADE)[0] in (200, 201)
    backend.wait(lambda: rows(backend.parts.store)["projects"] == 1)
    ask(backend, "/setup", MADE)
    before, connection = rows(backend.parts.store), backend.parts.origins.connection(1)
    for path in ("/setup", "/predict", "/webhook", "/train", "/delete"):
        status, body = ask(backend, path, OTHER)
        assert (status, body["error"]) == (409, "project-elsewhere"), path
        assert "2026-03-04 05:06:07" in body["message"]
        assert "LABELLOOP_HOME" in body["hint"]
    assert rows(backend.parts.store) == before
    assert backend.parts.origins.connection(1) == connection
    assert ask(backend, "/webhook", MADE)[0] == 201, "the first one goes on"
    assert ask(backend, "/predict", MADE)[0] == 200


def test_a_project_with_another_number_is_nobodys_yet(start: Start) -> None:
    backend = start()
    ask(backend, "/setup", MADE)
    assert ask(backend, "/setup", OTHER, project=called(OTHER, 2))[0] == 200


def test_what_says_no_moment_is_served_as_before(start: Start) -> None:
    backend = start()
    ask(backend, "/setup", MADE)
    assert ask(backend, "/setup", OTHER, project="1")[0] == 200


@pytest.mark.parametrize(
    ("hours", "same"),
    [(0, True), (5.75, True), (-10, True), (14, True), (27, False), (0.1, False), (24 * 30, False)],
    ids=["equal", "Kathmandu", "Honolulu", "Kiritimati", "further than any zone", "minutes", "a month"],
)
def test_a_clock_in_another_zone_tells_the_same_moment(start: Start, hours: float, same: bool) -> None:
    told = int((MADE + timedelta(hours=hours)).timestamp())
    assert same_moment(int(MADE.timestamp()), told) is same
    assert same_moment(told, int(MADE.timestamp())) is same


@pytest.mark.parametrize(
    ("project", "made_s"),
    [
        ("7.1795176116", 1795176116),
        ({"id": 7, "created_at": "2026-11-20T12:01:56.755126Z"}, 1795176116),
        ({"id": 7, "created_at": "2026-11-20T13:01:56+01:00"}, 1795176116),
        ("7", None),
        ("7.1", None),
        ({"id": 7, "created_at": "1970-01-01T00:00:01Z"}, None),
        ("7.", None),
        ("7.x", None),
        (f"7.{'9' * 40}", None),
        ({"id": 7}, None),
        ({"id": 7, "created_at": 3}, None),
        (7, None),
        (None, None),
    ],
)
def test_when_a_project_was_made(project: Any, made_s: int | None) -> None:
    assert made_s_of(project) == made_s


def test_a_server_follows_when_a_person_lets_the_other_one_take_over(start: Start) -> None:
    backend = start()
    ask(backend, "/setup", MADE)
    ask(backend, "/webhook", MADE)
    store = backend.parts.store
    store.registry.bind(1, "cars", reason="test")
    job, _ = store.jobs.create(Work("http://first", 1, "cars@1", "cars@1.x"))
    other, _ = store.jobs.create(Work("http://first", 2, "cars@1", "cars@1.x"))
    store.values.set("cars", "1", "heard", 3)
    assert ask(backend, "/predict", OTHER)[0] == 409
    open_store(read_settings(home=backend.home)).registry.homes.move(1)  # another process
    assert ask(backend, "/predict", OTHER)[0] == 200
    assert ask(backend, "/predict", MADE)[0] == 409, "now the first one is the stranger"
    left = rows(store)
    assert [left[name] for name in ("events", "annotation_states", "bindings", "moves", "model_values")] == [0] * 5
    assert (store.jobs.get(job.id).state, store.jobs.get(other.id).state) == ("cancelled", "queued")


def test_two_processes_that_meet_a_project_at_the_same_moment_agree(tmp_path: Path) -> None:
    one, two = (open_store(read_settings(home=tmp_path)).registry.homes for _ in range(2))
    one.meet(1, 1_795_176_116)
    with pytest.raises(ProjectElsewhere, match=r"made at 2026-11-20 12:01:56; this"):
        two.meet(1, 1_700_000_001)
    two.meet(1, 1_795_176_116, label_studio="http://there")
    with pytest.raises(ProjectElsewhere, match=r"12:01:56 in http://there;"):
        one.meet(1, 1_700_000_001)
    assert two.knows(1, 1_795_176_116 + 3600)
    assert not two.knows(1, 1_795_176_117)


def test_commands_and_workers_know_the_model_that_serve_was_given(start: Start, tmp_path: Path) -> None:
    """Two servers on one store, each with its own `--model`: a project has that of the one which it asks."""
    store = open_store(read_settings(home=tmp_path / "home"))
    for name in ("cars", "birds"):
        store.registry.add(None, ModelCard(name=name, engine="empty", labels=("car", name)))

    def serves(project: int) -> str | None:
        version = store.registry.catalogue().of_project(project)
        return version.id if version else None

    cars, birds = (start(models=(), default=name) for name in ("cars", "birds"))
    assert serves(1) is None, "there are two models, and nobody asked a server yet"
    ask(cars, "/setup", MADE)
    ask(birds, "/setup", OTHER, project=called(OTHER, 2))
    assert (serves(1), serves(2)) == ("cars@1", "birds@1")
    assert training_of(store).live(1).id == "cars@1", "what a worker of its own compares a candidate with"
    shown = view_of(read_settings(home=tmp_path / "home"), store.registry, Project(1, label_config=CONFIG), None)
    assert shown.version.id == "cars@1", "what `labelloop prelabel 1` predicts with"

    store.registry.bind(1, "birds", reason="test")
    assert serves(1) == "birds@1", "what is assigned comes first"
    start(models=()).http.post("/setup", json={"project": called(OTHER, 2), "schema": CONFIG})
    assert serves(2) is None, "a server without --model answers it now"


def test_commands_and_workers_see_through_what_serve_was_told(start: Start, tmp_path: Path) -> None:
    """`labelloop serve --score-threshold … --labels-file …`, and another command in another terminal without them."""
    (tmp_path / "labels.json").write_text('{"lorry": "Car"}')
    store = open_store(read_settings(home=tmp_path / "home"))
    store.registry.add(None, ModelCard(name="cars", engine="empty", labels=("lorry",)))
    project = Project(1, label_config=CONFIG)

    def seen(**told: Any) -> str:
        return view_of(read_settings(home=tmp_path / "home", **told), store.registry, project, None).name

    alone = seen()
    served = start(models=(), score_threshold=0.6, labels_file=tmp_path / "labels.json").setup(1)
    assert seen() == served != alone
    views = Views(read_settings(home=tmp_path / "home"), store.registry.catalogue().serving, store.registry.catalogue)
    assert views.of(project).name == served, "what `labelloop watch` starts jobs for"
    assert seen(score_threshold=0.7) != served, "what a command is told itself comes first"
    assert start(models=()).setup(1) == alone == seen() == views.of(project).name, "a restart without them"

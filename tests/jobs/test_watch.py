"""A watched project: what is new is predicted, what people do becomes events, each once, whoever tells it first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from starlette.responses import Response

from jobs.desk import Desk, refusal
from labelloop.app import open_watch
from labelloop.core.errors import LabelStudioError
from labelloop.jobs.watch import COUNT_S, OVERLAP, ProjectWatch
from labelloop.jobs.watchers import Views, Watchers
from labelloop.labelstudio.changes import changes_since
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.wire import decode_event, moment_of
from labelloop.store.watches import Key
from labelloop.testing import FakeEngine
from reference.waiting import wait


class Watched:
    """A watch of the desk's project whose clock the test moves."""

    def __init__(self, desk: Desk, client: Client) -> None:
        self.desk = desk
        self.client = client
        self.key = Key(desk.studio.url, desk.project)
        self.now = 0.0
        desk.store.watches.add(self.key, kept=False)
        self.watch = self.again()

    def again(self) -> ProjectWatch:
        """As after a restart."""
        store = self.desk.store
        views = Views(
            self.desk.settings, lambda project: store.registry.catalogue().serving(project), store.registry.catalogue
        )
        return ProjectWatch(self.key, self.client, store, views.of, clock=lambda: self.now)

    def minute(self) -> None:
        self.now += COUNT_S
        self.watch.look()

    def annotate(self, task: int, **fields: Any) -> int:
        return self.ask("POST", f"/api/tasks/{task}/annotations/", {"result": [], **fields})["id"]

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        kind: Any = type(None) if method == "DELETE" else dict
        return self.client._ask(method, path, kind, body=body)

    def events(self) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
        found = self.desk.store.events.after(0, project_id=self.desk.project)
        return [(event.action, event.task_ids, event.annotation_ids) for event in found]


@pytest.fixture
def watched(desk: Desk) -> Iterator[Watched]:
    with Client(desk.studio.url, desk.studio.token, attempts=1) as client:
        yield Watched(desk, client)


def test_what_people_do_becomes_events(watched: Watched) -> None:
    first, second = watched.desk.add_tasks(2)
    old = watched.annotate(first)
    watched.watch.look()
    assert watched.events() == [], "what was there before is no news"

    made = watched.annotate(second)
    watched.watch.look()
    watched.ask("PATCH", f"/api/annotations/{old}", {"result": []})
    watched.watch.look()
    watched.ask("DELETE", f"/api/annotations/{made}")
    watched.watch.look()
    assert watched.events() == [
        ("ANNOTATION_CREATED", (second,), (made,)),
        ("ANNOTATION_UPDATED", (first,), (old,)),
        ("ANNOTATIONS_DELETED", (second,), (made,)),
    ]
    for _ in range(3):
        assert not watched.watch.look()
    assert len(watched.events()) == 3


def test_an_import_with_annotations_sends_no_event_and_is_found(watched: Watched) -> None:
    watched.watch.look()
    body = [{"data": {"image": "x"}, "annotations": [{"result": []}, {"result": [], "was_cancelled": True}]}]
    (task,) = watched.client.import_tasks(watched.desk.project, body).task_ids
    watched.watch.look()
    assert watched.events() == [("ANNOTATIONS_CREATED", (task, task), (1, 2))]


def test_an_id_that_an_import_gives_again_is_another_annotation(watched: Watched) -> None:
    (task,) = watched.desk.add_tasks(1)
    made = watched.annotate(task)
    watched.watch.look()
    since = moment_of(watched.client.tasks(watched.desk.project, include=("updated_at",)).tasks[0]["updated_at"])
    watched.ask("DELETE", f"/api/annotations/{made}")
    watched.watch.look()
    body = [{"data": {"image": "x"}, "annotations": [{"result": []}]}]
    (other,) = watched.client.import_tasks(watched.desk.project, body).task_ids
    watched.watch.look()
    assert watched.events() == [("ANNOTATIONS_DELETED", (task,), (made,)), ("ANNOTATION_CREATED", (other,), (made,))]
    assert since is not None
    found = changes_since(watched.client, watched.desk.project, since, known={made: task})
    assert (found.changed, found.withdrawn) == ({made}, {made})


def test_deleted_tasks_take_their_annotations_along(watched: Watched) -> None:
    tasks = watched.desk.add_tasks(3)
    ids = [watched.annotate(task) for task in tasks]
    watched.watch.look()
    watched.ask("DELETE", f"/api/projects/{watched.desk.project}/tasks/")
    watched.watch.look()
    assert watched.events() == [], "no moment tells it"
    watched.minute()
    assert watched.events() == [("ANNOTATIONS_DELETED", tuple(tasks), tuple(ids))]
    before = len(watched.desk.studio.requests)
    watched.minute()
    assert len(watched.desk.studio.requests) - before <= 2, "counts that agree are not compared again"


@pytest.mark.parametrize("first", ["webhook", "watch"])
def test_webhook_and_watch_tell_one_event(watched: Watched, first: str) -> None:
    (task,) = watched.desk.add_tasks(1)
    watched.watch.look()
    told: list[bytes] = []
    for change in ("POST", "PATCH", "DELETE"):
        number = 1
        path = f"/api/tasks/{task}/annotations/" if change == "POST" else f"/api/annotations/{number}"
        watched.ask(change, path, {"result": []} if change != "DELETE" else None)
        told.append(webhook(watched, change, number))
        if first == "webhook":
            assert watched.desk.store.events.record(decode_event(told[-1])) is not None
        watched.watch.look()
        if first == "watch":
            assert watched.desk.store.events.record(decode_event(told[-1])) is None
    assert [action for action, _, _ in watched.events()] == [
        "ANNOTATION_CREATED",
        "ANNOTATION_UPDATED",
        "ANNOTATIONS_DELETED",
    ]
    for body in told:
        assert watched.desk.store.events.record(decode_event(body)) is None, "late, and known"


def webhook(watched: Watched, change: str, number: int) -> bytes:
    import msgspec

    action = {"POST": "ANNOTATION_CREATED", "PATCH": "ANNOTATION_UPDATED", "DELETE": "ANNOTATIONS_DELETED"}[change]
    row = watched.desk.studio.state.annotation(number)
    said = {"annotations": [{"id": number}]} if row is None else {"annotation": row, "task": {"id": row["task"]}}
    return msgspec.json.encode({"action": action, "project": {"id": watched.desk.project}} | said)


def test_a_restart_goes_on_where_it_was(watched: Watched) -> None:
    tasks = watched.desk.add_tasks(2)
    watched.annotate(tasks[0])
    watched.watch.look()
    made = watched.annotate(tasks[1])
    watched.watch = watched.again()
    watched.watch.look()
    assert watched.events() == [("ANNOTATION_CREATED", (tasks[1],), (made,))]
    watched.watch = watched.again()
    watched.watch.look()
    assert len(watched.events()) == 1


def test_a_row_that_becomes_visible_late_is_seen(watched: Watched) -> None:
    tasks = watched.desk.add_tasks(2)
    watched.watch.look()
    watched.annotate(tasks[0])
    watched.watch.look()
    made = watched.annotate(tasks[1])
    task = watched.desk.studio.state.tasks[tasks[1]]
    task.updated_s -= (OVERLAP - timedelta(seconds=2)).total_seconds()
    watched.watch.look()
    assert watched.events()[-1] == ("ANNOTATION_CREATED", (tasks[1],), (made,))


def test_a_moment_in_the_future_hides_nothing(watched: Watched) -> None:
    tasks = watched.desk.add_tasks(2)
    watched.desk.studio.state.tasks[tasks[0]].updated_s += 86_400
    watched.watch.look()
    watched.watch.look()
    made = watched.annotate(tasks[1])
    watched.watch.look()
    assert watched.events() == [("ANNOTATION_CREATED", (tasks[1],), (made,))]


def test_nothing_happened_is_one_small_request(watched: Watched) -> None:
    watched.desk.add_tasks(30)
    watched.watch.look()
    watched.desk.store.watches.save(watched.key, cursor=moment_of("2100-01-01T00:00:00Z"))
    watched.watch = watched.again()
    watched.watch.look()
    before = len(watched.desk.studio.requests)
    for _ in range(10):
        assert not watched.watch.look()
    assert len(watched.desk.studio.requests) - before == 10


def test_new_tasks_get_jobs_and_the_same_job_goes_on(watched: Watched) -> None:
    desk = watched.desk
    desk.add_tasks(4)
    watched.watch.look()
    (job,) = desk.store.jobs.newest()
    desk.run(job)
    assert desk.versions() == [[desk.version]] * 4
    watched.watch.look()
    desk.add_tasks(3)
    watched.watch.look()
    (again,) = desk.store.jobs.newest()
    assert (again.id, again.state, again.run) == (job.id, "queued", 2)
    watched.watch.look()
    desk.run(again)
    assert desk.versions() == [[desk.version]] * 7
    watched.minute()
    assert desk.store.jobs.newest()[0].state == "done", "nothing is missing"


def test_another_version_predicts_what_lacks_it(watched: Watched) -> None:
    desk = watched.desk
    desk.add_tasks(2)
    watched.watch.look()
    desk.run(desk.store.jobs.newest()[0])
    project = desk.studio.state.projects[desk.project]
    project.label_config = project.label_config.replace("Car", "Van").replace('"Van"', '"Van" predicted_values="car"')
    watched.minute()
    newest, first = desk.store.jobs.newest()
    assert (newest.state, first.state) == ("queued", "done")
    assert newest.version != first.version
    desk.run(newest)
    assert desk.versions() == [[first.version, newest.version]] * 2


def test_a_job_that_failed_is_left_alone_for_a_while(watched: Watched) -> None:
    desk = watched.desk
    desk.add_tasks(1)
    watched.watch.look()
    (job,) = desk.store.jobs.newest()
    desk.store.jobs.cancel(job.id)
    desk.add_tasks(1)
    watched.watch.look()
    assert [row.state for row in desk.store.jobs.newest()] == ["cancelled"]


def test_changes_since_are_asked_of_label_studio(watched: Watched) -> None:
    desk = watched.desk
    tasks = desk.add_tasks(5)
    used = {watched.annotate(task): task for task in tasks[:3]}
    since = moment_of(watched.client.tasks(desk.project, include=("updated_at",)).tasks[2]["updated_at"])
    assert since is not None
    assert len(changes_since(watched.client, desk.project, since, known=used)) == 0
    changed, gone, same = used
    watched.ask("PATCH", f"/api/annotations/{changed}", {"result": []})
    watched.ask("DELETE", f"/api/annotations/{gone}")
    made = watched.annotate(tasks[3])
    watched.annotate(tasks[4], was_cancelled=True)
    found = changes_since(watched.client, desk.project, since, known=used)
    assert (found.changed, found.withdrawn) == ({changed, made}, {gone})
    assert same not in found.changed
    assert found.task_ids == {tasks[0], tasks[1], tasks[3], tasks[4]}
    assert found.until is not None
    assert found.until > since


def test_many_tasks_with_one_moment_are_read_once_each(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    from labelloop.labelstudio import changes

    monkeypatch.setattr(changes, "PAGE", 4)
    desk = watched.desk
    tasks = desk.add_tasks(11)
    since = moment_of("2000-01-01T00:00:00Z")
    assert since is not None
    for task in tasks:
        desk.studio.state.tasks[task].updated_s = 1_700_000_000.0
    pages = list(changes.touched(watched.client, desk.project, since=since))
    assert [task.id for page in pages for task in page] == sorted(tasks, reverse=True)


# --- all of them together -----------------------------------------------------------------------------


@contextmanager
def watching(desk: Desk, **options: Any) -> Iterator[Watchers]:
    settings = desk.settings.model_copy(update={"watch_interval_s": 0.1})
    with open_watch(settings, [str(desk.project)], load=lambda _: FakeEngine(), **options) as running:
        thread = threading.Thread(target=running.run)
        thread.start()
        try:
            yield running
        finally:
            running.stop()
            thread.join(20)


def test_a_task_that_is_imported_gets_its_prediction(desk: Desk) -> None:
    desk.add_tasks(2)
    with watching(desk):
        wait(lambda: desk.versions() == [[desk.version]] * 2, seconds=40)
        desk.add_tasks(3)
        wait(lambda: desk.versions() == [[desk.version]] * 5)
    (row,) = desk.store.watches.all()
    assert (row.kept, row.holder, row.error) == (False, None, "")


def test_an_outage_is_waited_for_and_told_once(desk: Desk) -> None:
    trouble = [True]

    def away(_ask: Any, _path: str, answer: Callable[[], Response]) -> Response:
        return refusal(503) if trouble[0] else answer()

    settings = desk.settings.model_copy(update={"watch_interval_s": 0.05})
    desk.store.watches.add(Key(desk.studio.url, desk.project), kept=True)
    watchers = Watchers(settings, desk.store, lambda _: (desk.model, ""), named=(), kept=True)
    desk.studio.around = away
    pauses = []
    for _ in range(5):
        pauses.append(watchers.look())
        place = watchers._places[Key(desk.studio.url, desk.project)]
        pauses[-1] = place.pause_s
        place.due = 0.0
    assert pauses == sorted(pauses)
    assert pauses[-1] > 4 * pauses[0]
    (row,) = desk.store.watches.all()
    assert "503" in row.error
    trouble[0] = False
    watchers.look()
    (row,) = desk.store.watches.all()
    assert row.error == ""
    watchers.close()


def test_one_of_two_watches(desk: Desk) -> None:
    key = Key(desk.studio.url, desk.project)
    desk.store.watches.add(key, kept=True)
    one, other = (Watchers(desk.settings, desk.store, lambda _: (None, ""), named=(), kept=True) for _ in range(2))
    one.look()
    before = len(desk.studio.requests)
    other.look()
    assert len(desk.studio.requests) == before
    one.close()
    other.look()
    assert len(desk.studio.requests) > before
    other.close()


def test_a_project_that_is_not_there_is_an_error_of_its_watch(desk: Desk) -> None:
    with Client(desk.studio.url, desk.studio.token, attempts=1) as client:
        watch = ProjectWatch(
            Key(desk.studio.url, 999),
            client,
            desk.store,
            Views(desk.settings, lambda _: None, desk.store.registry.catalogue).of,
        )
        with pytest.raises(LabelStudioError, match="404"):
            watch.look()

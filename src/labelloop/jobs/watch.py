"""One project, watched without an inbound port: new tasks are pre-annotated, changes of annotations become events.

A look is one small request, "tasks changed since": a task's `updated_at` moves with each of its annotations (see
labelstudio/changes). Of the tasks that moved, the annotations are compared with what the store knows, which webhooks
fill as well; so a change is one event, whoever told it first. The look begins a little before the newest moment seen,
because a row becomes visible later than its moment says.

What no moment tells is counted once a minute: tasks that were deleted with their annotations, imports that took long.
When Label Studio's count of annotations is not ours, all are compared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta

import structlog

from labelloop.core.errors import LabelloopError
from labelloop.core.tasks import Event
from labelloop.jobs.start import Starter
from labelloop.labelstudio import changes
from labelloop.labelstudio.changes import Said, Touched
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import query_of, without_version
from labelloop.labelstudio.records import Project
from labelloop.serving.models import Store
from labelloop.serving.projects import View
from labelloop.store.annotations import DELETED, Known
from labelloop.store.watches import Key

log = structlog.get_logger(__name__)

OVERLAP = timedelta(seconds=10)
"""How much later than its own moment a row may become visible: as long as a request takes that imports or deletes."""
COUNT_S = 60.0
"""How often counts are compared, and the label config and the model are looked at."""
_FIRST = datetime(2000, 1, 1, tzinfo=UTC)
_ONE_EVENT = 1000
"""Deleted annotations in one event."""

ViewOf = Callable[[Project], View]
"""The version that serves a project, as it sees it now. Raises LabelloopError, also when there is none."""


class ProjectWatch:
    """Call `look` every few seconds, from one thread. It raises LabelStudioError when Label Studio cannot be asked."""

    def __init__(
        self, key: Key, client: Client, store: Store, view_of: ViewOf, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._key = key
        self._project = key.project_id
        self._client = client
        self._store = store
        self._view_of = view_of
        self._clock = clock
        row = store.watches.get(key)
        self._cursor = row.cursor if row else None
        self._version = row.version if row else ""
        self._starter = Starter(key, store, job_id=row.job_id if row else None)
        self._handled: dict[int, datetime] = {}
        self._highest: int | None = None
        self._counted_at = float("-inf")
        self._tasks: int | None = None
        self._in_vain: tuple[int, int] | None = None
        self._told = ""

    def look(self) -> bool:
        """Whether anything had happened."""
        cursor = self._cursor if self._cursor is not None else self._learn()
        window, newest = self._window(cursor)
        moved = [task for task in window if self._handled.get(task.id) != task.updated_at]
        self._record(moved)
        self._handled = {task.id: task.updated_at for task in window}
        self._notice_new(moved)
        if self._clock() - self._counted_at >= COUNT_S:
            self._count()
        if newest > cursor:
            self._store.watches.save(self._key, cursor=newest)
        self._cursor = newest
        self._starter.start_if_wanted()
        return bool(moved)

    # --- annotations --------------------------------------------------------------------------------------

    def _learn(self) -> datetime:
        """Take what is there now as known; returns the moment that it was so at."""
        query = {"ordering": ["-tasks:updated_at"]}
        rows = self._client.tasks(self._project, page_size=1, include=("id", "updated_at"), query=query).tasks
        cursor = _not_in_the_future(changes.moment(rows[0]["updated_at"])) if rows else _FIRST
        for page in changes.all_annotations(self._client, self._project):
            # what people do meanwhile is found by the first look, and is news
            old = [said for said in _flat(page) if said.updated_at <= cursor]
            self._store.annotations.learn(
                self._project, {said.id: Known(said.task_id, said.updated_at) for said in old}
            )
        self._store.watches.save(self._key, cursor=cursor)
        return cursor

    def _window(self, cursor: datetime) -> tuple[list[Touched], datetime]:
        """Tasks that changed since a little before `cursor`, and where the next look begins."""
        pages = list(changes.touched(self._client, self._project, since=cursor - OVERLAP))
        newest = max((task.updated_at for task in pages[0]), default=cursor)
        return [task for page in pages for task in page], max(cursor, _not_in_the_future(newest))

    def _record(self, moved: Sequence[Touched]) -> None:
        # What is known is read before Label Studio is asked: an annotation that a webhook tells of in between is not
        # in it, and so cannot look as if it were gone.
        known = self._store.annotations.known(self._project, tasks=[task.id for task in moved]) if moved else {}
        owners = {state.task_id for state in known.values()}
        asked = [task.id for task in moved if task.annotations or task.id in owners]
        there = changes.annotations_on(self._client, self._project, asked)
        self._tell_changes(known, there)
        self._tell_deleted(known, {said.id for said in _flat(there)})

    def _tell_changes(self, known: Mapping[int, Known], there: Mapping[int, Sequence[Said]]) -> None:
        for task, rows in there.items():
            made = [said for said in rows if said.id not in known]
            self._event("ANNOTATION_CREATED" if len(made) == 1 else "ANNOTATIONS_CREATED", [task] * len(made), made)
            for said in rows:
                before = known[said.id].updated_at if said.id in known else None
                if before is not None and said.updated_at > before:
                    self._event("ANNOTATION_UPDATED", [task], [said])

    def _tell_deleted(self, known: Mapping[int, Known], there: set[int]) -> None:
        gone = [(number, state.task_id) for number, state in sorted(known.items()) if number not in there]
        for start in range(0, len(gone), _ONE_EVENT):
            part = gone[start : start + _ONE_EVENT]
            tasks = tuple(task for _, task in part if task is not None)
            ids = tuple(number for number, _ in part)
            self._store.events.record(Event(DELETED, self._project, tasks, ids, (None,) * len(ids)))
            log.info("annotations deleted", project=self._project, number=len(ids))

    def _event(self, action: str, tasks: Sequence[int], rows: Sequence[Said]) -> None:
        if not rows:
            return
        ids, moments = tuple(said.id for said in rows), tuple(said.updated_at for said in rows)
        number = self._store.events.record(Event(action, self._project, tuple(tasks), ids, moments), seen=True)
        if number is not None:
            log.info("event found", action=action, project=self._project, number=number)

    # --- what no moment tells -----------------------------------------------------------------------------

    def _count(self) -> None:
        project = self._client.project(self._project)
        self._look_at_model(project)
        ours = self._store.annotations.count(self._project)
        theirs = project.total_annotations_number
        if theirs is not None and theirs != ours and (theirs, ours) != self._in_vain:
            self._compare_all()
            self._in_vain = theirs, self._store.annotations.count(self._project)
        self._counted_at = self._clock()

    def _compare_all(self) -> None:
        known = self._store.annotations.known(self._project)
        there: set[int] = set()
        for page in changes.all_annotations(self._client, self._project):
            self._tell_changes(known, page)
            there |= {said.id for said in _flat(page)}
        self._tell_deleted(known, there)

    # --- predictions --------------------------------------------------------------------------------------

    def _notice_new(self, moved: Sequence[Touched]) -> None:
        highest = max((task.id for task in moved), default=0)
        if self._highest is not None and highest > self._highest:
            self._starter.want(from_the_beginning=False)
        self._highest = max(highest, self._highest or 0)

    def _look_at_model(self, project: Project) -> None:
        """Tasks without a prediction, where the version is another one or the number of tasks is: late imports have
        lower ids than tasks that were seen."""
        try:
            view = self._view_of(project)
        except LabelloopError as error:
            self._starter.view = None
            if str(error) != self._told:  # annotations are watched all the same
                log.warning("new tasks are not pre-annotated", project=self._project, reason=str(error))
            self._told = str(error)
            return
        self._told = ""
        self._starter.view = view
        if view.name == self._version and project.task_number == self._tasks:
            return
        query = query_of([without_version(view.name)])
        if self._client.tasks(self._project, page_size=1, include=("id",), query=query).total:
            self._starter.want(from_the_beginning=True)
        if view.name != self._version:
            self._store.watches.save(self._key, version=view.name)
        self._version, self._tasks = view.name, project.task_number


def _not_in_the_future(cursor: datetime) -> datetime:
    """A moment in the future (of a server whose clock was set back) must not hide what comes before it."""
    return min(cursor, datetime.now(UTC))


def _flat(rows: Mapping[int, Iterable[Said]]) -> list[Said]:
    return [said for said_on in rows.values() for said in said_on]

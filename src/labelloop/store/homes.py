"""Which project a number means: rows say "project 7", and every Label Studio has a project 7.

A project is known again by the moment when it was made, which Label Studio says in its API, in every event, and in each
call of a backend ("7.1795176116"). Its address would not do: one Label Studio has several.
"""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import sqlalchemy as sa

from labelloop.core.errors import ProjectElsewhere
from labelloop.store import schema
from labelloop.store.db import insert_or

QUARTER_S, FURTHEST_S = 900, 26 * 3600
"""In calls of a backend the moment is off by the zone of Label Studio's clock (1.23.2): by quarters of an hour, up to
14 hours and, when that zone is changed, by two such."""


class Homes:
    """Safe to use from several threads and processes. What was asked once is answered from memory."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._known: dict[int, int] = {}
        self._served: dict[int, str] = {}
        self._lock = threading.Lock()

    def knows(self, project_id: int | None, made_s: int | None) -> bool:
        """Whether `meet` would say yes without asking the database."""
        known = None if project_id is None else self._known.get(project_id)
        return project_id is None or made_s is None or (known is not None and same_moment(known, made_s))

    def meet(self, project_id: int | None, made_s: int | None, *, label_studio: str = "") -> None:
        """Remember when the project with this number was made (unix seconds), or see that it is the one that is known.
        What says no moment passes. Raises ProjectElsewhere."""
        if self.knows(project_id, made_s) and not label_studio:
            return
        if project_id is None or made_s is None or schema.as_id(project_id) is None:
            return
        table = schema.projects
        row = {"made_s": made_s, "label_studio": schema.as_text(label_studio, limit=500), "served_by": ""}
        with self._engine.begin() as connection:
            connection.execute(insert_or(connection, table, {"project_id": project_id}, row))
            found = connection.execute(sa.select(table).filter_by(project_id=project_id)).one()
            same = same_moment(found.made_s, made_s)
            if same and label_studio and not found.label_studio:
                connection.execute(sa.update(table).filter_by(project_id=project_id).values(label_studio=label_studio))
        if not same:
            raise _elsewhere(project_id, made_s, found.made_s, found.label_studio)
        with self._lock:
            self._known[project_id] = found.made_s
            self._served.pop(project_id, None)  # the row may be a new one

    def serve(self, project_id: int, version: str) -> None:
        """Say which version this process answers a project with though none is assigned, "" for none: commands and
        workers do not know what `labelloop serve --model` was given. The server that was asked last counts."""
        table = schema.projects
        with self._engine.begin() as connection:
            query = sa.update(table).filter_by(project_id=project_id).where(table.c.served_by != version)
            connection.execute(query.values(served_by=schema.as_text(version, limit=200)))
        self._served[project_id] = version

    def says(self, project_id: int, version: str) -> bool:
        """Whether `serve` was told the same before, by this process."""
        return self._served.get(project_id) == version

    def move(self, project_id: int) -> None:
        """Forget the project that had this number, and what was kept of it: another has it from now on. Versions that
        were trained for it stay, and so does the history of its jobs; those that have not ended are cancelled."""
        with self._engine.begin() as connection:
            for table in (
                schema.projects,
                schema.bindings,
                schema.moves,
                schema.events,
                schema.annotation_states,
                schema.watches,
                schema.failures,
                schema.loops,
                schema.runs,
                schema.observations,
                schema.fits,
            ):
                connection.execute(sa.delete(table).filter_by(project_id=project_id))
            connection.execute(sa.delete(schema.model_values).filter_by(project=str(project_id)))
            ended = {"state": "cancelled", "owner": None, "cancelling": False, "active_key": None}
            running = sa.update(schema.jobs).filter_by(project_id=project_id)
            running = running.where(schema.jobs.c.state.in_(("queued", "running")))
            connection.execute(running.values(finished_at=schema.now(), **ended))
        with self._lock:
            self._known.pop(project_id, None)
            self._served.pop(project_id, None)


def same_moment(one_s: int, other_s: int) -> bool:
    """Whether two moments, unix seconds, may be one that was told by clocks of different zones."""
    apart = abs(one_s - other_s)
    return apart % QUARTER_S == 0 and apart <= FURTHEST_S


def _elsewhere(project_id: int, made_s: int, known_s: int, label_studio: str) -> ProjectElsewhere:
    where = f" in {label_studio}" if label_studio else ""
    return ProjectElsewhere(
        f"Project {project_id} is known here as another one, made at {_text(known_s)}{where}; this one was made at "
        f"{_text(made_s)}. Two projects with one number would be mixed up.",
        hint="Give this Label Studio a labelloop of its own (another LABELLOOP_HOME or LABELLOOP_DATABASE_URL). Is the "
        f"other project gone for good: labelloop connect {project_id} --take-over",
    )


def _text(moment_s: int) -> str:
    try:
        return f"{datetime.fromtimestamp(moment_s, UTC):%Y-%m-%d %H:%M:%S}"
    except (OverflowError, ValueError, OSError):
        return str(moment_s)


def read_served(connection: sa.Connection) -> dict[int, str]:
    """By project the version that a server answers it with though none is assigned."""
    query = sa.select(schema.projects).where(schema.projects.c.served_by != "")
    return {row.project_id: row.served_by for row in connection.execute(query)}

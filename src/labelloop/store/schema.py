"""The tables. A change here needs a migration beside it in `migrations/versions`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import sqlalchemy as sa

from labelloop.core.decoding import convert

T = TypeVar("T")

metadata = sa.MetaData()


class Moment(sa.TypeDecorator[datetime]):
    """A moment with its zone. SQLite forgets the zone, and everything we store is UTC."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: sa.Dialect) -> datetime | None:
        del dialect
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    return datetime.now(UTC)


def as_struct(row: Mapping[Any, Any], kind: type[T]) -> T:
    """A row as a msgspec struct; SQLAlchemy's column names are a subclass of str that msgspec does not take."""
    return convert({str(name): value for name, value in row.items()}, kind, strict=False)


def as_id(value: int | None) -> int | None:
    """An id of Label Studio that a column can hold, else None: a request may say any number."""
    return value if value is not None and -(2**63) <= value < 2**63 else None


def as_text(value: str, *, limit: int) -> str:
    """A text that a column can hold. Postgres takes no NUL and keeps to the length; nobody takes half a surrogate pair,
    which a file name that is not UTF-8 brings into a message."""
    return value.replace("\0", "").encode(errors="replace").decode()[:limit]


versions = sa.Table(
    "versions",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False, doc="sha256 of the file and of what the card makes of it"),
    sa.Column("artifact", sa.String(500), nullable=False, doc="path below the artifacts URL; empty: built in"),
    sa.Column("card", sa.JSON, nullable=False),
    sa.Column("created_at", Moment, nullable=False),
    sa.Column("trained", sa.Boolean, nullable=False, server_default=sa.false(), doc="made by the loop for one project"),
    sa.UniqueConstraint("name", "digest"),
)

bindings = sa.Table(
    "bindings",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("name", sa.String(100), nullable=False),
    sa.Column("number", sa.Integer, doc="null: the newest version"),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("moved_at", Moment, nullable=False),
)

moves = sa.Table(
    "moves",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("project_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("source", sa.String(200), doc="NAME or NAME@NUMBER that the pointer left; null: it pointed nowhere"),
    sa.Column("target", sa.String(200), nullable=False),
    sa.Column("back", sa.Boolean, nullable=False, doc="a rollback"),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("by", sa.String(100), nullable=False),
    sa.Column("at", Moment, nullable=False),
)

lineage = sa.Table(
    "lineage",
    metadata,
    sa.Column("name", sa.String(100), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("project_id", sa.BigInteger, index=True),
    sa.Column("parent", sa.String(200), nullable=False, doc="NAME@NUMBER that the training began with; empty: none"),
    sa.Column("source", sa.String(200), nullable=False, server_default="", doc="NAME@NUMBER that was exported"),
    sa.Column("manifest", sa.String(64), nullable=False, doc="digest of the data set"),
    sa.Column("trainer", sa.String(100), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("verdict", sa.JSON, nullable=False),
    sa.Column("seconds", sa.Float, nullable=False),
    sa.Column("by", sa.String(100), nullable=False),
    sa.Column("at", Moment, nullable=False),
)

connections = sa.Table(
    "connections",
    metadata,
    sa.Column("url", sa.String(500), primary_key=True),
    sa.Column("token", sa.String(2000), nullable=False),
    sa.Column("saved_at", Moment, nullable=False),
)

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("made_s", sa.BigInteger, nullable=False),  # when Label Studio made it, unix seconds (see store/homes)
    sa.Column("label_studio", sa.String(500), nullable=False),  # where a person found it; empty: only calls came
    sa.Column("served_by", sa.String(200), nullable=False),  # name@number of `serve --model`; empty: no default answers
)

events = sa.Table(
    "events",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("received_at", Moment, nullable=False),
    sa.Column("action", sa.String(100), nullable=False),
    sa.Column("project_id", sa.BigInteger),
    sa.Column("task_ids", sa.JSON, nullable=False),
    sa.Column("annotation_ids", sa.JSON, nullable=False),
    sa.Column("handled_at", Moment, index=True),
)

annotation_states = sa.Table(
    "annotation_states",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("task_id", sa.BigInteger),
    sa.Column("updated_at", Moment),  # as Label Studio says; null: all that is known is that it is gone
    sa.Column("deleted", sa.Boolean, nullable=False),
    sa.Column("heard_at", Moment, nullable=False),
)
sa.Index("ix_annotation_states_heard", annotation_states.c.project_id, annotation_states.c.heard_at)

watches = sa.Table(
    "watches",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("label_studio", sa.String(500), primary_key=True),
    sa.Column("kept", sa.Boolean, nullable=False),  # servers go on with it after a restart
    sa.Column("cursor", Moment),  # Label Studio's moment up to which changes were seen; null: never looked
    sa.Column("version", sa.String(200), nullable=False),  # the one that tasks were last looked at for
    sa.Column("job_id", sa.String(40)),  # the last job that was started for it
    sa.Column("holder", sa.String(100)),  # who watches
    sa.Column("held_until_s", sa.Float, nullable=False),  # unix seconds
    sa.Column("error", sa.Text, nullable=False),
)

failures = sa.Table(
    "failures",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", Moment, nullable=False),
    sa.Column("project_id", sa.BigInteger, index=True),
    sa.Column("task_id", sa.BigInteger),
    sa.Column("model", sa.String(200), nullable=False),
    sa.Column("code", sa.String(50), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
)

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("id", sa.String(100), primary_key=True),
    sa.Column("machine", sa.String(200), nullable=False),  # where `pid` means something
    sa.Column("pid", sa.Integer, nullable=False),
    sa.Column("seen_s", sa.Float, nullable=False),  # unix seconds of the last sign of life
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(30), nullable=False),
    sa.Column("label_studio", sa.String(500), nullable=False),
    sa.Column("project_id", sa.BigInteger, nullable=False),
    sa.Column("model", sa.String(200), nullable=False),  # name@number
    sa.Column("version", sa.String(200), nullable=False),  # the version string in Label Studio
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("state", sa.String(20), nullable=False, index=True),
    sa.Column("run", sa.Integer, nullable=False),  # counts the times that a person started it
    sa.Column("only_failed", sa.Boolean, nullable=False),
    sa.Column("cancelling", sa.Boolean, nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("owner", sa.String(100)),  # the worker that runs it
    sa.Column("total", sa.Integer),  # tasks to do, as far as is known
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True)),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
    sa.Column("active_key", sa.String(800), unique=True),  # what it works on; null when it has ended
)

job_pages = sa.Table(
    "job_pages",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("cursor", sa.BigInteger),  # the last task id that was read; null for tasks that are tried again
    sa.Column("task_ids", sa.JSON, nullable=False),
    sa.Column("state", sa.String(20), nullable=False),
    sa.Column("owner", sa.String(100)),  # the worker that has it in hand; null when it is stored, or in nobody's
    sa.Column("items", sa.LargeBinary),  # compressed JSON of what is to be stored; null when it is
    sa.Column("replaces", sa.JSON, nullable=False),  # task id -> ids of predictions that the new one replaces
    sa.Column("sent_s", sa.Float),  # unix seconds of the last attempt to store it
    sa.Column("doubted", sa.Boolean, nullable=False),  # an attempt ended without an answer
    sa.Column("stored", sa.Integer, nullable=False),
    sa.Column("skipped", sa.Integer, nullable=False),  # tasks deleted, or predicted by others, meanwhile
)

film_parts = sa.Table(
    "film_parts",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("task_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("field", sa.String(200), primary_key=True),  # the key in the task's data
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),  # the last frame that was looked at
    sa.Column("frames_count", sa.Integer, nullable=False),  # of the film
    sa.Column("content", sa.LargeBinary, nullable=False),  # see serving/film_parts
    sa.Column("kept_s", sa.Float, nullable=False, server_default="0"),  # unix seconds
)

job_failures = sa.Table(
    "job_failures",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("task_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("code", sa.String(50), nullable=False),
    sa.Column("message", sa.Text, nullable=False),
    sa.Column("again", sa.Boolean, nullable=False),  # waits to be tried again
)

job_lines = sa.Table(
    "job_lines",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("job_id", sa.String(40), nullable=False, index=True),
    sa.Column("at", sa.DateTime(timezone=True), nullable=False),
    sa.Column("level", sa.String(10), nullable=False),
    sa.Column("text", sa.Text, nullable=False),
)

loops = sa.Table(
    "loops",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("label_studio", sa.String(500), nullable=False),
    sa.Column("enabled", sa.Boolean, nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("seen_event", sa.BigInteger, nullable=False),  # the newest event that the last run took into account
    sa.Column("run_at", Moment),  # when the last run began
    sa.Column("changed_at", Moment, nullable=False),
)

runs = sa.Table(
    "runs",
    metadata,
    sa.Column("job_id", sa.String(40), primary_key=True),
    sa.Column("project_id", sa.BigInteger, nullable=False, index=True),
    sa.Column("reason", sa.String(500), nullable=False),
    sa.Column("options", sa.JSON, nullable=False),
    sa.Column("stage", sa.String(20), nullable=False),
    sa.Column("trainer", sa.String(100), nullable=False),
    sa.Column("base", sa.String(200), nullable=False),  # name@number; empty: from nothing
    sa.Column("candidate", sa.String(200), nullable=False),
    sa.Column("manifest", sa.String(64), nullable=False),
    sa.Column("counts", sa.JSON, nullable=False),
    sa.Column("curve", sa.JSON, nullable=False),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("outcome", sa.String(20)),
    sa.Column("verdict", sa.Text, nullable=False),
    sa.Column("started_at", Moment, nullable=False),
    sa.Column("ended_at", Moment),
)

observations = sa.Table(
    "observations",
    metadata,
    sa.Column("project_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("version", sa.String(200), primary_key=True),  # the version string in Label Studio
    sa.Column("task_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("content", sa.LargeBinary, nullable=False),  # what learning/memory makes of a prediction
    sa.Column("inconsistency", sa.Float),  # null: nobody looked twice
    sa.Column("embedding", sa.LargeBinary),  # float32, little-endian; null: nobody asked for it
)

model_values = sa.Table(
    "model_values",
    metadata,
    sa.Column("model", sa.String(100), primary_key=True),  # the name alone: what is kept outlives versions
    sa.Column("project", sa.String(40), primary_key=True),  # Label Studio's id as a text; empty: of no project
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("value", sa.JSON),
    sa.Column("changed_at", Moment, nullable=False),
)

fits = sa.Table(
    "fits",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("model", sa.String(100), nullable=False),
    sa.Column("project_id", sa.BigInteger, nullable=False),
    sa.Column("action", sa.String(100), nullable=False),
    sa.Column("payload", sa.LargeBinary, nullable=False),  # compressed JSON
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("received_at", Moment, nullable=False),
)
sa.Index("ix_fits_whose", fits.c.model, fits.c.project_id)

"""The tables. A change here needs a migration beside it in `migrations/versions`."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa

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
    return msgspec.convert({str(name): value for name, value in row.items()}, kind, strict=False)


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

connections = sa.Table(
    "connections",
    metadata,
    sa.Column("url", sa.String(500), primary_key=True),
    sa.Column("token", sa.String(2000), nullable=False),
    sa.Column("saved_at", Moment, nullable=False),
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

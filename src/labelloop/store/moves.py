"""The history of the pointers: which model served which project, since when, and why.

A pointer and its history are written in one transaction, so that neither is ever without the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec
import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import upsert

NOTHING = "none"
"""Where a pointer leads that is to lead to no model; no model has this name."""


class Move(msgspec.Struct, frozen=True):
    """A project's pointer went to `target`, "NAME" (follows the newest version), "NAME@NUMBER" or "none". `source` is
    the version that served until then, None where nothing is known to have served. `back`: this is a rollback."""

    project_id: int
    source: str | None
    target: str
    back: bool
    reason: str
    by: str
    at: datetime


class Pointer(msgspec.Struct, frozen=True):
    """Where a project points: `spec` is "NAME", "NAME@NUMBER" or "none", since `at`."""

    spec: str
    at: datetime


def spec_of(name: str, number: int | None) -> str:
    return name if number is None else f"{name}@{number}"


def pointer(connection: sa.Connection, project_id: int) -> Pointer | None:
    """Where a project points now; nobody else moves it before this transaction ends."""
    table = schema.bindings
    # An update that changes nothing takes the lock; a read alone would let two moves begin at the same place.
    connection.execute(sa.update(table).filter_by(project_id=project_id).values(name=table.c.name))
    query = sa.select(table.c.name, table.c.number, table.c.moved_at).filter_by(project_id=project_id)
    row = connection.execute(query).first()
    return None if row is None else Pointer(spec_of(row.name, row.number), row.moved_at)


def point(connection: sa.Connection, move: Move, *, name: str, number: int | None) -> None:
    """Point to `name` and `number`, which `move.target` spells."""
    row = {"name": name, "number": number, "reason": move.reason, "moved_at": move.at}
    upsert(connection, schema.bindings, {"project_id": move.project_id}, row)


def remember(connection: sa.Connection, move: Move) -> None:
    """Add a move to the history."""
    connection.execute(sa.insert(schema.moves).values(**msgspec.structs.asdict(move)))


def read(connection: sa.Connection, project_id: int) -> list[Move]:
    """All moves of a project, oldest first."""
    query = sa.select(schema.moves).filter_by(project_id=project_id).order_by(schema.moves.c.id)
    return [schema.as_struct(row, Move) for row in connection.execute(query).mappings()]


def stack_of(moves: Sequence[Move]) -> list[tuple[str, datetime]]:
    """What repeated rollbacks lead through, the present last, each with a moment when it was there.

    What is not the present is a version with its number: the one that served when the pointer left, whatever a name
    would mean by now. A rollback takes away what it left, so the next one goes further back.
    """
    stack: list[tuple[str, datetime]] = []
    for move in moves:
        if move.source is not None:
            stack[-1:] = [(move.source, move.at)]
        before = [version for version, _ in stack[:-1]]
        if not move.back:
            stack.append((move.target, move.at))
        elif move.target in before:
            del stack[len(before) - before[::-1].index(move.target) :]
        else:  # to what the name that it left had meant before
            stack[-1:] = [(move.target, move.at)]
    return stack

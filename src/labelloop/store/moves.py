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


class Move(msgspec.Struct, frozen=True):
    """A project's pointer went from `source` to `target`: "NAME" (follows the newest version) or "NAME@NUMBER".
    `source` None: it pointed nowhere, and nothing else was known to serve the project. `back`: this is a rollback."""

    project_id: int
    source: str | None
    target: str
    back: bool
    reason: str
    by: str
    at: datetime


def pointer(connection: sa.Connection, project_id: int) -> str | None:
    """Where a project points now; nobody else moves it before this transaction ends."""
    table = schema.bindings
    # An update that changes nothing takes the lock; a read alone would let two moves begin at the same place.
    connection.execute(sa.update(table).filter_by(project_id=project_id).values(name=table.c.name))
    row = connection.execute(sa.select(table.c.name, table.c.number).filter_by(project_id=project_id)).first()
    return None if row is None else spec_of(row.name, row.number)


def spec_of(name: str, number: int | None) -> str:
    return name if number is None else f"{name}@{number}"


def write(connection: sa.Connection, move: Move, *, name: str, number: int | None) -> None:
    """Point to `name` and `number`, which `move.target` spells, and remember it. A move to where the pointer is already
    leaves no trace in the history."""
    row = {"name": name, "number": number, "reason": move.reason, "moved_at": move.at}
    upsert(connection, schema.bindings, {"project_id": move.project_id}, row)
    if move.source != move.target:
        connection.execute(sa.insert(schema.moves).values(**msgspec.structs.asdict(move)))


def read(connection: sa.Connection, project_id: int) -> list[Move]:
    """All moves of a project, oldest first."""
    query = sa.select(schema.moves).filter_by(project_id=project_id).order_by(schema.moves.c.id)
    return [schema.as_struct(row, Move) for row in connection.execute(query).mappings()]


def stack_of(moves: Sequence[Move]) -> list[tuple[str, datetime]]:
    """Where repeated rollbacks lead, the present last: targets, and when the pointer last came to each by going
    forward. A rollback takes away what it left, so the next one goes further back."""
    stack: list[tuple[str, datetime]] = []
    for move in moves:
        if not stack and move.source is not None:
            stack.append((move.source, move.at))
        if not move.back:
            stack.append((move.target, move.at))
            continue
        while len(stack) > 1:
            stack.pop()
            if stack[-1][0] == move.target:
                break
    return stack

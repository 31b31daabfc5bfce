"""What models that are other people's code shall learn from: Label Studio's events, whole, until they were heard.

The payload names people, so it is kept only until the model has heard it.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import impatient

START = "START_TRAINING"
HEARD = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", START)
"""What the official SDK gives to `fit`; for others its models are not written."""

KEPT = 10_000
"""Events that may wait for a model; of more the oldest are forgotten."""


class Fit(msgspec.Struct, frozen=True):
    """One event for one model. `attempts` counts how often its hearing began."""

    id: int
    model: str
    project_id: int
    action: str
    payload: Mapping[str, Any]
    attempts: int


class Fits:
    """Safe to use from several threads and processes. `add` is called while an annotator waits."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine
        self._hurried = impatient(engine)

    def add(self, model: str, project_id: int, events: Sequence[tuple[str, Mapping[str, Any]]]) -> None:
        """Keep events, action and payload, for a model: all of them or none. Presses on Start Training that nobody has
        heard yet are one."""
        table = schema.fits
        mine = sa.delete(table).filter_by(model=model, project_id=project_id)
        rows = [
            {
                "model": model,
                "project_id": project_id,
                "action": schema.as_text(action, limit=100),
                "attempts": 0,
                "payload": zlib.compress(msgspec.json.encode(payload), 1),
                "received_at": schema.now(),
            }
            for action, payload in events
        ]
        if not rows:
            return
        with self._hurried.begin() as connection:
            if any(row["action"] == START for row in rows):
                connection.execute(mine.where(table.c.action == START, table.c.attempts == 0))
            connection.execute(sa.insert(table), rows)
            newest = int(connection.execute(sa.select(sa.func.max(table.c.id))).scalar_one())
            if newest % 100 < len(rows):
                connection.execute(mine.where(table.c.id <= newest - KEPT))

    def waiting(self) -> list[tuple[str, int]]:
        """Models and projects that have something to hear."""
        query = sa.select(schema.fits.c.model, schema.fits.c.project_id).distinct()
        with self._engine.connect() as connection:
            return [(row.model, row.project_id) for row in connection.execute(query)]

    def next(self, model: str, project_id: int) -> Fit | None:
        """The oldest event of a model and project."""
        query = sa.select(schema.fits).filter_by(model=model, project_id=project_id).order_by(schema.fits.c.id).limit(1)
        with self._engine.connect() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            return None
        payload = msgspec.json.decode(zlib.decompress(row["payload"]))
        return Fit(row["id"], row["model"], row["project_id"], row["action"], payload, row["attempts"])

    def begin(self, fit: Fit) -> None:
        """Its hearing begins; it may be the last thing that this process does."""
        with self._engine.begin() as connection:
            connection.execute(sa.update(schema.fits).filter_by(id=fit.id).values(attempts=schema.fits.c.attempts + 1))

    def heard(self, fit: Fit, *, all_before: bool = False) -> None:
        """Forget an event; with `all_before` also those that came earlier for the same model and project."""
        query = sa.delete(schema.fits).filter_by(model=fit.model, project_id=fit.project_id)
        ids = schema.fits.c.id
        with self._engine.begin() as connection:
            connection.execute(query.where(ids <= fit.id if all_before else ids == fit.id))

    def newest(self, model: str, project_id: int) -> int:
        """The id of the newest event that waits, 0 without one."""
        query = sa.select(sa.func.max(schema.fits.c.id)).filter_by(model=model, project_id=project_id)
        with self._engine.connect() as connection:
            return int(connection.execute(query).scalar() or 0)

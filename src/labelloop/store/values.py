"""What models that are other people's code keep: small values by model, project and key.

Every reader asks the database: with several processes, a value remembered by one is a value that is wrong in another.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import upsert

VERSION = "model_version"
"""The key under which a model says which version it is, if it does."""
LENS = {"model": "", "project": "", "key": "lens"}
"""The row of what `labelloop serve` was told about every model and project: no model has an empty name."""


class Values:
    """Safe to use from several threads and processes. `project` is Label Studio's id as a text, "" for none; values are
    what JSON can write."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def get(self, model: str, project: str, key: str) -> Any:
        """None where there is none."""
        query = sa.select(schema.model_values.c.value).filter_by(model=model, project=project, key=key)
        with self._engine.connect() as connection:
            return connection.execute(query).scalar()

    def set(self, model: str, project: str, key: str, value: Any) -> None:
        row = {"model": model, "project": project, "key": key}
        with self._engine.begin() as connection:
            upsert(connection, schema.model_values, row, {"value": value, "changed_at": schema.now()})


def read_lens(connection: sa.Connection) -> Mapping[str, Any]:
    """What the server that started last was told about drawing (Registry.save_lens)."""
    value = connection.execute(sa.select(schema.model_values.c.value).filter_by(**LENS)).scalar()
    return value if isinstance(value, dict) else {}


def read_versions(connection: sa.Connection) -> Mapping[tuple[str, str], str]:
    """By model and project the versions that models say."""
    query = sa.select(schema.model_values).filter_by(key=VERSION)
    return {(row.model, row.project): str(row.value) for row in connection.execute(query) if row.value}

"""Where trained versions come from: parent, data, trainer, figures, time, who, and what the gate said."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa

from labelloop.store import schema
from labelloop.store.db import upsert


class Lineage(msgspec.Struct, frozen=True):
    """The making of the version `name`@`number` for `project_id`.

    `parent` is the version that the training began with ("" for none), `manifest` the digest of the data set, `options`
    what the trainer was told, `source` the version that the file was exported from ("" where it is what was trained),
    `metrics` and `verdict` what `learning/` said about it as JSON (empty until it was
    evaluated), `seconds` how long the training took, `by` who asked for it.
    """

    name: str
    number: int
    project_id: int | None
    parent: str
    manifest: str
    trainer: str
    seconds: float
    by: str
    at: datetime
    options: Mapping[str, Any] = {}
    metrics: Mapping[str, Any] = {}
    verdict: Mapping[str, Any] = {}
    source: str = ""

    @property
    def id(self) -> str:
        """ "name@number"."""
        return f"{self.name}@{self.number}"

    @property
    def summary(self) -> list[str]:
        """A few lines for people."""
        begun = f"from {self.parent}" if self.parent else "from scratch"
        made = f"trained {begun} by {self.trainer} in {self.seconds:.0f} s"
        project = "" if self.project_id is None else f" for project {self.project_id}"
        asked = f", asked for by {self.by}" if self.by else ""
        sentence = str(self.verdict.get("sentence") or "")
        exported = f"; exported from {self.source}, which later runs go on from" if self.source else ""
        return [f"{made}{project}{asked}{exported}", f"data set {self.manifest}", *([sentence] if sentence else [])]


class Lineages:
    """Rows of lineage. Safe to use from several threads and processes."""

    def __init__(self, engine: sa.Engine) -> None:
        self._engine = engine

    def record(self, lineage: Lineage) -> None:
        """Keep it, in place of what was known of that version."""
        row = msgspec.to_builtins(lineage, builtin_types=(datetime,))
        row["project_id"] = schema.as_id(lineage.project_id)
        for name, limit in (("parent", 200), ("source", 200), ("manifest", 64), ("trainer", 100), ("by", 100)):
            row[name] = schema.as_text(row[name], limit=limit)
        key = {"name": row.pop("name"), "number": row.pop("number")}
        with self._engine.begin() as connection:
            upsert(connection, schema.lineage, key, row)

    def of(self, name: str, number: int) -> Lineage | None:
        """The lineage of a version; None for one that people added."""
        with self._engine.connect() as connection:
            row = connection.execute(sa.select(schema.lineage).filter_by(name=name, number=number)).mappings().first()
        return None if row is None else schema.as_struct(row, Lineage)

    def of_project(self, project_id: int, *, limit: int = 20) -> list[Lineage]:
        """What was trained for a project, newest first."""
        table = schema.lineage
        query = sa.select(table).filter_by(project_id=project_id).order_by(table.c.at.desc(), table.c.number.desc())
        with self._engine.connect() as connection:
            return [schema.as_struct(row, Lineage) for row in connection.execute(query.limit(limit)).mappings()]

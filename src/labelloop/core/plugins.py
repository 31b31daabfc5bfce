"""Name -> object. Built-ins and strangers use the same door: Python entry points.

A package adds an engine with
    [project.entry-points."labelloop.engines"]
    mine = "my_package:MyEngine"
and a trainer in the group `labelloop.trainers`; labelloop's own are declared in its pyproject.toml in exactly this way.
"""

from __future__ import annotations

import difflib
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

from labelloop.core.errors import LabelloopError

Group = Literal["labelloop.engines", "labelloop.trainers"]


@lru_cache
def names(group: Group) -> tuple[str, ...]:
    """Names registered in `group`, sorted."""
    return tuple(sorted({point.name for point in entry_points(group=group)}))


@lru_cache
def load(group: Group, name: str) -> Any:
    """Import and return the object called `name`. Raises LabelloopError with the near names when there is none."""
    return entry_point(group, name).load()


def entry_point(group: Group, name: str) -> EntryPoint:
    """Where the object called `name` is, not imported yet. Raises LabelloopError like `load`."""
    for point in entry_points(group=group, name=name):
        return point
    known = names(group)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known) or 'none; is labelloop installed?'}."
    raise LabelloopError(f"There is no {group.rsplit('.', 1)[1].rstrip('s')} called {name!r}.", hint=hint)

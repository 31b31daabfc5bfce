"""What Label Studio asks about: tasks, and references to the media in them."""

from __future__ import annotations

from typing import Any

import msgspec

from labelloop.core.regions import MediaKey


class MediaRef(msgspec.Struct, frozen=True):
    """A reference to one picture of one task, as the task names it: `/data/upload/…`, `/data/local-files/?d=…`,
    `http(s)://…`, `s3://…` and other cloud URIs, `data:…`. `project_id` chooses the credentials; `task_id` is
    needed to let Label Studio resolve cloud URIs."""

    uri: str
    key: MediaKey
    task_id: int | None = None
    project_id: int | None = None


class Task(msgspec.Struct, frozen=True):
    """One task. `data` is what the project imported, untouched."""

    id: int | None
    data: dict[str, Any]
    project_id: int | None = None

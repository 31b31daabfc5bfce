"""What Label Studio asks about: tasks, and references to the media in them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from labelloop.core.regions import MediaKey, Region


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


class Prompt(msgspec.Struct, frozen=True):
    """What an annotator drew with a smart tool so far: `include` marks what is wanted, `exclude` what is not."""

    include: tuple[Region, ...] = ()
    exclude: tuple[Region, ...] = ()


class Event(msgspec.Struct, frozen=True):
    """Something that happened in Label Studio, reduced to ids: the payload holds people's e-mail addresses and the
    project's secret, and what it says is fetched again before it is used."""

    action: str
    project_id: int | None
    task_ids: tuple[int, ...] = ()
    annotation_ids: tuple[int, ...] = ()
    updated_at: tuple[datetime | None, ...] = ()
    """Label Studio's own moments of these annotations, in their order; empty where it says none."""

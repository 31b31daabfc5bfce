"""What Label Studio asks about: tasks, and references to the media in them."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Literal

import msgspec

from labelloop.core.regions import MediaKey, Region, Size

Learns = Literal["boxes", "masks", "choices"]
"""What a project teaches a model. Masks: where nothing but a brush draws, so that what knows boxes only could draw
nothing there."""


class MediaRef(msgspec.Struct, frozen=True):
    """A reference to one picture of one task, as the task names it: `/data/upload/…`, `/data/local-files/?d=…`,
    `http(s)://…`, `s3://…` and other cloud URIs, `data:…`. `project_id` chooses the credentials; `task_id` is
    needed to let Label Studio resolve cloud URIs."""

    uri: str
    key: MediaKey
    task_id: int | None = None
    project_id: int | None = None


class TextRef(MediaRef, frozen=True):
    """A text of a task: `uri` is the text itself or, with `by_url`, its address. With `markup` it is HTML."""

    by_url: bool = False
    markup: bool = False


class Task(msgspec.Struct, frozen=True):
    """One task. `data` is what the project imported, untouched. `whole` is the task as Label Studio sent it, with its
    annotations and earlier predictions; kept only for models that want it."""

    id: int | None
    data: dict[str, Any]
    project_id: int | None = None
    whole: Mapping[str, Any] | None = None


class Annotation(msgspec.Struct, frozen=True):
    """What one person says about one task: Regions in the project's labels, as a model's Prediction has them.

    `sizes` gives the upright size of each picture that a region names, so nothing where there is no region: the person
    looked, and saw nothing. `skipped`: the task was passed on (Label Studio's `was_cancelled`), and the regions mean
    nothing. `ground_truth`: marked as right beyond doubt. `author_id` and `updated_at` are None where nobody says.
    """

    id: int
    task_id: int
    regions: tuple[Region, ...] = ()
    sizes: Mapping[MediaKey, Size] = {}
    author_id: int | None = None
    updated_at: datetime | None = None
    ground_truth: bool = False
    skipped: bool = False


class Prompt(msgspec.Struct, frozen=True):
    """What an annotator drew with a smart tool so far: `include` marks what is wanted, `exclude` what is not. `context`
    is the same as Label Studio sent it."""

    include: tuple[Region, ...] = ()
    exclude: tuple[Region, ...] = ()
    context: Mapping[str, Any] = {}


class Event(msgspec.Struct, frozen=True):
    """Something that happened in Label Studio, reduced to ids: the payload holds people's e-mail addresses and the
    project's secret, and what it says is fetched again before it is used."""

    action: str
    project_id: int | None
    task_ids: tuple[int, ...] = ()
    annotation_ids: tuple[int, ...] = ()
    updated_at: tuple[datetime | None, ...] = ()
    """Label Studio's own moments of these annotations, in their order; empty where it says none."""
    made_s: int | None = None
    """When the project was made, unix seconds: projects of two Label Studios have the same ids."""

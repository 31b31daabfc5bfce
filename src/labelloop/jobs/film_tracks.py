"""What people drew on films, task by task, out of an export: whose annotation counts, what its film is called, where it
lies, and the boxes on each frame."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import msgspec

from labelloop.core.regions import Box, Region, Size, Track
from labelloop.labelstudio.video import PERCENT, ExportError, decode_track, video_results, with_track
from labelloop.media.filming import SUFFIXES
from labelloop.video.interpolate import Rotation, interpolate

FILM_SUFFIXES = frozenset({".mp4", ".webm", ".mov", ".mkv", ".avi", ".m4v", ".ogv", ".ogg"})
UNLABELLED = "object"
"""The class of a track that has no label."""


class FilmTask(msgspec.Struct, frozen=True):
    """The tracks of one task: a Region with a Track each, several with one id where it has several labels. `name` is
    the film's, without suffix, and unique in the export."""

    task_id: int | None
    name: str
    files: tuple[str, ...]
    regions: tuple[Region, ...]
    size: Size | None = None

    @property
    def frames_count(self) -> int:
        return max((track.frames_count for _, track in self.tracks()), default=0)

    @property
    def duration_s(self) -> float:
        return max((track.duration_s for _, track in self.tracks()), default=0.0)

    def tracks(self) -> Iterator[tuple[Region, Track]]:
        for region in self.regions:
            if isinstance(region.shape, Track):
                yield region, region.shape


class Placed(msgspec.Struct, frozen=True):
    """A box on a frame. `number` counts the tracks of the film from 1; two labels of one track share it."""

    frame: int
    number: int
    label: str
    box: Box
    time_s: float | None
    auto: bool
    id: str | None


def rewrite(
    tasks: Iterable[Mapping[str, Any]], change: Callable[[Track], Track], *, size: Size = PERCENT
) -> tuple[list[dict[str, Any]], list[str]]:
    """The export with every track, also those of predictions, as `change` makes it, and what cannot be read, which
    stays as it was. A track without key frames is left out, as Label Studio's own export does."""
    problems: list[str] = []

    def changed(item: Any) -> list[Any]:
        if not list(video_results([item])):
            return [item]
        try:
            (region, *_) = decode_track(item, size=size)
        except ExportError as error:
            problems.append(error.message)
            return [item]
        track = region.shape
        if not isinstance(track, Track) or not track.keyframes:
            return []
        return [with_track(item, change(track), size=size)]

    def saying(row: Any) -> Any:
        if not isinstance(row, dict) or not isinstance(row.get("result"), list):
            return row
        return row | {"result": [new for item in row["result"] for new in changed(item)]}

    found = []
    for task in tasks:
        lists = {
            name: task[name] for name in ("annotations", "predictions", "drafts") if isinstance(task.get(name), list)
        }
        found.append({**task, **{name: [saying(row) for row in rows] for name, rows in lists.items()}})
    return found, problems


def film_tasks(
    tasks: Iterable[Mapping[str, Any]], *, size_of: Callable[[FilmTask], Size | None]
) -> tuple[list[FilmTask], list[str]]:
    """The tasks that have tracks, in pixels of the size that `size_of` gives (percent where it gives None), and what
    cannot be read."""
    found: list[FilmTask] = []
    problems: list[str] = []
    taken: set[str] = set()
    for task in tasks:
        results = list(video_results(_chosen(task).get("result")))
        if not results:
            continue
        bare = _named(task, taken)
        size = size_of(bare)
        regions: list[Region] = []
        for number, item in enumerate(results, start=1):
            try:
                # an id of ours where it has none: labels of one track are known by it
                regions += decode_track({**item, "id": item.get("id") or f"track-{number}"}, size=size or PERCENT)
            except ExportError as error:
                problems.append(f"Task {bare.task_id}: {error.message}")
        found.append(msgspec.structs.replace(bare, regions=tuple(regions), size=size))
    return found, problems


def _chosen(task: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation that counts: ground truth before others, then the one changed last; never a skipped one."""
    rows = task.get("annotations")
    rows = [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    valid = [row for row in rows if not row.get("was_cancelled")]
    return max(valid, key=lambda row: (row.get("ground_truth") is True, str(row.get("updated_at") or "")), default={})


def _named(task: Mapping[str, Any], taken: set[str]) -> FilmTask:
    data = task.get("data")
    texts = [_file_name(value) for value in data.values() if isinstance(value, str)] if isinstance(data, dict) else []
    films = [text for text in texts if PurePosixPath(text).suffix.lower() in FILM_SUFFIXES] or texts
    number = task.get("id")
    task_id = number if type(number) is int else None
    plain = re.sub(r"^[0-9a-f]{8}-", "", films[0]) if films else ""
    name = PurePosixPath(plain).stem.strip(". ") or f"task-{task_id}"
    if name in taken:
        name = f"{name}-{task_id}"
    taken.add(name)
    return FilmTask(task_id, name, tuple(dict.fromkeys([*films[:1], plain])) if films else (), ())


def _file_name(reference: str) -> str:
    """`/data/local-files/?d=a/b%20c.mp4` -> `b c.mp4`; whatever comes out is a name and no path."""
    try:
        parts = urlsplit(reference)
    except ValueError:  # brackets that are no IPv6 address
        return ""
    inside = parse_qs(parts.query).get("d")
    name = PurePosixPath(inside[0] if inside else unquote(parts.path)).name
    return re.sub(r"[\x00-\x1f\\:*?\"<>|]", "_", name)


def placed(task: FilmTask, *, rotation: Rotation = "linear") -> Iterator[Placed]:
    """Every box of a task, track by track. A thing that touches no frame of the film is passed over."""
    numbers: dict[str | None, int] = {}
    for region, track in task.tracks():
        number = numbers.setdefault(region.id, len(numbers) + 1)
        for key in interpolate(track, rotation=rotation).keyframes:
            label = region.label or UNLABELLED
            yield Placed(key.frame, number, label, key.box, key.time_s, key.auto, region.id)


def find_film(task: FilmTask, place: Path, *, alone: bool) -> Path | None:
    """Where the film of a task lies: `place` itself, or in the folder `place` a file with the name that the task gives
    (also without the eight digits that an upload puts before it), or a folder of pictures with the film's name. A
    folder that holds pictures itself is the film where the export has only one (`alone`)."""
    if not place.is_dir():
        return place if alone and place.exists() else None
    for name in task.files:
        if (place / name).is_file():
            return place / name
    if (place / task.name).is_dir():
        return place / task.name
    return place if alone and any(path.suffix.lower() in SUFFIXES for path in place.iterdir()) else None

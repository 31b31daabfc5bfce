"""The folder that every trainer reads: pictures, COCO files and the manifest.

DIR/images/1234.jpg   upright whatever reads them
DIR/train.json        COCO detection data; categories are the project's labels, ids 1..n in the config's order
DIR/val.json          the same for what is held out
DIR/manifest.json     what is in it, and why the rest is not

Where choices are learned there is `train.jsonl` and `val.jsonl` instead: {"task_id", "file_name" or "text", "labels"}.
"""

from __future__ import annotations

import hashlib
import secrets
import shutil
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import msgspec

from labelloop.core.errors import MediaError
from labelloop.core.regions import Size
from labelloop.core.tasks import MediaRef, TextRef
from labelloop.formats import coco, yolo
from labelloop.formats.coco import DatasetError
from labelloop.formats.yolo import link_or_copy
from labelloop.learning.manifest import (
    SIDES,
    Item,
    LeftOut,
    Manifest,
    Reads,
    as_coco,
    as_rows,
    decode,
    encode,
    scaled,
    without_twins,
)
from labelloop.media.text import decode_text, plain_text
from labelloop.media.upright import upright

Fetch = Callable[[MediaRef], bytes]
"""The bytes of a picture as they are stored; raises MediaError. Called from several threads."""

Progress = Callable[[int, int], None]
"""Called with pictures done and pictures in all."""

MANIFEST = "manifest.json"


_Job = tuple[Item, int, str]
"""An item, its project, and the name of its file without suffix."""


class _Kept(NamedTuple):
    """A picture of an earlier folder: its file, upright, and its size."""

    path: Path
    size: Size


class Folder(NamedTuple):
    """A data set on disk."""

    path: Path
    manifest: Manifest

    def side(self, name: str) -> coco.Dataset:
        """ "train" or "val"."""
        return coco.read(self.path / f"{name}.json")


def read_folder(path: Path) -> Folder:
    """Open a folder that `write_folder` made. Raises DatasetError."""
    try:
        return Folder(path, decode((path / MANIFEST).read_bytes()))
    except OSError as error:
        hint = "Make one: labelloop dataset export PROJECT -o DIR"
        raise DatasetError(f"{path} holds no data set: {error.strerror or error}.", hint=hint) from error


def write_folder(
    manifest: Manifest,
    target: Path,
    fetch: Fetch,
    *,
    max_pixels: int,
    workers: int = 4,
    earlier: Path | None = None,
    progress: Progress | None = None,
) -> Folder:
    """Fetch the pictures of `manifest` and write the folder `target`, new or empty; it appears whole or not at all. The
    manifest in it is complete: sizes, hashes and names of the pictures, without those that cannot be had.

    `earlier` is a folder of the same project: what is in it already is linked instead of decoded again.
    Raises DatasetError when something is in `target`, and when most pictures cannot be had: that is an outage, no data
    set.
    """
    with _appearing(target) as part:
        pictures = _Pictures(part / "images", fetch, max_pixels, _kept(earlier), manifest.reads)
        pictures.folder.mkdir()
        complete = without_twins(_with_pictures(manifest, pictures, workers, progress or (lambda *_: None)))
        pictures.remove_all_but({item.file_name for item in complete.items})
        for side in SIDES:
            if complete.learns != "choices":
                coco.write(part / f"{side}.json", as_coco(complete, side))
            else:
                rows = [msgspec.json.encode(row) + b"\n" for row in as_rows(complete, side)]
                (part / f"{side}.jsonl").write_bytes(b"".join(rows))
        (part / MANIFEST).write_bytes(encode(complete))
    return Folder(target, complete)


def write_yolo(folder: Folder, target: Path) -> None:
    """The same data set as a YOLO folder, new or empty, with its manifest; pictures are links into the same files.
    Raises DatasetError for one without boxes."""
    if folder.manifest.learns == "choices":
        raise DatasetError("The project has choices and no boxes, which YOLO has no place for.", hint="Leave --format.")
    with _appearing(target) as part:
        yolo.write(part, {side: folder.side(side) for side in SIDES}, images=folder.path / "images")
        (part / MANIFEST).write_bytes(encode(folder.manifest))


@contextmanager
def _appearing(target: Path) -> Iterator[Path]:
    """A folder that takes the place of `target` when all went well, and is gone otherwise."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise DatasetError(f"{target} is there and not empty.", hint="Give another folder, or remove this one.")
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        part.mkdir(parents=True)
        yield part
        part.rename(target)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _with_pictures(manifest: Manifest, pictures: _Pictures, workers: int, progress: Progress) -> Manifest:
    """The manifest of the pictures that could be had."""
    done: list[Item] = []
    lost: list[LeftOut] = []
    jobs = [(item, manifest.project_id, name) for item, name in _named(manifest.items)]
    for outcome in _in_order(pictures.write, jobs, workers):
        if isinstance(outcome, Item):
            done.append(outcome)
        else:
            lost.append(outcome)
        progress(len(done) + len(lost), len(jobs))
    if 2 * len(lost) > len(jobs):
        raise DatasetError(
            f"{len(lost)} of {len(jobs)} {manifest.reads} cannot be had, the first because: {lost[0].detail}",
            hint="Is everything up that they are fetched from? See: labelloop doctor PROJECT",
        )
    left_out = tuple(sorted([*manifest.left_out, *lost]))
    return msgspec.structs.replace(manifest, items=tuple(done), left_out=left_out)


def _named(items: Iterable[Item]) -> Iterator[tuple[Item, str]]:
    """Items with a name for their file: the task, and a number where it is not the task's first picture."""
    seen = Counter[int]()
    for item in items:
        seen[item.task_id] += 1
        number = seen[item.task_id]
        yield item, f"{item.task_id}" if number == 1 else f"{item.task_id}-{number}"


class _Pictures(NamedTuple):
    """Where pictures go, and where they (and texts) come from."""

    folder: Path
    fetch: Fetch
    max_pixels: int
    kept: Mapping[str, _Kept]
    reads: Reads = "pictures"

    def write(self, job: _Job) -> Item | LeftOut:
        """The item with what is known once its picture is written; its boxes are moved to the true size of the picture
        where the annotation names another."""
        item, project_id, name = job
        if self.reads == "texts":
            return self._read(item, project_id)
        try:
            data = self.fetch(MediaRef(item.uri, item.media, item.task_id, project_id))
            digest = hashlib.sha256(data).hexdigest()
            path, size = self._stored(data, digest, name)
        except MediaError as error:
            return LeftOut(item.task_id, error.code, str(error))
        drawn = item.drawn
        if item.size is not None and item.size != size:
            drawn = scaled(drawn, x=size.width / item.size.width, y=size.height / item.size.height)
        return msgspec.structs.replace(item, size=size, drawn=drawn, sha256=digest, file_name=path.name)

    def _read(self, item: Item, project_id: int) -> Item | LeftOut:
        """The item with its text, which is fetched where the task has only its address."""
        text = item.text
        if text is None:
            try:
                text = decode_text(self.fetch(TextRef(item.uri, item.media, item.task_id, project_id, by_url=True)))
            except MediaError as error:
                return LeftOut(item.task_id, error.code, str(error))
            text = plain_text(text) if item.markup else text
        return msgspec.structs.replace(item, text=text, sha256=hashlib.sha256(text.encode()).hexdigest())

    def _stored(self, data: bytes, digest: str, name: str) -> tuple[Path, Size]:
        known = self.kept.get(digest)
        if known is not None:
            path = self.folder / f"{name}{known.path.suffix}"
            link_or_copy(known.path, path)
            return path, known.size
        made = upright(data, max_pixels=self.max_pixels)
        path = self.folder / f"{name}{made.suffix}"
        path.write_bytes(made.data)
        return path, made.size

    def remove_all_but(self, names: set[str]) -> None:
        for path in self.folder.iterdir():
            if path.name not in names:
                path.unlink()


def _kept(earlier: Path | None) -> dict[str, _Kept]:
    """Pictures of an earlier folder by the hash of what was fetched then. Nothing where it cannot be read: it only
    saves time."""
    if earlier is None:
        return {}
    try:
        items = read_folder(earlier).manifest.items
    except DatasetError:
        return {}
    paths = {item.sha256: _Kept(earlier / "images" / item.file_name, item.size) for item in items if item.size}
    return {digest: kept for digest, kept in paths.items() if kept.path.is_file()}


def _in_order(work: Callable[[_Job], Item | LeftOut], jobs: Iterable[_Job], workers: int) -> Iterator[Item | LeftOut]:
    """Results in order; at most two pictures per thread are on their way, so memory does not grow with the project."""
    waiting: deque[Future[Item | LeftOut]] = deque()
    rest = iter(jobs)
    with ThreadPoolExecutor(workers, thread_name_prefix="pictures") as pool:
        try:
            waiting.extend(pool.submit(work, job) for job in islice(rest, 2 * workers))
            while waiting:
                yield waiting.popleft().result()
                waiting.extend(pool.submit(work, job) for job in islice(rest, 1))
        finally:
            pool.shutdown(cancel_futures=True)

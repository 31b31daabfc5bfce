"""The folder that trainers read: what is in it, what is left out, that it appears whole or not at all."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from labelloop.core.errors import MediaNotFound, MediaUnreachable
from labelloop.core.regions import MediaKey, Size
from labelloop.core.tasks import MediaRef
from labelloop.formats import coco
from labelloop.formats.coco import DatasetError
from labelloop.jobs.folder import Folder, read_folder, write_folder, write_yolo
from labelloop.learning.manifest import Drawn, Item, LeftOut, Manifest, Options
from reference.running_server import jpeg

KEY, SIZE = MediaKey("image"), Size(80, 40)


def item(task: int, *, side: str = "train", key: MediaKey = KEY, size: Size | None = SIZE, uri: str = "") -> Item:
    drawn = (Drawn("cell", (10, 10, 30, 20)),)
    return Item(task, key, uri or f"/data/{task}.jpg", side, (task,), drawn, size=size)  # type: ignore[arg-type]


def manifest(*items: Item) -> Manifest:
    return Manifest(7, ("cell", "other"), Options(), tuple(items))


def source(files: dict[str, bytes]) -> Callable[[MediaRef], bytes]:
    def fetch(ref: MediaRef) -> bytes:
        assert ref.project_id == 7, "the project has the credentials"
        if ref.uri not in files:
            raise MediaNotFound(f"there is no {ref.uri}.", hint="Was it deleted?")
        return files[ref.uri]

    return fetch


def write(given: Manifest, target: Path, files: dict[str, bytes], **options: object) -> Folder:
    return write_folder(given, target, source(files), max_pixels=10**6, **options)  # type: ignore[arg-type]


def pictures(*tasks: int) -> dict[str, bytes]:
    return {f"/data/{task}.jpg": jpeg(seed=task) for task in tasks}


def test_a_folder_has_what_was_agreed(tmp_path: Path) -> None:
    files = pictures(1, 2, 3)
    folder = write(manifest(item(1), item(2, side="val"), item(3)), tmp_path / "set", files)
    assert sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*")) == [
        "images", "images/1.jpg", "images/2.jpg", "images/3.jpg", "manifest.json", "train.json", "val.json",
    ]  # fmt: skip
    train, val = (coco.read(folder.path / f"{side}.json") for side in ("train", "val"))
    assert [(i.file_name, i.width, i.height, i.task_id) for i in train.images] == [
        ("1.jpg", 80, 40, 1),
        ("3.jpg", 80, 40, 3),
    ]
    assert [a.bbox for a in val.annotations] == [(10, 10, 20, 10)]
    assert (
        [(c.id, c.name) for c in train.categories]
        == [(1, "cell"), (2, "other")]
        == [(c.id, c.name) for c in val.categories]
    )
    assert (folder.path / "images/1.jpg").read_bytes() == files["/data/1.jpg"]
    assert read_folder(folder.path) == folder
    assert folder.manifest.items[0].sha256 == hashlib.sha256(files["/data/1.jpg"]).hexdigest()


def test_the_same_data_gives_the_same_bytes(tmp_path: Path) -> None:
    given, files = (
        manifest(*(item(n, side="val" if n % 3 == 0 else "train") for n in range(1, 20))),
        pictures(*range(1, 20)),
    )
    one, two = (write(given, tmp_path / name, files, workers=workers) for name, workers in (("one", 1), ("two", 8)))
    for name in ("train.json", "val.json", "manifest.json"):
        assert (one.path / name).read_bytes() == (two.path / name).read_bytes()


def test_boxes_are_on_the_picture_as_it_is_and_not_as_the_annotation_says(tmp_path: Path) -> None:
    """A photograph lying on its side whose annotation names the sides as they are stored: percentages count."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "red").save(tmp_path / "a.jpg", exif=exif)
    folder = write(
        manifest(item(1, size=Size(80, 40))), tmp_path / "set", {"/data/1.jpg": (tmp_path / "a.jpg").read_bytes()}
    )
    (image,), (thing,) = folder.side("train").images, folder.side("train").annotations
    assert image.size == (40, 80)
    assert thing.bbox == (5, 20, 10, 20)
    with Image.open(folder.path / "images" / image.file_name) as written:
        assert (written.size, dict(written.getexif())) == ((40, 80), {})


def test_pictures_that_are_gone_or_broken_are_left_out_with_the_reason(tmp_path: Path) -> None:
    files = pictures(1, 2, 3) | {"/data/4.jpg": b"<html>Log in</html>"}
    folder = write(manifest(*(item(n) for n in range(1, 6))), tmp_path / "set", files)
    assert [one.task_id for one in folder.manifest.items] == [1, 2, 3]
    assert [(left.task_id, left.reason) for left in folder.manifest.left_out] == [
        (4, "media-undecodable"),
        (5, "media-not-found"),
    ]
    assert "Was it deleted?" in folder.manifest.left_out[1].detail


def test_an_outage_is_no_data_set(tmp_path: Path) -> None:
    def away(ref: MediaRef) -> bytes:
        raise MediaUnreachable("Nobody answers.")

    with pytest.raises(DatasetError, match="3 of 3 pictures cannot be had, the first because: Nobody answers"):
        write_folder(manifest(item(1), item(2), item(3)), tmp_path / "set", away, max_pixels=10**6)
    assert list(tmp_path.iterdir()) == []


def test_the_pages_of_a_task_are_files_of_their_own(tmp_path: Path) -> None:
    pages = [item(1, key=MediaKey("pages", page), uri=f"/data/{page}.jpg") for page in range(3)]
    folder = write(manifest(*pages), tmp_path / "set", pictures(0, 1, 2))
    assert [one.file_name for one in folder.manifest.items] == ["1.jpg", "1-2.jpg", "1-3.jpg"]


def test_a_picture_that_is_held_out_under_another_task_is_not_trained_on(tmp_path: Path) -> None:
    files = pictures(1, 2) | {"/data/3.jpg": jpeg(seed=2)}
    folder = write(manifest(item(1), item(2, side="val"), item(3)), tmp_path / "set", files)
    assert [path.name for path in sorted((folder.path / "images").iterdir())] == ["1.jpg", "2.jpg"]
    assert folder.manifest.left_out == (LeftOut(3, "twin", "the same picture as in task 2, held out"),)


def test_an_earlier_folder_saves_the_decoding_and_changes_nothing(tmp_path: Path) -> None:
    files = pictures(1, 2, 3, 4)
    earlier = write(manifest(item(1), item(2)), tmp_path / "earlier", files)
    given = manifest(item(1), item(2), item(3), item(4))
    fresh, reused = (
        write(given, tmp_path / "fresh", files),
        write(given, tmp_path / "reused", files, earlier=earlier.path),
    )
    assert reused.manifest == fresh.manifest
    assert (reused.path / "images/2.jpg").samefile(earlier.path / "images/2.jpg")
    (earlier.path / "manifest.json").write_text("{}")
    assert write(given, tmp_path / "again", files, earlier=earlier.path).manifest == fresh.manifest


def test_a_folder_that_is_there_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").write_text("keep")
    with pytest.raises(DatasetError, match="is there and not empty"):
        write(manifest(item(1)), tmp_path / "set", pictures(1))
    with pytest.raises(DatasetError, match="holds no data set"):
        read_folder(tmp_path / "set")
    assert [path.name for path in tmp_path.rglob("*")] == ["set", "mine.txt"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    assert len(write(manifest(item(1)), tmp_path / "set", pictures(1)).manifest.items) == 1


def test_a_yolo_folder_is_the_same_data_set(tmp_path: Path) -> None:
    folder = write(manifest(item(1), item(2, side="val")), tmp_path / "set", pictures(1, 2))
    write_yolo(folder, tmp_path / "yolo")
    assert (tmp_path / "yolo/labels/val/2.txt").read_text() == "0 0.250000 0.375000 0.250000 0.250000\n"
    assert (tmp_path / "yolo/images/train/1.jpg").samefile(folder.path / "images/1.jpg")
    assert read_folder(tmp_path / "yolo").manifest == folder.manifest


def test_progress_counts_every_picture_and_few_are_on_their_way(tmp_path: Path) -> None:
    files, seen = pictures(*range(1, 30)), []
    began, lock = [0], threading.Lock()

    def fetch(ref: MediaRef) -> bytes:
        with lock:
            began[0] += 1
            assert began[0] <= len(seen) + 2 * 3 + 1, "no more than two for each thread"
        return files[ref.uri]

    given = manifest(*(item(n) for n in range(1, 30)))
    write_folder(
        given,
        tmp_path / "set",
        fetch,
        max_pixels=10**6,
        workers=3,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(n, 29) for n in range(1, 30)]


def test_what_interrupts_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(manifest(item(1), item(2)), tmp_path / "set", pictures(1, 2), progress=stop)
    assert list(tmp_path.iterdir()) == []

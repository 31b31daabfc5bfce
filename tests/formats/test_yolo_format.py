"""YOLO folders: numbers, empty pictures, groups, names, links."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from labelloop.formats import coco, yolo

CATEGORIES = (coco.Category(4, "cell"), coco.Category(9, "Zellkern: groß"))


def dataset(*names: str) -> coco.Dataset:
    images = tuple(coco.Image(number, name, 200, 100) for number, name in enumerate(names, 1))
    things = (
        coco.Instance(1, 1, 9, (20, 10, 40, 20)),
        coco.Instance(2, 1, 4, (0, 0, 200, 100)),
        coco.Instance(3, 1, 4, (0, 0, 9, 9), iscrowd=1),
    )
    return coco.Dataset(images, things, CATEGORIES)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("a.jpg", "b.png", "a.png"):
        (folder / name).write_bytes(name.encode())
    return folder


def test_a_folder_is_what_yolo_readers_expect(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    yolo.write(out, {"train": dataset("a.jpg", "b.png"), "val": coco.Dataset((), (), CATEGORIES)}, images=images)
    assert (
        out / "labels/train/a.txt"
    ).read_text() == "1 0.200000 0.200000 0.200000 0.200000\n0 0.500000 0.500000 1.000000 1.000000\n"
    assert (out / "labels/train/b.txt").read_text() == ""
    assert (out / "images/train/b.png").samefile(images / "b.png")
    content = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    assert content == {
        "path": ".",
        "train": "images/train",
        "val": "images/val",
        "names": {0: "cell", 1: "Zellkern: groß"},
    }
    assert (out / "images/val").is_dir(), "a split without pictures is there all the same"


def test_pictures_that_would_share_a_label_file_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(coco.DatasetError, match=r"a.jpg and a.png would share"):
        yolo.write(tmp_path / "out", {"train": dataset("a.jpg", "a.png")}, images=images)


def test_where_there_can_be_no_link_there_is_a_copy(
    images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.link", refuse)
    yolo.link_or_copy(images / "a.jpg", tmp_path / "deep/copy.jpg")
    assert (tmp_path / "deep/copy.jpg").read_bytes() == b"a.jpg"
    assert not (tmp_path / "deep/copy.jpg").samefile(images / "a.jpg")

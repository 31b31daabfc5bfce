"""Files on a shared disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from media_site import Site, ref

from labelloop.core.errors import MediaError, MediaRefused, MediaTooLarge
from labelloop.media.disk import SharedFolder
from labelloop.media.load import MediaLoader

Make = Callable[..., MediaLoader]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A folder beside which lies a secret."""
    (tmp_path / "secret.jpg").write_bytes(b"secret")
    (tmp_path / "root-secret").mkdir()
    (tmp_path / "root-secret" / "a.jpg").write_bytes(b"secret")
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "sub" / "a b.jpg").write_bytes(b"inside")
    (root / "link-in.jpg").symlink_to(root / "sub" / "a b.jpg")
    (root / "link-out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder-out").symlink_to(tmp_path)
    os.mkfifo(root / "pipe.jpg")
    return root


@pytest.mark.parametrize(
    ("relative", "what"),
    [
        ("../secret.jpg", "up"),
        ("sub/../../secret.jpg", "down and up"),
        ("sub/../sub/a b.jpg", "dots that stay inside are dots all the same"),
        ("..", "the parent"),
        ("/etc/passwd", "absolute"),
        ("{root}/sub/a b.jpg", "absolute, inside"),
        ("../root-secret/a.jpg", "a longer name"),
        ("link-out.jpg", "a link out"),
        ("folder-out/secret.jpg", "a folder's link out"),
        ("sub/a\0.jpg", "NUL"),
        ("..\\secret.jpg", "backslash"),
    ],
)
def test_paths_that_lead_out(disk: Path, relative: str, what: str) -> None:
    with pytest.raises(MediaRefused):
        SharedFolder(disk, max_bytes=100).read(relative.format(root=disk))


@pytest.mark.parametrize("relative", ["sub", "", ".", "none.jpg", "sub/none.jpg", "pipe.jpg", "x" * 300])
def test_what_is_no_file(disk: Path, relative: str) -> None:
    assert SharedFolder(disk, max_bytes=100).read(relative) is None


def test_what_is_one(disk: Path, tmp_path: Path) -> None:
    folder = SharedFolder(disk, max_bytes=6)
    assert folder.read("sub/a b.jpg") == folder.read("link-in.jpg") == b"inside"
    (tmp_path / "mount").symlink_to(disk)
    assert SharedFolder(tmp_path / "mount", max_bytes=6).read("sub/a b.jpg") == b"inside"
    with pytest.raises(MediaTooLarge):
        SharedFolder(disk, max_bytes=5).read("sub/a b.jpg")


@pytest.mark.parametrize("place", ["1/x-f ö.jpg", "media/upload/1/x-f ö.jpg", "upload/1/x-f ö.jpg", "x-f ö.jpg"])
def test_uploads_are_found_where_people_mount_them(make_loader: Make, studio: Site, tmp_path: Path, place: str) -> None:
    path = tmp_path / "images" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(b"on disk")
    loader = make_loader(image_dir=tmp_path / "images")
    assert loader.fetch(ref("/data/upload/1/x-f%20%C3%B6.jpg")) == b"on disk"
    assert make_loader(no_origin=True, image_dir=tmp_path / "images").fetch(ref("/data/upload/1/x-f%20%C3%B6.jpg"))
    assert not studio.seen


def test_what_is_not_on_the_disk_is_downloaded(make_loader: Make, studio: Site, disk: Path) -> None:
    studio.answers["/data/upload/1/a.jpg"] = studio.answers["/data/local-files/"] = (200, {}, b"over http")
    loader = make_loader(image_dir=disk, local_files_root=disk)
    assert loader.fetch(ref("/data/upload/1/a.jpg")) == b"over http"
    assert loader.fetch(ref("/data/local-files/?d=none.jpg")) == b"over http"
    assert loader.fetch(ref("/data/local-files/?d=sub/a%20b.jpg")) == b"inside"
    assert loader.fetch(ref(studio.url + "/data/local-files/?d=sub%2Fa+b.jpg")) == b"inside"


@pytest.mark.parametrize("d", ["../secret.jpg", "%2e%2e/secret.jpg", "/etc/passwd", "link-out.jpg", "a%00"])
def test_local_files_do_not_lead_out(make_loader: Make, studio: Site, disk: Path, d: str) -> None:
    with pytest.raises(MediaError):
        make_loader(local_files_root=disk).fetch(ref(f"/data/local-files/?d={d}"))
    assert not studio.seen

"""Files on a disk that is shared with Label Studio, and nothing outside the folders named in the settings."""

from __future__ import annotations

import os
from pathlib import Path

from labelloop.core.errors import MediaRefused
from labelloop.media.exchange import too_large
from labelloop.media.urls import shorten

_UPLOAD_FOLDERS = ("", "media/upload/", "upload/")
"""Where uploads lie below a folder people name: the uploads themselves, Label Studio's data folder, its media."""


class SharedFolder:
    """Reads below `root` and nowhere else, wherever links lead."""

    def __init__(self, root: Path, *, max_bytes: int) -> None:
        self._root = root.resolve()
        self._max_bytes = max_bytes

    def read(self, relative: str) -> bytes | None:
        """The file's bytes, or None if there is none (or not for us: then Label Studio is asked).

        Raises MediaRefused for a path that leads out of the folder, MediaTooLarge.
        """
        path = self.find(relative)
        try:
            return self._read(path) if path is not None else None
        except OSError:  # a folder that is closed to us
            return None

    def find(self, relative: str) -> Path | None:
        """The file itself, for what is too large to be read at once; as `read`, without its limit."""
        if relative.startswith("/") or "\0" in relative or ".." in relative.replace("\\", "/").split("/"):
            raise _outside(relative)
        try:
            path = (self._root / relative).resolve()
            if not path.is_relative_to(self._root):
                raise _outside(relative)
            # a named pipe would block for ever, hence not just "exists"
            return path if path.is_file() else None
        except OSError:  # a name too long, a folder that is closed to us
            return None

    def _read(self, path: Path) -> bytes:
        # the path is free of links: if one was put there since, it is not followed
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
            if os.fstat(file.fileno()).st_size > self._max_bytes:
                raise too_large(self._max_bytes)
            return file.read()

    def read_upload(self, relative: str) -> bytes | None:
        """An upload `<project>/<name>`, in any of the places where people mount them; its plain name last."""
        path = self.find_upload(relative)
        return None if path is None else self.read(str(path.relative_to(self._root)))

    def find_upload(self, relative: str) -> Path | None:
        """The file of an upload, as `read_upload` looks for it."""
        names = [*(folder + relative for folder in _UPLOAD_FOLDERS), relative.rpartition("/")[2]]
        return next((path for name in names if (path := self.find(name)) is not None), None)


def _outside(relative: str) -> MediaRefused:
    return MediaRefused(
        f"The path {shorten(relative)!r} leads out of the shared folder.",
        hint="If a link is meant to lead there, name the folder behind it in the settings.",
    )

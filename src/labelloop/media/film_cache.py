"""Films on disk while they are needed, and a while longer: a job that was killed finds them again.

A film is too large for the memory, and for the cache of pictures, which holds what it reads. Files are named by a hash
of the reference; the time of modification is the last use. Who reads a film holds a shared lock on its file, so that no
other process takes it away to make room.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import structlog

log = structlog.get_logger(__name__)

STALE_PART_S = 86_400.0
"""A download that nobody has written to for this long is left over from a process that was killed."""


class FilmCache:
    """A folder of at most `max_bytes`, as far as nobody reads what is above it."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    @contextmanager
    def film(self, identity: str, download: Callable[[BinaryIO], None], *, fresh_s: float) -> Iterator[Path]:
        """The file of a film, which stays while the block runs. `download` writes it where there is none, or one that
        is older than `fresh_s`; what it raises is raised."""
        path = self._folder / hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        file = self._open(path, fresh_s) or self._fill(path, download)
        try:
            os.utime(file.fileno())
            yield path
        finally:
            file.close()
            self._trim()

    def discard(self, identity: str) -> None:
        """Forget a film whose bytes turned out to be of no use."""
        name = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        (self._folder / name).unlink(missing_ok=True)

    def _open(self, path: Path, fresh_s: float) -> BinaryIO | None:
        """The file, locked against those who make room; None where there is none that is fresh."""
        with suppress(OSError):
            file = path.open("rb")
            fcntl.flock(file, fcntl.LOCK_SH)
            state = os.fstat(file.fileno())
            made_s = path.with_suffix(".made").stat().st_mtime  # the film's own time is that of its last use
            if state.st_nlink and 0 <= time.time() - made_s < fresh_s:
                return file
            file.close()
        return None

    def _fill(self, path: Path, download: Callable[[BinaryIO], None]) -> BinaryIO:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, part = tempfile.mkstemp(dir=self._folder, suffix=".part")
        try:
            with os.fdopen(descriptor, "w+b") as written:
                download(written)
            path.with_suffix(".made").touch()
            Path(part).rename(path)
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        file = path.open("rb")
        fcntl.flock(file, fcntl.LOCK_SH)
        return file

    def _trim(self) -> None:
        """Take away what was not used for longest, until the rest fits."""
        kept: list[tuple[float, int, Path]] = []
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                state = path.stat()
                if path.suffix == ".part" and time.time() - state.st_mtime > STALE_PART_S:
                    path.unlink()
                elif not path.suffix:
                    kept.append((state.st_mtime, state.st_size, path))
        total = sum(size for _, size, _ in kept)
        for _, size, path in sorted(kept):
            if total <= self._max_bytes:
                return
            total -= size if _remove_unless_read(path) else 0


def _remove_unless_read(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()
            path.with_suffix(".made").unlink(missing_ok=True)
    except OSError:  # somebody reads it, or was faster
        return False
    log.info("film dropped from the cache", file=path.name)
    return True

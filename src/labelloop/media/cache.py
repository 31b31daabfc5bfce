"""Downloaded media on disk, below a cap, shared by threads and by processes.

The folder is the index: a file's name is the hash of what it was downloaded as, its time of modification is its
last use, its head says how fresh it is. The one number that is kept, the sum of the sizes, stands in a small file
under a lock that every writer holds, so that several processes together stay below the cap.
"""

# a Path costs more than the system call it makes, and this runs once or twice for every picture
# ruff: noqa: PTH103, PTH104, PTH108, PTH116, PTH120

from __future__ import annotations

import fcntl
import hashlib
import heapq
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import msgspec

_HEAD = struct.Struct("<4sdQH")  # mark, when fetched (Unix time), length of the body, length of the ETag behind it
_MARK = b"LLm1"
_TOTAL = struct.Struct("<q")
_BLOCK = 4096
_LARGEST_SHARE = 0.5


class Entry(msgspec.Struct, frozen=True):
    """`fetched_at` in Unix seconds; `etag` is empty when the server gave none."""

    body: bytes
    etag: str
    fetched_at: float


class _File(NamedTuple):
    used_ns: int
    space: int
    path: str


class Cache:
    """A folder of at most `max_bytes`, unfinished files included; what was not used for longest goes first.

    Any trouble with the disk is a miss, or a file not kept: a full disk must not stop predictions.
    """

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._lock_fd = -1
        self._oldest: list[_File] | None = None
        """The next to go, last one first; None before the files were counted."""

    def get(self, identity: str) -> Entry | None:
        """The entry, fresh or not, marked as used now; None if there is none or it is damaged."""
        if not self._max_bytes:
            return None
        try:
            fd = os.open(self._path(identity), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:  # not there; another process may evict at any moment
            return None
        try:
            entry = _read_entry(fd)
            if entry is not None:
                _mark_used(fd)
        except OSError:
            return None
        finally:
            os.close(fd)
        return entry

    def put(self, identity: str, body: bytes, *, etag: str = "") -> None:
        """Keep `body`, unless it takes more than half of the cap: it would push out all the rest."""
        tag = etag.encode("latin-1", "replace")
        head = _HEAD.pack(_MARK, time.time(), len(body), len(tag)) + tag
        space = _space(len(head) + len(body))
        if space > self._max_bytes * _LARGEST_SHARE:
            return
        path = self._path(identity)
        with suppress(OSError), self._locked():
            replaced = _space_of(path)
            total = self._make_room(space)
            self._write(path, head, body)
            self._set_total(total + space - replaced)

    def discard(self, identity: str) -> None:
        """Forget an entry whose bytes turned out to be of no use."""
        path = self._path(identity)
        with suppress(OSError), self._locked():
            space = _space_of(path)
            os.unlink(path)
            self._set_total(self._get_total() - space)

    def _path(self, identity: str) -> str:
        name = hashlib.blake2b(identity.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
        return f"{self._folder}/{name[:2]}/{name[2:]}"

    def _write(self, path: str, head: bytes, body: bytes) -> None:
        unfinished = f"{self._folder}/unfinished"  # one name is enough: writers hold the lock
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(unfinished, flags, 0o600)
        try:
            rest = memoryview(body)[os.writev(fd, (head, body)) - len(head) :]
            while rest:
                rest = rest[os.write(fd, rest) :]
            _mark_used(fd)
        finally:
            os.close(fd)
        try:
            os.rename(unfinished, path)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            os.rename(unfinished, path)

    # --- the cap ------------------------------------------------------------------------------------

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among the threads of this process and among all processes. Raises OSError."""
        with self._lock:
            if self._lock_fd >= 0 and os.fstat(self._lock_fd).st_nlink == 0:  # someone deleted the folder
                os.close(self._lock_fd)
                self._lock_fd, self._oldest = -1, None
            if self._lock_fd < 0:
                os.makedirs(self._folder, mode=0o700, exist_ok=True)
                self._lock_fd = os.open(f"{self._folder}/total", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX)
            try:
                yield
            finally:
                fcntl.flock(self._lock_fd, fcntl.LOCK_UN)

    def _get_total(self) -> int:
        stored = os.pread(self._lock_fd, _TOTAL.size, 0)
        return int(_TOTAL.unpack(stored)[0]) if len(stored) == _TOTAL.size else 0

    def _set_total(self, total: int) -> None:
        os.pwrite(self._lock_fd, _TOTAL.pack(total), 0)

    def _make_room(self, space: int) -> int:
        """Evict until `space` bytes fit; returns the total that is left."""
        total = self._count() if self._oldest is None else self._get_total()
        while total + space > self._max_bytes:
            if not self._oldest:
                total = self._count()
                if not self._oldest:
                    break
            else:
                total -= _evict(self._oldest.pop())
        return total

    def _count(self) -> int:
        """Look at every file (5 µs each), and note the quarter that was not used for longest, so that the next look
        is due when a quarter of the cache was replaced. Counting anew also mends what a killed process left."""
        files = list(self._files())
        self._oldest = heapq.nsmallest(max(len(files) // 4, 16), files)[::-1]
        return sum(file.space for file in files)

    def _files(self) -> Iterator[_File]:
        with os.scandir(self._folder) as shards:
            for shard in shards:
                if shard.is_dir(follow_symlinks=False):
                    with os.scandir(shard.path) as entries:
                        for entry in entries:
                            with suppress(FileNotFoundError):
                                stat = entry.stat(follow_symlinks=False)
                                yield _File(stat.st_mtime_ns, _space(stat.st_size), entry.path)


def _read_entry(fd: int) -> Entry | None:
    size = os.fstat(fd).st_size
    head = os.read(fd, _HEAD.size)
    if len(head) < _HEAD.size:
        return None
    mark, fetched_at, body_length, tag_length = _HEAD.unpack(head)
    if mark != _MARK or size != _HEAD.size + tag_length + body_length:
        return None  # the power went before all of it was on the disk
    tag = os.read(fd, tag_length)
    body = os.read(fd, body_length)
    return Entry(body, tag.decode("latin-1"), fetched_at) if len(body) == body_length else None


def _mark_used(fd: int) -> None:
    now = time.time_ns()  # the kernel's own stamp only moves every few milliseconds, in which dozens of files pass
    os.utime(fd, ns=(now, now))


def _evict(file: _File) -> int:
    """Bytes won: none if the file was used since it was noted, or another process was faster."""
    try:
        if os.stat(file.path).st_mtime_ns != file.used_ns:
            return 0
        os.unlink(file.path)
    except FileNotFoundError:
        return 0
    return file.space


def _space(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _space_of(path: str) -> int:
    try:
        return _space(os.stat(path).st_size)
    except FileNotFoundError:
        return 0

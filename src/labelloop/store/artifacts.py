"""Files that the rows point to: a folder by default, any fsspec URL (s3://, gs://, …) when machines share them."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import time
from pathlib import Path

import fsspec
import structlog
from fsspec.implementations.local import LocalFileSystem

from labelloop.core.errors import ModelError, SettingsError

log = structlog.get_logger(__name__)

LEFTOVER_S = 24 * 3600.0
"""No copy takes a day: a `.part` this old belongs to a process that was killed."""


class Artifacts:
    """`url` is where files are kept; `cache` is a local folder for copies of remote ones. `own` says that only this
    machine has the files, while others may have the rows that point to them.

    Raises SettingsError for a kind of URL that fsspec does not know or has no package for.
    """

    def __init__(self, url: str, *, cache: Path, own: bool = False) -> None:
        try:
            self._fs, self._root = fsspec.core.url_to_fs(url)
        except (ImportError, ValueError) as error:
            raise SettingsError(
                f"Model files cannot be kept at {url}: {error}.", hint="Check LABELLOOP_ARTIFACTS_URL."
            ) from error
        self._cache = cache
        self._own = own

    def put(self, source: Path, name: str) -> None:
        """Store a file under `name` ("detector/1a2b3c4d.onnx"), in place of what is there; a reader never sees half
        of it. Raises ModelError when it cannot be written, and leaves nothing behind then."""
        target = f"{self._root}/{name}"
        part = f"{target}.{secrets.token_hex(4)}.part"
        try:
            self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._fs.put_file(str(source), part)
            self._fs.mv(part, target)
        except Exception as error:  # a full disk is an OSError, and each remote file system has its own exceptions
            raise ModelError(
                f"The model file cannot be stored as {target}: {_reason(error)}.",
                hint="Check the space left and the rights there (LABELLOOP_HOME, LABELLOOP_ARTIFACTS_URL).",
            ) from error
        finally:
            # not worth an error of its own, which would hide the one that matters; `sweep` comes by
            with contextlib.suppress(Exception):
                if self._fs.exists(part):
                    self._fs.rm(part)

    def path(self, name: str, *, sha256: str = "") -> Path:
        """A local path with the content of `name`. Raises ModelError when it is missing or is not what was stored."""
        remote = f"{self._root}/{name}"
        if isinstance(self._fs, LocalFileSystem):
            local = Path(remote)
        else:
            local = self._cache / name
            if _holds(local, sha256):
                return local
            self._download(remote, local)  # for the first time, or in place of a damaged copy
        if not local.is_file():
            raise self._missing(remote)
        if not _holds(local, sha256):
            raise ModelError(f"The model file {remote} is damaged.", hint="Add the model again: labelloop models add …")
        return local

    def remove(self, name: str) -> None:
        """Delete what is stored under `name`, if it is there. A file that cannot be deleted stays, and the log says
        so: no row points to it any more."""
        target = f"{self._root}/{name}"
        try:
            self._fs.rm(target)
        except FileNotFoundError:
            return
        except Exception as error:  # see `put`
            log.warning("model file stays behind", file=target, error=_reason(error))

    def sweep(self) -> None:
        """Delete the halves that killed processes left a day ago or earlier.

        Only on this machine: listing a bucket at each start would cost more than what it finds; buckets have rules for
        that. Only halves: a whole file that no row names (of a process killed between the copy and the row) may
        belong to another database on the same folder, and nothing here can tell.
        """
        folders = [self._cache, *([Path(self._root)] if isinstance(self._fs, LocalFileSystem) else [])]
        for part in (part for folder in folders for part in folder.rglob("*.part")):
            with contextlib.suppress(OSError):  # another process sweeps too, or the folder is not ours to write
                if time.time() - part.stat().st_mtime > LEFTOVER_S:
                    part.unlink()

    def _download(self, remote: str, local: Path) -> None:
        part = local.with_name(f"{local.name}.{secrets.token_hex(4)}.part")
        try:
            local.parent.mkdir(parents=True, exist_ok=True)
            self._fs.get_file(remote, str(part))
            os.replace(part, local)  # noqa: PTH105 - atomic by contract
        except FileNotFoundError as error:
            raise self._missing(remote) from error
        except Exception as error:  # see `put`
            raise ModelError(
                f"The model file {remote} cannot be fetched: {_reason(error)}.",
                hint="Check LABELLOOP_ARTIFACTS_URL and the space left in LABELLOOP_HOME.",
            ) from error
        finally:
            part.unlink(missing_ok=True)

    def _missing(self, remote: str) -> ModelError:
        again = "add the model again: labelloop models add …"
        if not self._own:
            return ModelError(f"The model file {remote} is missing.", hint=again.capitalize())
        return ModelError(
            f"The model file {remote} is missing here; another machine on the same database may have it.",
            hint="Set LABELLOOP_ARTIFACTS_URL on all machines to a place that each of them reaches (s3://bucket/models "
            f"or a shared folder), then {again}",
        )


def hash_file(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _holds(path: Path, sha256: str) -> bool:
    """Whether a file is there with this content (any, when `sha256` is empty). Raises ModelError."""
    try:
        return path.is_file() and (not sha256 or hash_file(path) == sha256)
    except OSError as error:
        raise ModelError(
            f"The model file {path} cannot be read: {_reason(error)}.", hint="Check its rights and its disk."
        ) from error


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__

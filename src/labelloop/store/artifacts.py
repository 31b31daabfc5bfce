"""Files that the rows point to: a folder by default, any fsspec URL (s3://, gs://, …) when machines share them."""

from __future__ import annotations

import hashlib
import os
import secrets
from pathlib import Path

import fsspec
from fsspec.implementations.local import LocalFileSystem

from labelloop.core.errors import ModelError


class Artifacts:
    """`url` is where files are kept; `cache` is a local folder for copies of remote ones."""

    def __init__(self, url: str, *, cache: Path) -> None:
        self._fs, self._root = fsspec.core.url_to_fs(url)
        self._cache = cache

    def put(self, source: Path, name: str) -> None:
        """Store a file under `name` ("detector/1/model.onnx"); a reader never sees half of it."""
        target = f"{self._root}/{name}"
        self._fs.makedirs(target.rpartition("/")[0], exist_ok=True)
        part = f"{target}.{secrets.token_hex(4)}.part"
        self._fs.put_file(str(source), part)
        self._fs.mv(part, target)

    def path(self, name: str, *, sha256: str = "") -> Path:
        """A local path with the content of `name`. Raises ModelError when it is missing or is not what was stored."""
        remote = f"{self._root}/{name}"
        if isinstance(self._fs, LocalFileSystem):
            local = Path(remote)
        else:
            local = self._cache / name
            if not local.exists():
                self._download(remote, local)
        if not local.exists():
            raise ModelError(f"The model file {remote} is missing.", hint="Add the model again: labelloop models add …")
        if sha256 and hash_file(local) != sha256:
            raise ModelError(f"The model file {local} is damaged.", hint="Delete it and add the model again.")
        return local

    def remove(self, name: str) -> None:
        """Delete what is stored under `name`, if it is there."""
        target = f"{self._root}/{name}"
        if self._fs.exists(target):
            self._fs.rm(target)

    def _download(self, remote: str, local: Path) -> None:
        local.parent.mkdir(parents=True, exist_ok=True)
        part = local.with_name(f"{local.name}.{secrets.token_hex(4)}.part")
        try:
            self._fs.get_file(remote, str(part))
        except FileNotFoundError as error:
            raise ModelError(
                f"The model file {remote} is missing.", hint="Add the model again: labelloop models add …"
            ) from error
        os.replace(part, local)  # noqa: PTH105 - atomic by contract


def hash_file(path: Path) -> str:
    """sha256 of a file, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

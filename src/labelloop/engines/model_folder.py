"""A folder of Hugging Face's `transformers` as one file: a zip of its configuration, tokenizer and safetensors.

Only data goes in: no pickles (.bin, .pt), no Python. The same folder gives the same bytes, so it is the same version.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec

from labelloop.core.decoding import from_json
from labelloop.core.errors import ModelError

CONFIG = "config.json"
SUFFIXES = (".json", ".safetensors", ".txt", ".model")
MAX_UNPACKED = 20_000_000_000
_BEGINNING = (1980, 1, 1, 0, 0, 0)


def is_model_folder(path: Path) -> bool:
    """Whether `path` is a folder as `save_pretrained` writes it."""
    return path.is_dir() and (path / CONFIG).is_file()


def pack(folder: Path, target: Path) -> None:
    """Write the model in `folder` into the zip `target`. Raises ModelError when it has no safetensors."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix in SUFFIXES)
    if not any(path.suffix == ".safetensors" for path in files):
        raise ModelError(
            f"{folder} has no weights in safetensors.",
            hint="Other formats are code when they are loaded. Save it again: model.save_pretrained(FOLDER).",
        )
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        for path in files:
            entry = zipfile.ZipInfo(path.name, _BEGINNING)
            with path.open("rb") as source, archive.open(entry, "w", force_zip64=True) as writing:
                while part := source.read(1 << 20):
                    writing.write(part)


def read_config(path: Path) -> dict[str, Any]:
    """`config.json` of a packed model. Raises ModelError for a file that is none, or holds what it should not."""
    with _opened(path) as archive:
        try:
            return from_json(archive.read(CONFIG), dict[str, Any])
        except (KeyError, msgspec.MsgspecError) as error:
            raise ModelError(f"{path.name} holds no model of transformers: {error}.") from error


@contextmanager
def unpacked(path: Path) -> Iterator[Path]:
    """The folder again, for as long as it is being loaded."""
    with TemporaryDirectory(prefix="labelloop-model-") as folder, _opened(path) as archive:
        archive.extractall(folder)  # `_opened` has looked at every name
        yield Path(folder)


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                name = Path(entry.filename)
                if name.name != entry.filename or name.suffix not in SUFFIXES:
                    raise ModelError(f"{path.name} holds {entry.filename!r}, which is no part of a model.")
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED:
                raise ModelError(f"{path.name} would be larger than {MAX_UNPACKED / 1e9:g} GB.")
            yield archive
    except (OSError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path.name} cannot be read: {error}.", hint="Add the folder again.") from error

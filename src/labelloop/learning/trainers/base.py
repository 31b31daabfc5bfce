"""The seam between the loop and whatever trains a model.

A trainer is what an entry point of `labelloop.trainers` names: a class without arguments that follows `Trainer`.
It reads a folder with a frozen data set and leaves one model file; the loop knows nothing else about it. It runs in a
child process (`process.run`), never in ours, so it may take all the memory it likes, crash, or leak.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from labelloop.core import plugins
from labelloop.core.cards import ModelCard
from labelloop.core.decoding import convert, from_json
from labelloop.core.errors import LabelloopError

T = TypeVar("T")

CHECKPOINT = "checkpoint"
"""Name, inside the folder of a run, of the file or folder that a later run of the same request goes on from."""


class TrainRequest(msgspec.Struct, frozen=True):
    """Everything that a trainer is told.

    `data` is a folder with `train.json` and `val.json` (COCO detection; `file_name` relative to `images/`, pictures
    stored upright; categories are `labels` in order), `images/` and `manifest.json`. `base` is the ONNX file to start
    from, described by `base_card`; both None for a cold start. Everything is written into `out`, the folder of this
    run, which a resumed run is given again. `budget_s` is wall time from the start of the trainer to the finished file.
    `device` is "cpu", "cuda" or "cuda:N". `cache` is a folder that runs share and that outlives them, for what can be
    computed again; it may be emptied at any time.
    """

    data: Path
    labels: tuple[str, ...]
    out: Path
    budget_s: float
    base: Path | None = None
    base_card: ModelCard | None = None
    threads: int = 1
    device: str = "cpu"
    seed: int = 0
    options: dict[str, Any] = {}
    cache: Path | None = None

    @property
    def checkpoint(self) -> Path:
        return self.out / CHECKPOINT

    def fingerprint(self) -> str:
        """The same for requests that would train the same model, whatever their budget, folder or device: a checkpoint
        that carries another one is not ours to go on from."""
        manifest = self.data / "manifest.json"
        digest = hashlib.sha256(manifest.read_bytes() if manifest.is_file() else str(self.data).encode())
        digest.update(encode([self.labels, self.seed, self.options, self.base_card]))
        if self.base is not None:
            with self.base.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()


class Progress(msgspec.Struct, frozen=True, tag=True):
    """Where a run is: `step` of about `steps` (None: nobody knows), `seconds` spent training (those before a
    checkpoint included). `metrics` are named as people read them, `message` is one line for the log. `finished` is a
    whole model that counts if what the trainer tries next fails, crashes, or goes beyond its time or memory."""

    step: int
    steps: int | None = None
    seconds: float = 0.0
    loss: float | None = None
    metrics: dict[str, float] = {}
    message: str = ""
    finished: Trained | None = None


class Trained(msgspec.Struct, frozen=True, tag=True):
    """What a run leaves: the model file inside `TrainRequest.out`, the card to serve it with, and figures. `source` is
    what the file was made of, where that, and not the file, is what a later run can go on from."""

    model: Path
    card: ModelCard
    metrics: dict[str, float] = {}
    source: Trained | None = None


Report = Callable[[Progress], None]
"""Takes a Progress; raises Stopped when the run is to stop. Cheap: call it at every step."""


class Stopped(Exception):
    """The run was asked to stop. A trainer lets it pass, after writing its checkpoint."""


class TrainerError(LabelloopError):
    """A model could not be trained."""

    code = "trainer"


class TrainerRefused(TrainerError):
    """The trainer cannot do what this request asks for; the message says what to do instead."""

    code = "trainer-refused"


class TrainerFailed(TrainerError):
    """The trainer raised, crashed, or went beyond its time or memory. The log lies in the folder of the run."""

    code = "trainer-failed"


class Trainer(Protocol):
    """One way to train. Made without arguments; making one imports nothing heavy."""

    name: str

    def refuses(self, request: TrainRequest) -> str | None:
        """Why this request is not for this trainer, as a sentence that says what to do; None when it is.

        Cheap, and free of side effects: it is also called in the process of the server, to choose a trainer.
        """

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Train within `request.budget_s` and leave one model file in `request.out`.

        Raises Stopped (from `report`), or any LabelloopError that says what to do.
        """


def load_trainer(name: str) -> Trainer:
    """The trainer called `name`. Raises LabelloopError with the near names when there is none."""
    trainer: Trainer = plugins.load("labelloop.trainers", name)()
    return trainer


def read_options(options: Mapping[str, Any], kind: type[T], *, trainer: str) -> T:
    """`options` as the struct `kind` (frozen, its defaults are the recipe). Raises TrainerError with the near name."""
    fields = [field.name for field in msgspec.structs.fields(kind)]  # type: ignore[arg-type]
    for name in options.keys() - set(fields):
        near = difflib.get_close_matches(name, fields, n=1)
        raise TrainerError(
            f"The trainer {trainer} has no option {name!r}.",
            hint=f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(fields) or 'none'}.",
        )
    try:
        return convert(dict(options), kind)
    except msgspec.ValidationError as error:
        raise TrainerError(
            f"An option of the trainer {trainer} cannot be used: {error}.", hint="See docs/learning.md."
        ) from error


def device_for(setting: str) -> str:
    """Where a trainer works when models are served on the device `setting`: it knows "cpu", "cuda" and "cuda:N"."""
    return setting if setting.startswith("cuda") else "cpu"


def replace_file(target: Path, write: Callable[[Path], None]) -> None:
    """`write` a new file and put it in the place of `target` in one step: a SIGKILL leaves the old or the new one.

    The half of a file that it may leave beside them is written over the next time: one run at a time uses the folder.
    """
    fresh = target.with_name(f".{target.name}.new")
    try:
        write(fresh)
        fresh.replace(target)
    finally:
        fresh.unlink(missing_ok=True)


def encode(value: Any) -> bytes:
    """JSON of values of this module; paths become text."""
    return msgspec.json.encode(value, enc_hook=_to_text)


def decode(data: bytes, kind: type[T]) -> T:
    """The value that `encode` wrote. Raises msgspec.MsgspecError."""
    return from_json(data, kind, dec_hook=_from_text)


def _to_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} does not travel to a trainer")


def _from_text(kind: type[Any], value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} does not travel to a trainer")

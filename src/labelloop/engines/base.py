"""The seam between serving and the families of models."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec

from labelloop.core.cards import ModelCard
from labelloop.core.regions import Region, Size

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Wants = Literal["picture", "text", "task", "nothing"]


class EngineOptions(msgspec.Struct, frozen=True):
    """How to run: `device` is "cpu", "cuda", "cuda:N", "openvino" or "auto"; `threads` is how many inferences run at a
    time on the CPU, one core each; while batches are at work, as many more for people. `max_batch` 0 leaves the batch
    to the engine. `desk` is None where no model is served, and models that need one cannot be loaded."""

    device: str = "auto"
    threads: int = 1
    max_batch: int = 0
    desk: Desk | None = None


class Engine(Protocol):
    """One loaded model. Built by `Engine(path, card, options)`, which may take long and raises ModelError.

    `prepare` runs in several threads at a time, `predict` in up to `parallel` threads at a time. An engine may have an
    attribute `urgent` too: so many more `predict` calls may run, for people who wait, while batches are at work.
    """

    classes: tuple[str, ...]
    """Names that `Region.label` can take, in the order of the class index."""
    max_batch: int
    """Most items in one `predict` call."""
    parallel: int
    """How many `predict` calls may run at a time."""
    wants: Wants
    """What `prepare` is given: a Picture or a plain text (str); "nothing": the model answers without looking; "task":
    it is a TaskEngine."""
    input_size: Size | None
    """Pictures are brought to this size by `prepare`, so they may be decoded at a reduced scale; None: full size."""

    def prepare(self, item: Any, /) -> Any:
        """Bring one picture (or text) into the form `predict` wants (resize, pad), so that the big array can be freed
        early."""

    def predict(self, batch: Sequence[Any]) -> list[tuple[Region, ...]]:
        """Regions of each prepared item, in order, in pixels of the upright original; detectors give the best first.

        Everything above a low threshold is returned; the label map applies the project's own threshold.
        """


@runtime_checkable
class Embedder(Protocol):
    """What an Engine may offer besides: where its pictures lie among each other, as the model sees them. Without it
    `labelloop order --diverse` falls back on colours and edges (learning/features)."""

    def embed(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Vectors [n, d] of `n` prepared items, by whose Euclidean distances pictures are alike or not; `d` is the same
        for all. Called from several threads at a time, as `prepare` is."""


class Question(msgspec.Struct, frozen=True):
    """One task for a model that reads Label Studio's own JSON. `context` is what a smart tool drew, if one did."""

    task: Mapping[str, Any]
    project: str
    label_config: str
    context: Mapping[str, Any] | None = None


class Said(msgspec.Struct, frozen=True):
    """What such a model answers: `Raw` regions, the score and the version that it gives to the task, if it does."""

    regions: tuple[Region, ...]
    score: float | None = None
    version: str = ""


class TaskEngine(Protocol):
    """The other kind of Engine, whose `wants` is "task": questions in, results as Label Studio stores them out."""

    def prepare(self, question: Question) -> Question: ...

    def predict(self, batch: Sequence[Question]) -> Sequence[Said | Exception]:
        """An answer for each question, in order, or why there is none."""

    def introduce(self, project: str, label_config: str) -> None:
        """Make ready to answer a project's questions. May take long; raises ModelError."""


@runtime_checkable
class Closable(Protocol):
    """What an Engine may offer besides: letting go of what lies outside this process."""

    def close(self) -> None: ...


class Desk(Protocol):
    """What the house does for models that are other people's code. `project` is Label Studio's id as a text."""

    def folder(self, model: str) -> Path:
        """A folder of the model's own, which stays."""

    def get(self, model: str, project: str, key: str) -> Any:
        """What the model keeps; None where it keeps nothing under this key."""

    def set(self, model: str, project: str, key: str, value: Any) -> None: ...

    def connection(self, project: str) -> tuple[str, str]:
        """Address and token of the project's Label Studio; "" where they are not known."""

    def local_path(self, model: str, project: str, uri: str, task_id: int | None) -> Path:
        """A file with what a task refers to. Raises MediaError."""

    def annotated(self, project: str) -> list[dict[str, Any]]:
        """The tasks of a project that people annotated, with their annotations. Raises LabelStudioError."""


@runtime_checkable
class Resizer(Protocol):
    """What an Engine may offer besides: how large pictures are to it, so that frames of films need not be made larger
    than that. Without it `input_size` counts."""

    def resized(self, size: Size) -> Size:
        """What `prepare` brings a picture of this size to."""


class EngineFactory(Protocol):
    """What an entry point of `labelloop.engines` names. `path` is None for an engine that brings its own weights."""

    needs_file: bool

    def __call__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> Engine: ...

    def describe(self, path: Path | None, card: ModelCard) -> ModelCard:
        """Complete `card` from the file (family, labels, input) without loading the weights onto a device.

        Raises ModelUnrecognised with the file's inputs and outputs and the card fields that would settle it.
        """


def cpu_threads() -> int:
    """Processors this process may use (a container or taskset may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""The trainer `command`: the user's own program, in any language, framework or interpreter.

The program is told what to do by environment variables (and, in its arguments, by `{data}` and the like), and leaves an
ONNX file of a family that `engines/detect` knows, or a folder of transformers. Lines of its output that are JSON
objects with a `step` are progress; every line goes to the log of the run. It is ended together with us, being in our
process group.
"""

from __future__ import annotations

import os
import selectors
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec

from labelloop.core import plugins
from labelloop.core.cards import ModelCard
from labelloop.core.decoding import from_json
from labelloop.engines.base import EngineFactory
from labelloop.engines.detect.recognise import metadata_names
from labelloop.engines.model_folder import is_model_folder, pack
from labelloop.engines.onnx import read_signature
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Trained,
    TrainerError,
    TrainerFailed,
    TrainRequest,
    read_options,
)
from labelloop.runtimes.processes import inherited_environment
from labelloop.serving.models import read_card

NAME = "command"
CHECK_S = 0.2
LONGEST_LINE = 1_000_000


class Options(msgspec.Struct, frozen=True):
    """`command` is a program and its arguments (a text is split as a shell would, without a shell)."""

    command: tuple[str, ...] | str = ()

    @property
    def argv(self) -> tuple[str, ...]:
        return tuple(shlex.split(self.command)) if isinstance(self.command, str) else self.command


class Line(msgspec.Struct, frozen=True):
    """One line of progress, as a program writes it: {"step": 3, "steps": 100, "loss": 0.7, "metrics": {"AP50": 0.4}}"""

    step: int
    steps: int | None = None
    seconds: float = 0.0
    loss: float | None = None
    metrics: dict[str, float] = {}
    message: str = ""


class CommandTrainer:
    name = NAME

    def refuses(self, request: TrainRequest) -> str | None:
        try:
            argv = read_options(request.options, Options, trainer=NAME).argv
        except (TrainerError, ValueError) as error:  # ValueError: an open quotation mark
            return str(error)
        if not argv:
            return "There is no program to run: set the option `command`."
        if shutil.which(argv[0]) is None:
            return f"The program {argv[0]!r} is not there, or may not be run: give its absolute path."
        return None

    def train(self, request: TrainRequest, report: Report) -> Trained:
        told = variables(request)
        model = Path(told["TRAIN_MODEL"])
        model.unlink(missing_ok=True)  # that of an earlier run would pass for this one's
        shutil.rmtree(model.with_suffix(""), ignore_errors=True)
        argv = [_filled(word, told) for word in read_options(request.options, Options, trainer=NAME).argv]
        last = Progress(step=0, message=shlex.join(argv))
        with subprocess.Popen(
            argv,
            env=inherited_environment() | told,
            cwd=request.out,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        ) as process:
            try:
                report(last)
                for line in output_lines(process):
                    news = progress_in(line)
                    last = news or last
                    # a line without news is still a moment at which the run may be stopped
                    report(news or msgspec.structs.replace(last, message="", metrics={}))
            except BaseException:
                process.terminate()
                raise
        if process.returncode:
            raise TrainerFailed(
                f"The command {argv[0]} ended with status {process.returncode}.",
                hint=f"What it wrote is in {request.out / 'log.txt'}.",
            )
        model = _left_as(model)
        return Trained(model, _card(model, request), last.metrics)


def variables(request: TrainRequest) -> dict[str, str]:
    """What the program is told: names -> texts."""
    labels = request.out / "labels.txt"
    labels.write_text("".join(f"{label}\n" for label in request.labels))
    return {
        "TRAIN_DATA": str(request.data.resolve()),
        "TRAIN_LABELS": str(labels.resolve()),
        "TRAIN_BASE": str(request.base.resolve()) if request.base else "",
        "TRAIN_OUT": str(request.out.resolve()),
        "TRAIN_MODEL": str(request.out.resolve() / "model.onnx"),
        "TRAIN_CHECKPOINT": str(request.checkpoint.resolve()),
        "TRAIN_BUDGET_S": f"{request.budget_s:g}",
        "TRAIN_THREADS": str(request.threads),
        "TRAIN_DEVICE": request.device,
        "TRAIN_SEED": str(request.seed),
    }


def _filled(word: str, told: dict[str, str]) -> str:
    """{data}, {base}, {out} … in an argument; other braces are left alone."""
    for name, value in told.items():
        word = word.replace("{" + name.removeprefix("TRAIN_").lower() + "}", value)
    return word


def output_lines(process: subprocess.Popen[bytes]) -> Iterator[bytes]:
    """What the program writes, line by line and into our own output; an empty line whenever it is silent for CHECK_S,
    so that the caller can stop."""
    assert process.stdout is not None
    pipe, rest = process.stdout.fileno(), b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            if not selector.select(CHECK_S):
                if process.poll() is not None:
                    break  # ended, and something it started holds its output open
                yield b""
                continue
            data = os.read(pipe, 65_536)
            if not data:
                break
            os.write(1, data)
            *lines, rest = (rest + data).split(b"\n")
            rest = rest[-LONGEST_LINE:]
            yield from lines
    yield rest


def progress_in(line: bytes) -> Progress | None:
    """What a line of JSON says of a training; None for any other line."""
    if not line.lstrip().startswith(b"{"):
        return None
    try:
        return Progress(**msgspec.structs.asdict(from_json(line, Line)))
    except msgspec.MsgspecError:  # a dictionary of its own
        return None


def _left_as(model: Path) -> Path:
    """The ONNX file, or the folder of transformers beside it that has its name without the suffix, as one file. Raises
    LabelloopError when neither is there."""
    folder = model.with_suffix("")
    if not model.is_file() and is_model_folder(folder):
        packed = folder.with_suffix(".zip")
        pack(folder, packed)
        return packed
    if not model.is_file():
        raise TrainerFailed(
            f"The command ended well, and left no {model.name} in {model.parent}.",
            hint="Write the model to the path in the environment variable TRAIN_MODEL.",
        )
    return model


def _card(model: Path, request: TrainRequest) -> ModelCard:
    """The card in `model.yaml` beside the file, completed from the file and the request. Raises LabelloopError when the
    file is of no known family, or speaks of other classes."""
    card = read_card(model.with_suffix(".yaml"), name=request.base_card.name if request.base_card else NAME)
    if model.suffix == ".zip":
        card = msgspec.structs.replace(card, engine="transformers")
    elif not card.labels and not metadata_names(read_signature(model).metadata):
        card = msgspec.structs.replace(card, labels=request.labels)  # the file does not name its classes
    factory: EngineFactory = plugins.load("labelloop.engines", card.engine)
    card = factory.describe(model, card)
    if not set(card.labels) & set(request.labels):
        raise TrainerFailed(
            f"The model's classes ({', '.join(card.labels[:5])}) are none of the project's "
            f"({', '.join(request.labels[:5])}).",
            hint="Write the project's labels into model.yaml beside the file, in the order of its classes.",
        )
    return card

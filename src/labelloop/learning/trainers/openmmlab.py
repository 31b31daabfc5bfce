"""Go on training a detector or instance segmenter of MMDetection or MMYOLO, in the interpreter that has these packages.

MMEngine's Runner works there (compat/names/labelloop_openmmlab/training.py) with the config's own network, losses and
optimiser; the pictures, the schedule and the end of it are ours. What comes out is served by the engine that served
what went in.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import ClassVar

import msgspec

from labelloop.engines.isolated import FAR_SIDE
from labelloop.engines.mmdet import MmdetEngine
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Trained,
    TrainerFailed,
    TrainRequest,
    encode,
    read_options,
)
from labelloop.learning.trainers.command import output_lines, progress_in
from labelloop.runtimes.processes import inherited_environment

MODEL = "model.zip"
STOP_S = 1.2
"""A little less than we are given ourselves: it writes its checkpoint meanwhile."""
RUN = "import sys; sys.path.append(sys.argv[1]); from labelloop_openmmlab.training import main; main(sys.argv[2])"


class OpenmmlabOptions(msgspec.Struct, frozen=True):
    """`rate` is the learning rate; None: the config's, brought down to the batch. `max_steps` ends training by steps
    instead of by time."""

    batch: int = 8
    rate: float | None = None
    max_steps: int | None = None


class OpenmmlabTrainer:
    name: ClassVar[str] = "openmmlab"

    def refuses(self, request: TrainRequest) -> str | None:
        card = request.base_card
        if request.base is None or card is None or card.engine != "mmdet" or card.host is None:
            return "It begins from a model of OpenMMLab: labelloop models add --engine mmdet."
        if not os.access(card.host.python, os.X_OK):
            return f"The interpreter {card.host.python} is not there: make it, or add the model with another --python."
        return None

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Raises TrainerFailed, Stopped (behind a checkpoint), TrainerError for options that there are not."""
        card = request.base_card
        assert card is not None
        assert card.host is not None
        model = request.out / MODEL
        model.unlink(missing_ok=True)  # that of an earlier run would pass for this one's
        argv = [card.host.python, "-c", RUN, str(FAR_SIDE / "names"), str(_write_request(request, model))]
        last = _follow(argv, _environment(request.device), report)
        if not model.is_file():
            raise TrainerFailed("MMEngine ended without a model.", hint=f"Its log is {request.out / 'log.txt'}.")
        metrics = {"steps": float(last.step), "seconds": last.seconds}
        return Trained(
            model, MmdetEngine.describe(model, card), metrics | ({"loss": last.loss} if last.loss is not None else {})
        )


def _write_request(request: TrainRequest, model: Path) -> Path:
    options = read_options(request.options, OpenmmlabOptions, trainer=OpenmmlabTrainer.name)
    told = {
        "base": request.base,
        "data": request.data.resolve(),
        "labels": request.labels,
        "out": request.out.resolve(),
        "model": model.resolve(),
        "budget_s": request.budget_s,
        "threads": request.threads,
        "device": "cpu" if request.device == "cpu" else "cuda:0",  # `_environment` shows it one
        "seed": request.seed,
        "fingerprint": request.fingerprint(),
        **msgspec.structs.asdict(options),
    }
    path = request.out / "request.json"
    path.write_bytes(encode(told))
    return path


def _environment(device: str) -> dict[str, str]:
    """Ours, without what points Python at our packages. MMEngine takes the first GPU that it sees, whatever it is told,
    so it sees the one that is meant, or none."""
    found = inherited_environment(without=("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV"))
    kind, _, number = device.partition(":")
    if kind == "cpu":
        return found | {"CUDA_VISIBLE_DEVICES": ""}
    seen = [name for name in found.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    chosen = int(number or 0)
    return found | {"CUDA_VISIBLE_DEVICES": seen[chosen] if chosen < len(seen) else str(chosen)}


def _follow(argv: list[str], environment: dict[str, str], report: Report) -> Progress:
    """Pass its progress on until it ends; the last of it. Raises TrainerFailed and, when `report` does, Stopped."""
    last, words = Progress(step=0), b""
    with subprocess.Popen(
        argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        try:
            for line in output_lines(process):
                news = progress_in(line)
                words = line if line.strip() and news is None else words
                last = news or last
                # a line without news is still a moment at which the run may be stopped
                report(news or msgspec.structs.replace(last, message="", metrics={}))
        except BaseException:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode:
        said = words.decode(errors="replace").strip()
        raise TrainerFailed(f"MMEngine failed: {said or f'it ended with status {process.returncode}'}.", hint=HINT)
    return last


HINT = "Smaller pictures or batches need less memory, a lower rate keeps the loss in bounds; the rest is in the log."

"""The trainer `scratch`: from a data set to a served file. Everything heavy is imported inside."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.extras import not_installed
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Trained,
    TrainerFailed,
    TrainRequest,
    read_options,
    replace_file,
)

if TYPE_CHECKING:
    from labelloop.learning.trainers.scratch.network import Detector
    from labelloop.learning.trainers.scratch.pictures import Album

NAME = "scratch"
RESERVE_S = 3.0
"""Of the budget for writing and checking the file; a fifth of it when it is short."""
IOU_THRESHOLD = 0.6
LARGEST_GAP_PX, LARGEST_GAP_SCORE = 0.01, 1e-4


class ScratchTrainer:
    name = NAME

    def refuses(self, request: TrainRequest) -> str | None:
        if missing := not_installed("torch"):
            return missing
        if not request.labels:
            return "The data set has no labels: give the label config some."
        if not json.loads((request.data / "train.json").read_bytes())["annotations"]:
            return "There is no box in the training pictures: draw some, on pictures of the training side."
        if request.base is not None and not _is_ours(request):
            return (
                "It goes on only from a model that it has made itself. Leave the base model out to begin from nothing, "
                "or use a trainer that fine-tunes it (head)."
            )
        return None

    def train(self, request: TrainRequest, report: Report) -> Trained:
        began = time.monotonic()
        import cv2
        import torch

        from labelloop.learning.trainers.scratch.network import LARGEST_STRIDE
        from labelloop.learning.trainers.scratch.pictures import Album, fitting_side, read_samples
        from labelloop.learning.trainers.scratch.training import Recipe, State, fit

        recipe = read_options(request.options, Recipe, trainer=NAME)
        torch.set_num_threads(request.threads)
        cv2.setNumThreads(1)
        torch.manual_seed(request.seed)
        samples = read_samples(request.data, "train", request.labels)
        side = recipe.side or fitting_side(samples)
        if side % LARGEST_STRIDE:
            raise TrainerFailed(f"side {side} is no multiple of {LARGEST_STRIDE}.", hint="Take for instance 320.")
        device = request.device if torch.cuda.is_available() else "cpu"
        state = State(_net(request).to(device), recipe, request.fingerprint())
        resumed = state.restore(request.checkpoint)
        message = f"going on from step {state.step}" if resumed else f"{len(samples)} pictures at {side} x {side}"
        if device != request.device:
            message += f", on the CPU: this torch cannot use {request.device}"
        report(Progress(step=state.step, seconds=state.seconds, message=message))
        album = Album(samples, side=side, memory_bytes=recipe.memory_mb * 1_000_000)
        end_s = request.budget_s - min(RESERVE_S, request.budget_s / 5)
        if recipe.clock == "wall":
            state.seconds += time.monotonic() - began  # importing torch is a part of what the caller waits for
        fit(state, album, request=request, recipe=recipe, side=side, end_s=end_s, report=report)
        if state.step == 0 and recipe.max_steps is None:
            raise TrainerFailed(
                f"{request.budget_s:g} s were not enough for a single step.", hint="Give it a minute or more."
            )
        return _finish(state.mean, album, request, side, {"steps": state.step, "seconds": state.seconds})


def _is_ours(request: TrainRequest) -> bool:
    from labelloop.engines.onnx import read_signature

    assert request.base is not None
    try:
        return read_signature(request.base).metadata.get("trainer") == f"labelloop.{NAME}"
    except ModelError:  # not an ONNX file at all
        return False


def _net(request: TrainRequest) -> Detector:
    """A new net, or the base model's weights with the rows of its classes where they are wanted now."""
    from labelloop.learning.trainers.scratch.export import weights_of
    from labelloop.learning.trainers.scratch.network import Detector

    net = Detector(len(request.labels))
    if request.base is None:
        return net
    state, before = net.state_dict(), weights_of(request.base)
    known = request.base_card.labels if request.base_card else ()
    for name, value in state.items():
        if name in ("heat.weight", "heat.bias"):
            for row, label in enumerate(request.labels):
                if label in known:
                    value[row] = before[name][known.index(label)]
        elif name in before:
            value.copy_(before[name])
    return net


def _finish(net: Detector, album: Album, request: TrainRequest, side: int, metrics: dict[str, float]) -> Trained:
    import numpy as np
    import torch

    from labelloop.learning.trainers.scratch.export import differences, write_onnx
    from labelloop.learning.trainers.scratch.pictures import Changes, change
    from labelloop.learning.trainers.scratch.training import normalised

    net = net.cpu().eval()
    model = request.out / "model.onnx"
    replace_file(model, lambda path: write_onnx(net, path, labels=request.labels, side=side))
    still, rng = Changes(zoom=1.0, colour=0.0, flip=False), np.random.default_rng(request.seed)
    rows = [
        change(album.picture(index), album.samples[index], side=side, changes=still, rng=rng)[0]
        for index in range(min(4, len(album.samples)))
    ]
    pixels, score = differences(net, model, normalised(torch.from_numpy(np.stack(rows))))
    if not (pixels <= LARGEST_GAP_PX and score <= LARGEST_GAP_SCORE):
        raise TrainerFailed(
            f"The ONNX file does not say what the net says: boxes differ by {pixels:.3g} px, scores by {score:.3g}.",
            hint="This is a fault of labelloop, or of this ONNX Runtime: please report it with both versions.",
        )
    card = ModelCard(
        name=request.base_card.name if request.base_card else NAME,
        family="mmdeploy",
        labels=request.labels,
        input=InputSpec(size_wh=(side, side)),
        iou_threshold=IOU_THRESHOLD,
        description="Trained by labelloop from nothing.",
    )
    return Trained(model, card, metrics | {"parity_px": pixels, "parity_score": score})

"""The loop: a fixed time, a rate that falls to nothing at its end, a running mean of the weights, checkpoints."""

from __future__ import annotations

import copy
import math
import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog
import torch
from torch import Tensor

from labelloop.learning.trainers.base import Progress, Report, TrainRequest, replace_file
from labelloop.learning.trainers.scratch.network import Detector
from labelloop.learning.trainers.scratch.pictures import Album, Batch, Changes, ahead, batches
from labelloop.learning.trainers.scratch.targets import loss_of

log = structlog.get_logger(__name__)

MEAN, STD = (103.53, 116.28, 123.675), (57.375, 57.12, 58.395)
"""BGR, as `engines/detect` prepares pictures for the family `mmdeploy`."""


class Recipe(msgspec.Struct, frozen=True):
    """The options of `scratch`. `side`: width and height of the net's input, a multiple of 32; 0: by the objects' size.
    `clock`: what the budget counts, "wall" time or the "cpu" time of all threads (to compare runs on a busy machine).
    `max_steps` ends a run before its budget does, and the rate falls with the steps, so that the run can be repeated.
    `memory_mb`: how much the pictures in memory may take."""

    side: int = 0
    batch: int = 4
    rate: float = 3e-3
    weight_decay: float = 0.02
    ema: float = 0.98
    warm_up: int = 20
    max_steps: int | None = None
    clock: Literal["wall", "cpu"] = "wall"
    checkpoint_s: float = 10.0
    memory_mb: int = 1000
    zoom: float = 1.4
    colour: float = 0.2
    flip: bool = True
    flip_vertical: bool = False

    @property
    def changes(self) -> Changes:
        return Changes(self.zoom, self.colour, self.flip, self.flip_vertical)


class State:
    """Everything that a resumed run needs. `mean` is the net with the running mean of the weights: the result."""

    def __init__(self, net: Detector, recipe: Recipe, fingerprint: str) -> None:
        self.net, self.mean = net, copy.deepcopy(net).eval().requires_grad_(False)
        # no decay of biases and norms: it only pulls them off their place
        decayed = [weight for weight in net.parameters() if weight.ndim > 1]
        others = [weight for weight in net.parameters() if weight.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate, fused=True)
        self.step, self.seconds, self.fingerprint = 0, 0.0, fingerprint

    def save(self, path: Path) -> None:
        replace_file(path, lambda fresh: torch.save(self._parts(), fresh))

    def _parts(self) -> dict[str, Any]:
        plain = {name: getattr(self, name) for name in ("step", "seconds", "fingerprint")}
        return plain | {name: getattr(self, name).state_dict() for name in ("net", "mean", "optimizer")}

    def restore(self, path: Path) -> bool:
        """Take over a checkpoint of the same request; False when there is none, or another's."""
        if not path.is_file():
            return False
        try:
            parts = torch.load(path, weights_only=True, map_location="cpu")
        except Exception as error:  # torch raises what it likes for a damaged file; starting anew is always right
            log.warning("checkpoint-unreadable", file=str(path), error=str(error))
            return False
        if parts["fingerprint"] != self.fingerprint:
            return False
        self.step, self.seconds = parts["step"], parts["seconds"]
        for name in ("net", "mean", "optimizer"):
            getattr(self, name).load_state_dict(parts[name])
        return True


def fit(
    state: State, album: Album, *, request: TrainRequest, recipe: Recipe, side: int, end_s: float, report: Report
) -> None:
    """Train until `end_s` seconds of the recipe's clock, those before a checkpoint included. Raises Stopped."""
    device = next(state.net.parameters()).device
    clock = time.monotonic if recipe.clock == "wall" else time.process_time
    began, saved = clock() - state.seconds, time.monotonic()
    last = math.inf if recipe.max_steps is None else recipe.max_steps
    source = batches(
        album,
        side=side,
        size=recipe.batch,
        labels=len(request.labels),
        changes=recipe.changes,
        seed=request.seed,
        start=state.step,
    )
    stream = ahead(source)
    try:
        while state.step < last and state.seconds < end_s:
            done = state.seconds / end_s if recipe.max_steps is None else state.step / last
            loss = _step(state, next(stream), rate=_rate(recipe, state.step, done), recipe=recipe, device=device)
            state.step, state.seconds = state.step + 1, clock() - began
            report(_progress(state, loss, end_s, last))
            if time.monotonic() - saved > recipe.checkpoint_s:
                state.save(request.checkpoint)
                saved = time.monotonic()
    finally:
        stream.close()
        state.save(request.checkpoint)


def _progress(state: State, loss: float, end_s: float, last: float) -> Progress:
    by_clock = state.step * end_s / max(state.seconds, 1e-9)
    return Progress(step=state.step, steps=round(min(by_clock, last)), seconds=state.seconds, loss=loss)


def _rate(recipe: Recipe, step: int, done: float) -> float:
    """A linear start, then half a cosine over the clock."""
    return recipe.rate * min(1.0, (step + 1) / recipe.warm_up) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


def _step(state: State, batch: Batch, *, rate: float, recipe: Recipe, device: torch.device) -> float:
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.net.train()
    pictures = normalised(torch.from_numpy(batch.pictures).to(device))
    heat, box, weight = (torch.from_numpy(part).to(device) for part in (batch.heat, batch.box, batch.weight))
    with torch.autocast(device.type, torch.bfloat16, enabled=has_bfloat16(device)):
        outputs = state.net(pictures)
    loss = loss_of(outputs, heat, box, weight)
    state.optimizer.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(state.net.parameters(), 35.0)
    state.optimizer.step()
    _follow(state.mean, state.net, decay=min(recipe.ema, (1 + state.step) / (10 + state.step)))
    return float(loss.detach())


def normalised(pictures: Tensor) -> Tensor:
    """uint8 BGR [b, h, w, 3] -> what the net takes, [b, 3, h, w]."""
    mean, std = (torch.tensor(values, device=pictures.device) for values in (MEAN, STD))
    return ((pictures - mean) / std).permute(0, 3, 1, 2).contiguous()


def _follow(mean: Detector, net: Detector, *, decay: float) -> None:
    with torch.no_grad():
        for slow, fast in zip(mean.state_dict().values(), net.state_dict().values(), strict=True):
            if slow.dtype.is_floating_point:
                slow.lerp_(fast.to(slow.dtype), 1 - decay)
            else:
                slow.copy_(fast)


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is computed, not emulated: without these instructions a step takes longer, not half the time."""
    if device.type != "cpu":
        return bool(torch.cuda.is_bf16_supported())
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())

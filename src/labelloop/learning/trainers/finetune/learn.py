"""The steps of `head.fine_tune`: look at the pictures, learn from what was seen, answer for the comparison."""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import structlog
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from labelloop.core.errors import MediaError
from labelloop.engines.detect.prepare import Prepared
from labelloop.learning.trainers.base import Progress, Report, Stopped, TrainerFailed, TrainRequest, replace_file
from labelloop.learning.trainers.finetune.assign import Objects
from labelloop.learning.trainers.finetune.detector import Detector
from labelloop.learning.trainers.finetune.feature_cache import FeatureCache, Known, each_view
from labelloop.learning.trainers.finetune.schedule import Average, Clock, batches, rate
from labelloop.learning.trainers.views import Plan, Sample, View, make_view, plan_views

if TYPE_CHECKING:
    from labelloop.learning.trainers.head import HeadOptions

log = structlog.get_logger(__name__)

LOOKING_SHARE = 0.4
MIRROR_SHARE = 0.25
"""Shares of the budget after which no further picture, and no further mirror image, is looked at."""
CHECKPOINT_EVERY_S = 10.0
GRADIENT_NORM = 10.0
WITNESSES = 2
STEADY = 0.1
"""Weight of the newest loss in the running mean."""
ESTIMATE_FROM = 0.02


class Learned(NamedTuple):
    """`weights` by ONNX name, averaged; `loss` is the running mean at the end; `seconds` of the budget are spent."""

    weights: dict[str, nn.Parameter]
    steps: int
    loss: float
    seconds: float


def reserve_s(request: TrainRequest) -> float:
    """What writing and comparing the file may take."""
    return min(2.5, 0.12 * request.budget_s)


def look(
    model: Detector, samples: Sequence[Sample], *, request: TrainRequest, clock: Clock, report: Report
) -> FeatureCache:
    """Run the frozen part over every picture and its mirror image, as far as there is time."""
    plans = plan_views(len(samples), seed=request.seed)
    cache = FeatureCache(request.out, room=len(plans))

    def make(sample: Sample, plan: Plan) -> tuple[View, list[NDArray[Any]]]:
        view = make_view(sample, plan, model.card.input)
        return view, [one[0] for one in model.features([view.prepared])]

    limits = {False: clock.at(LOOKING_SHARE), True: clock.at(MIRROR_SHARE)}
    for plan, (view, maps) in each_view(
        samples, plans, make, threads=request.threads, until=lambda plan: limits[plan.mirrored]
    ):
        cache.add(plan, view, maps)
        report(Progress(0, seconds=clock.seconds()))
    return cache


def witnesses(model: Detector, samples: Sequence[Sample]) -> list[Prepared]:
    """Pictures for the comparisons: the first that can be read."""
    found: list[Prepared] = []
    for sample in samples:
        try:
            found.append(make_view(sample, Plan(0, False), model.card.input).prepared)
        except (OSError, MediaError):  # `look` has said so in the log
            continue
        if len(found) == WITNESSES:
            break
    return found


def learn(
    model: Detector,
    cache: FeatureCache,
    *,
    request: TrainRequest,
    options: HeadOptions,
    clock: Clock,
    report: Report,
) -> Learned:
    """Train the module until the clock says that it is over; the averaged weights are left in it.

    Goes on from a checkpoint of the same request. Raises Stopped, after writing one.
    """
    torch.manual_seed(request.seed)
    torch.set_num_threads(request.threads)
    run = _Run(model, cache, request=request, options=options)
    run.resume(clock)
    saved_s = clock.seconds()
    order = batches(len(cache.known), size=options.batch, seed=request.seed, step=run.steps)
    try:
        while (progress := clock.progress(run.steps)) < 1:
            run.step(next(order), progress)
            expected = options.max_steps or (int(run.steps / progress) if progress > ESTIMATE_FROM else None)
            report(Progress(run.steps, expected, seconds=clock.seconds(), loss=run.loss))
            if clock.seconds() - saved_s > CHECKPOINT_EVERY_S:
                run.save(clock)
                saved_s = clock.seconds()
    except Stopped:
        run.save(clock)
        raise
    return Learned(run.finish(), run.steps, run.loss, clock.seconds())


class _Run:
    """What changes while training: weights, their average, the optimizer, the count of steps, the running loss."""

    def __init__(self, model: Detector, cache: FeatureCache, *, request: TrainRequest, options: HeadOptions) -> None:
        self._model, self._cache, self._request = model, cache, request
        self._device = torch.device(request.device)
        self._half = _half_precision(self._device)
        model.module.to(self._device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._points = type(model.points)(*[part.to(self._device) for part in model.points])
        self._weights = model.module.weights()
        self._optimizer = _optimizer(model, options)
        self._average = Average(self._weights)
        self.steps, self.loss = 0, float("nan")

    def step(self, batch: Sequence[int], progress: float) -> None:
        for group in self._optimizer.param_groups:
            group["lr"] = group["base_rate"] * rate(progress, self.steps)
        maps = [torch.from_numpy(one).permute(0, 3, 1, 2).to(self._device) for one in self._cache.features(batch)]
        objects = _objects([self._cache.known[index] for index in batch], self._device)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            answers = self._model.answers(maps, self._points)
        loss = self._model.loss(answers, objects, self._points)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self._model.module.parameters(), GRADIENT_NORM)
        self._optimizer.step()
        self._average.update(self._weights, step=self.steps)
        value = loss.item()
        if not math.isfinite(value):
            raise TrainerFailed(
                f"Training diverged at step {self.steps}: the loss is {value}.",
                hint="Lower the options rate, class_rate.",
            )
        self.loss = value if self.steps == 0 else self.loss + STEADY * (value - self.loss)
        self.steps += 1

    @torch.no_grad()
    def finish(self) -> dict[str, nn.Parameter]:
        """The averaged weights, put into the module, which is on the CPU again."""
        for name, value in self._average.weights.items():
            self._weights[name].copy_(value)
        self._model.module.to("cpu")
        return self._model.module.weights()

    def save(self, clock: Clock) -> None:
        """Write what a later try goes on from, in one step."""
        state = {
            "fingerprint": self._request.fingerprint(),
            "weights": {name: value.detach() for name, value in self._weights.items()},
            "average": self._average.weights,
            "optimizer": self._optimizer.state_dict(),
            "clock": (clock.progress(self.steps), clock.seconds()),
            "progress": (self.steps, self.loss),
        }
        replace_file(self._request.checkpoint, lambda fresh: torch.save(state, fresh))

    def resume(self, clock: Clock) -> None:
        """Go on from the checkpoint, if there is one and it is of this request."""
        path = self._request.checkpoint
        if not path.is_file():
            return
        try:
            state = torch.load(path, map_location=self._device, weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            log.warning("checkpoint-unreadable", path=str(path), error=str(error))
            return
        if state["fingerprint"] != self._request.fingerprint():
            return
        with torch.no_grad():
            for name, value in state["weights"].items():
                self._weights[name].copy_(value)
        self._average.weights = state["average"]
        self._optimizer.load_state_dict(state["optimizer"])
        clock.resume(*state["clock"])
        self.steps, self.loss = state["progress"]


@torch.no_grad()
def all_answers(model: Detector, pictures: Sequence[Prepared]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes [b, n, 4] and scores [b, n, c] of every cell or query, from the module."""
    answers = model.answers([torch.from_numpy(one) for one in model.features(pictures)], model.points)
    return answers.xyxy.numpy(), answers.scores.numpy()


def _optimizer(model: Detector, options: HeadOptions) -> torch.optim.AdamW:
    classes = {name for rows in model.layers.classes for name in rows.weights}
    groups: dict[tuple[float, float], list[Tensor]] = {}
    for name, weight in model.module.weights().items():
        base = options.class_rate * model.family.class_pace if name in classes else options.rate
        decay = options.weight_decay if weight.ndim > 1 else 0.0
        groups.setdefault((base, decay), []).append(weight)
    return torch.optim.AdamW(
        fused=True,  # 24 ms of processor time a step with YOLOX-nano's 180 tensors one by one
        params=[
            {"params": some, "base_rate": base, "lr": base, "weight_decay": decay}
            for (base, decay), some in groups.items()
        ],
    )


def _half_precision(device: torch.device) -> bool:
    """bfloat16 where the processor reckons in it; where it only imitates it, a step takes 1.7 times as long."""
    cpu = torch.cpu
    return device.type == "cuda" or cpu._is_avx512_bf16_supported() or cpu._is_amx_tile_supported()


def _objects(known: Sequence[Known], device: torch.device) -> Objects:
    most = max([1, *(len(one.labels) for one in known)])
    xyxy = torch.zeros(len(known), most, 4)
    labels = torch.zeros(len(known), most, dtype=torch.int64)
    real = torch.zeros(len(known), most, dtype=torch.bool)
    for row, one in enumerate(known):
        count = len(one.labels)
        xyxy[row, :count], labels[row, :count] = torch.from_numpy(one.xyxy), torch.from_numpy(one.labels)
        real[row, :count] = True
    return Objects(xyxy.to(device), labels.to(device), real.to(device))

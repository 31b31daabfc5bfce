"""Fine-tune a detector from its ONNX file alone, on a CPU, in about a minute.

`fine_tune` is the whole recipe. The backbone is frozen: ONNX Runtime runs it once over every picture and its mirror
image, and what it says is kept. Neck and head become a torch module with the file's own weights and a new class layer;
they are trained on what was kept and written back. Trainer `full` is the same from the picture on.
"""

from __future__ import annotations

import math
import time
from typing import ClassVar, Literal

import msgspec

from labelloop.core.extras import not_installed
from labelloop.learning.trainers.base import Report, Trained, TrainRequest, read_options

MODEL = "model.onnx"


class HeadOptions(msgspec.Struct, frozen=True):
    """`part` is what is trained: "neck" is neck and head, "head" what serves one stride only. `rate` is the learning
    rate, `class_rate` that of the class layer. `cut` names the values at the end of the backbone, largest first, for
    files whose graph does not show it. `epochs` is how often a picture may be seen: with few of them training ends
    before the budget does, or they are learned by heart. `max_steps` ends training by steps instead of by time, to
    compare runs on a busy machine."""

    part: Literal["neck", "head"] = "neck"
    batch: int = 4
    rate: float = 2e-3
    class_rate: float = 8e-3
    weight_decay: float = 0.02
    cut: tuple[str, ...] = ()
    max_steps: int | None = None
    epochs: int = 40


class HeadTrainer:
    """Trainer `head`: neck and head, or the head alone."""

    name: ClassVar[str] = "head"

    def refuses(self, request: TrainRequest) -> str | None:
        return refusal(request)

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Raises TrainerRefused (also for a graph that cannot be taken apart), TrainerError, TrainerFailed."""
        options = read_options(request.options, HeadOptions, trainer=self.name)
        return fine_tune(request, report, part=options.part, options=options)


def fine_tune(request: TrainRequest, report: Report, *, part: str, options: HeadOptions) -> Trained:
    """Read, look, check, learn, write, compare: all within `request.budget_s`."""
    started = time.monotonic()
    from labelloop.learning.trainers import views
    from labelloop.learning.trainers.finetune import detector, export, learn, schedule

    clock = schedule.Clock(
        request.budget_s, reserve_s=learn.reserve_s(request), max_steps=options.max_steps, started=started
    )
    samples = views.read_samples(request.data, "train", request.labels)
    model = detector.open_detector(request, part=part, cut=options.cut)
    cache = learn.look(model, samples, request=request, clock=clock, report=report)
    witnesses = learn.witnesses(model, samples)
    agreement = model.check(model.features(witnesses))
    looked_s = clock.seconds()
    clock.limit(math.ceil(options.epochs * len(samples) / options.batch))
    learned = learn.learn(model, cache, request=request, options=options, clock=clock, report=report)
    export.write_back(model.graph, learned.weights)
    answers = learn.all_answers(model, witnesses)
    path = request.out / MODEL
    export.save(model.graph, path, labels=request.labels, suppression=model.suppression)
    apart = export.parity(path, model.card, witnesses, *answers, suppression=model.suppression, told=model.family.told)
    metrics = {
        "steps": float(learned.steps),
        "loss": learned.loss,
        "views": float(len(cache.known)),
        "looking_s": looked_s,
        "training_s": learned.seconds - looked_s,
        "seconds": clock.seconds(),
        "conversion_difference": agreement.difference,
        "pixels_apart": apart.pixels,
        "score_apart": apart.score,
    }
    return Trained(model=path, card=model.card, metrics=metrics)


def refusal(request: TrainRequest) -> str | None:
    """Why neither `head` nor `full` can train this, by the card and by the operators of the file. Raises ModelError for
    a file that cannot be read."""
    if request.base is None:
        return "There is no model to start from: use the trainer scratch."
    if missing := not_installed("torch"):
        return missing
    from labelloop.learning.trainers.finetune.recipes import FAMILIES, why_not
    from labelloop.learning.trainers.finetune.suppression import is_missing

    card = request.base_card
    if card is not None and card.engine != "detect":
        return f"It trains detectors in ONNX files, and {card.name} is of the engine {card.engine}."
    family = card.family if card else None
    if family is not None and family not in FAMILIES:
        return why_not(card)
    if family == "mmdeploy" and is_missing(request.base):
        return (
            "There is no suppression in this file, so it is not one of MMDeploy's. What scratch made, scratch trains."
        )
    return None

"""The trainer `transformers`: RT-DETR, RT-DETRv2 and D-FINE fine-tuned from a local folder, on a GPU or a CPU.

All weights are trained, the backbone's at a tenth of the rate, as the authors do (Zhao et al., DETRs beat YOLOs on
real-time object detection, CVPR 2024). What is left is an ONNX file, if that answers as the model does
(`huggingface_export`), beside the packed folder that the next run goes on from; else the folder alone.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.extras import not_installed
from labelloop.engines.model_folder import pack, unpacked
from labelloop.learning.trainers import huggingface_export
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Stopped,
    Trained,
    TrainerFailed,
    TrainRequest,
    read_options,
    replace_file,
)

ARCHITECTURES = ("RTDetrForObjectDetection", "RTDetrV2ForObjectDetection", "DFineForObjectDetection")
MODEL, EXPORTED = "model.zip", "model.onnx"
RESERVE, RESERVE_S, MOST_RESERVED = 0.15, 30.0, 0.4
"""Of the budget for writing and checking what was trained: the share, but these seconds (RT-DETRv2-R18 takes 11 s of
processor time to be exported, and then 24 pictures are compared), but at most the last share."""
CHECKPOINT_EVERY_S = 30.0


class TransformersOptions(msgspec.Struct, frozen=True):
    """`rate` is the learning rate, a tenth of it for the backbone. `clip` is the largest norm of a step's gradient.
    `max_steps` ends training by steps instead of by time. Without `export` the folder is served."""

    batch: int = 4
    rate: float = 1e-4
    weight_decay: float = 1e-4
    clip: float = 0.1
    max_steps: int | None = None
    export: bool = True


class TransformersTrainer:
    name: ClassVar[str] = "transformers"

    def refuses(self, request: TrainRequest) -> str | None:
        if missing := not_installed("transformers", "torch"):
            return missing
        card = request.base_card
        if request.base is None or card is None or card.engine != "transformers":
            return "It begins from a folder of transformers: labelloop models add FOLDER."
        if card.family not in ARCHITECTURES:
            return f"It trains RT-DETR, RT-DETRv2 and D-FINE, and {card.name} is a {card.family}."
        return None

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Raises TrainerFailed when the budget is too short for a step, and LabelloopErrors."""
        from labelloop.learning.trainers import views

        options = read_options(request.options, TransformersOptions, trainer=self.name)
        assert request.base is not None
        folder = request.out / "folder"
        shutil.rmtree(folder, ignore_errors=True)
        with unpacked(request.base) as base:
            shutil.copytree(base, folder)
        run = _Run(folder, request, options, views.read_samples(request.data, "train", request.labels))
        steps, loss, seconds = run.learn(report)
        run.save(folder)
        path = request.out / MODEL
        replace_file(path, lambda target: pack(folder, target))
        trained = Trained(path, _card(request), {"steps": float(steps), "loss": loss, "seconds": seconds})
        if not options.export:
            return trained
        # a tracer that needs too much memory or time, or crashes, costs the file, and not what was learned
        report(Progress(step=steps, seconds=seconds, message="trained; now as an ONNX file", finished=trained))
        return _exported(run, request, trained, report)


def _exported(run: _Run, request: TrainRequest, trained: Trained, report: Report) -> Trained:
    """The ONNX file, made of `trained`, if it answers alike; else `trained`, and the log says why."""
    path = request.out / EXPORTED
    card = msgspec.structs.replace(trained.card, engine="detect", family="detr-raw", input=run.spec)
    try:
        huggingface_export.export(run.released(), run.spec, request.labels, path)
        parity = huggingface_export.compare(
            (trained.model, trained.card), (path, card), request, until=run.began + request.budget_s
        )
        parity.check()
    except Exception as error:  # a tracer may raise anything
        why = (str(error) or type(error).__name__).splitlines()[0]  # a tracer's go on for pages
        report(Progress(step=run.step, message=f"the folder is served, not an ONNX file: {why}"))
        return trained
    report(Progress(step=run.step, message=f"an ONNX file is served: {parity.sentence}"))
    return Trained(path, card, trained.metrics | parity.metrics, source=trained)


class _Run:
    """A model on its way. Everything heavy is imported inside."""

    def __init__(self, folder: Path, request: TrainRequest, options: TransformersOptions, samples: Any) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModelForObjectDetection

        torch.set_num_threads(request.threads)
        torch.manual_seed(request.seed)
        self._request, self._options, self._samples = request, options, samples
        self.began = time.monotonic()
        self.device = request.device if torch.cuda.is_available() else "cpu"
        names = dict(enumerate(request.labels))
        self.model = AutoModelForObjectDetection.from_pretrained(
            folder,
            id2label=names,
            label2id={label: index for index, label in names.items()},
            ignore_mismatched_sizes=True,  # the class layers, where there are other labels
            local_files_only=True,
            trust_remote_code=False,
        ).to(self.device)
        self.processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        self.spec = spec_of(self.processor.to_dict())
        slow = [one for name, one in self.model.named_parameters() if "backbone" in name and one.requires_grad]
        fast = [one for name, one in self.model.named_parameters() if "backbone" not in name and one.requires_grad]
        groups = [{"params": slow, "lr": options.rate / 10}, {"params": fast, "lr": options.rate}]
        self._rates = [options.rate / 10, options.rate]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self.step, self._before_s, self._loss = self._resumed()

    def learn(self, report: Report) -> tuple[int, float, float]:
        """Steps, the last loss, seconds. Raises Stopped after writing a checkpoint."""
        end_s = self._end_s()
        rng = np.random.default_rng(self._request.seed + self.step)
        message = f"{len(self._samples)} pictures at {'x'.join(map(str, self.spec.size_wh or ()))} on {self.device}"
        message = f"going on from step {self.step}" if self.step else message
        report(Progress(step=self.step, seconds=self._before_s, message=message))
        saved = time.monotonic()
        self.model.train()
        try:
            while (progress := self._progress(end_s)) < 1:
                self._loss = self._one(rng, progress)
                self.step += 1
                report(Progress(self.step, self._options.max_steps, self._seconds(), self._loss))
                if time.monotonic() - saved > CHECKPOINT_EVERY_S:
                    self._keep()
                    saved = time.monotonic()
        except Stopped:
            self._keep()
            raise
        if not self.step:
            raise TrainerFailed(
                f"{self._request.budget_s:g} s were not enough for a single step.", hint="Give it minutes, or a GPU."
            )
        if not np.isfinite(self._loss):
            raise TrainerFailed("The loss is no number any more.", hint="Lower the option rate.")
        self._keep()  # a run that is stopped while it is exported goes on from here
        return self.step, self._loss, self._seconds()

    def _end_s(self) -> float:
        """When training ends, so that the rest is done in the budget too."""
        budget_s = self._request.budget_s
        if not self._options.export:
            return budget_s * (1 - RESERVE)
        return budget_s - max(budget_s * RESERVE, min(RESERVE_S, budget_s * MOST_RESERVED))

    def released(self) -> Any:
        """The model alone, without what only training needs, which is most of the memory."""
        self.optimiser.state.clear()
        self.model.zero_grad(set_to_none=True)
        return self.model

    def save(self, folder: Path) -> None:
        """As `save_pretrained` writes it."""
        for path in folder.iterdir():
            if path.suffix == ".safetensors" or path.name.endswith(".index.json"):
                path.unlink()
        self.model.eval().to("cpu").save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _one(self, rng: np.random.Generator, progress: float) -> float:
        import torch

        from labelloop.engines.detect.prepare import Normaliser
        from labelloop.learning.trainers.views import Plan, make_view

        chosen = rng.integers(0, len(self._samples), min(self._options.batch, len(self._samples)))
        plans = [Plan(int(number), bool(rng.random() < 0.5)) for number in chosen]
        shown = [make_view(self._samples[plan.sample], plan, self.spec) for plan in plans]
        pixels = Normaliser(self.spec, dtype="float32").tensor([view.prepared for view in shown], size=len(shown))
        truth = [self._truth(view) for view in shown]
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * min(1.0, (self.step + 1) / 20) * 0.5 * (1 + math.cos(math.pi * progress))
        loss = self.model(pixel_values=torch.from_numpy(pixels).to(self.device), labels=truth).loss
        self.optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self._options.clip)
        self.optimiser.step()
        return float(loss.detach())

    def _truth(self, view: Any) -> dict[str, Any]:
        """Class numbers [m], and boxes [m, 4] as centre, width and height in shares of the picture."""
        import torch

        width, height = self.spec.size_wh or (1, 1)
        x0, y0, x1, y1 = (view.xyxy / (width, height, width, height)).T
        boxes = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1).astype(np.float32)
        return {
            "class_labels": torch.from_numpy(view.labels).to(self.device),
            "boxes": torch.from_numpy(boxes.reshape(-1, 4)).to(self.device),
        }

    def _seconds(self) -> float:
        return self._before_s + time.monotonic() - self.began

    def _progress(self, end_s: float) -> float:
        if self._options.max_steps is not None:
            return self.step / self._options.max_steps
        return self._seconds() / max(end_s, 1e-3)

    def _keep(self) -> None:
        import torch

        state = {
            "model": self.model.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "seconds": self._seconds(),
            "loss": self._loss,
            "fingerprint": self._request.fingerprint(),
        }
        replace_file(self._request.checkpoint, lambda path: torch.save(state, path))

    def _resumed(self) -> tuple[int, float, float]:
        import torch

        if not self._request.checkpoint.is_file():
            return 0, 0.0, math.nan
        state = torch.load(self._request.checkpoint, weights_only=True, map_location=self.device)
        if state["fingerprint"] != self._request.fingerprint():
            return 0, 0.0, math.nan
        self.model.load_state_dict(state["model"])
        self.optimiser.load_state_dict(state["optimiser"])
        return int(state["step"]), float(state["seconds"]), float(state.get("loss", math.nan))


def spec_of(processor: Mapping[str, Any]) -> InputSpec:
    """How an image processor prepares pictures. Raises ModelError for one that does what we cannot."""
    size = processor.get("size") or {}
    if "height" not in size or "width" not in size or processor.get("do_pad"):
        raise ModelError(
            f"The image processor makes pictures of {size}, and only a fixed height and width can be trained.",
            hint='Set "size": {"height": 640, "width": 640} and "do_pad": false in preprocessor_config.json.',
        )
    normal = bool(processor.get("do_normalize"))
    mean, std = processor.get("image_mean") or (0, 0, 0), processor.get("image_std") or (1, 1, 1)
    return InputSpec(
        size_wh=(int(size["width"]), int(size["height"])),
        color="rgb",
        resize="stretch",
        pad=0.0,
        scale=float(processor.get("rescale_factor", 1 / 255)) if processor.get("do_rescale", True) else 1.0,
        mean=tuple(map(float, mean)) if normal else (0.0, 0.0, 0.0),  # type: ignore[arg-type]
        std=tuple(map(float, std)) if normal else (1.0, 1.0, 1.0),  # type: ignore[arg-type]
    )


def _card(request: TrainRequest) -> ModelCard:
    base = request.base_card
    assert base is not None
    return ModelCard(  # the thresholds are those of the model that it was
        name=base.name,
        engine="transformers",
        family=base.family,
        labels=request.labels,
        score_threshold=base.score_threshold,
        max_detections=base.max_detections,
        description="Trained by labelloop.",
        licence=base.licence,
    )

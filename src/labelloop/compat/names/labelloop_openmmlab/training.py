"""Goes on training a packed detector with MMEngine's Runner, from a COCO folder, within a budget of seconds.

    main("request.json")

What happens is printed as lines of JSON ({"step": …, "loss": …}), as labelloop's trainers read them. SIGTERM ends it
behind the step that it is at, with a checkpoint from which the same request goes on.
"""

from __future__ import annotations

import copy
import json
import math
import os
import signal
import time
from typing import Any

from labelloop_openmmlab import device_of, pipeline_of
from labelloop_openmmlab.packed import plain, read, write

RESERVE = 0.15
"""Of the budget, for what comes before and after the steps."""
CHECKPOINT_EVERY_S = 30.0
WARM_UP = 0.05
"""Share of the training in which the learning rate rises."""
LAST_RATE = 0.05
FASTEST_BATCH = 16
"""Learning rates in configs are for GPUs with batches of hundreds; nobody's batch here is larger than this."""


def main(path: str) -> None:
    """Raises ValueError for what cannot be trained."""
    with open(path, encoding="utf-8") as file:
        told = json.load(file)
    Training(told).run()


class Training:
    """One run. `told` has `base`, `data`, `labels`, `out`, `model`, `budget_s`, `threads`, `device`, `seed`,
    `fingerprint`, and the options `batch`, `rate` and `max_steps`."""

    def __init__(self, told: dict[str, Any]) -> None:
        import torch

        torch.set_num_threads(told["threads"])
        self.told, self.began = told, time.monotonic()
        self.base, self.config, self.weights = read(told["base"])
        self.classes = classes_for(told["labels"], self.base["classes"])
        self.checkpoint = os.path.join(told["out"], "checkpoint")
        self.before_s, self.step, self.stopped = 0.0, 0, False
        signal.signal(signal.SIGTERM, self._stop)

    def run(self) -> None:
        if self.classes != self.base["classes"]:
            set_classes(self.config.model, len(self.classes))
        runner = self._runner()
        self._resume(runner)
        doing = f"going on from step {self.step}" if self.step else f"training {', '.join(self.classes[:5])}"
        say(step=self.step, seconds=self.before_s, message=doing)
        runner.train()
        if self.stopped:
            self.keep(runner)
            raise SystemExit(0)
        if not self.step:
            raise ValueError(f"{self.told['budget_s']:g} s were not enough for a single step")
        config = {**self.base["config"], "model": plain(self.config.model.to_dict())}
        write(self.told["model"], {**self.base, "classes": self.classes, "config": config}, runner.model.state_dict())

    # --- what the hook asks -----------------------------------------------------------------------------

    def seconds(self) -> float:
        return self.before_s + time.monotonic() - self.began

    def progress(self) -> float:
        """From 0 to 1, by steps where they are limited, else by time."""
        if self.told["max_steps"]:
            return float(self.step / self.told["max_steps"])
        return float(self.seconds() / max(self.told["budget_s"] * (1 - RESERVE), 1e-3))

    def keep(self, runner: Any) -> None:
        import torch

        state = {
            "model": runner.model.state_dict(),
            "optimiser": runner.optim_wrapper.state_dict(),
            "step": self.step,
            "seconds": self.seconds(),
            "fingerprint": self.told["fingerprint"],
        }
        torch.save(state, self.checkpoint + ".new")
        os.replace(self.checkpoint + ".new", self.checkpoint)

    # --- beginning --------------------------------------------------------------------------------------

    def _stop(self, *_: Any) -> None:
        self.stopped = True

    def _runner(self) -> Any:
        from mmengine.model import revert_sync_batchnorm
        from mmengine.registry import MODELS
        from mmengine.runner import Runner

        model = MODELS.build(without_batch_augments(self.config.model))
        model.init_weights()
        own = model.state_dict()
        same = {name: value for name, value in self.weights.items() if name in own and own[name].shape == value.shape}
        model.load_state_dict(same, strict=False)
        batch = self.told["batch"]
        return Runner(
            model=revert_sync_batchnorm(model).to(device_of(self.told["device"])),
            work_dir=os.path.join(self.told["out"], "mmengine"),
            train_dataloader=self._loader(batch),
            train_cfg={"by_epoch": False, "max_iters": 10**9},
            optim_wrapper=optimiser_for(self.config, batch, self.told["rate"]),
            default_hooks=dict.fromkeys(("timer", "logger", "param_scheduler", "checkpoint", "sampler_seed")),
            custom_hooks=[hook_of(self)],
            default_scope=self.config.get("default_scope", "mmdet"),
            randomness={"seed": self.told["seed"] + self.step},
            log_level="WARNING",
        )

    def _loader(self, batch: int) -> dict[str, Any]:
        annotations = os.path.join(self.told["out"], "train.json")
        count = write_annotations(
            os.path.join(self.told["data"], "train.json"), annotations, self.classes, outlines=self.base["masks"]
        )
        dataset = {
            "type": "mmdet.CocoDataset",
            "ann_file": annotations,
            "data_prefix": {"img": os.path.join(self.told["data"], "images") + "/"},
            "metainfo": {"classes": tuple(self.classes)},
            "filter_cfg": {"filter_empty_gt": False},
            "pipeline": training_pipeline(self.config, masks=self.base["masks"]),
        }
        loader = {"batch_size": min(batch, count), "num_workers": 0, "dataset": dataset}
        if self.config.get("default_scope") == "mmyolo":
            loader["collate_fn"] = {"type": "yolov5_collate"}
        return {**loader, "sampler": {"type": "InfiniteSampler", "shuffle": True}}

    def _resume(self, runner: Any) -> None:
        import torch

        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        if not os.path.isfile(self.checkpoint):
            return
        state = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        if state["fingerprint"] == self.told["fingerprint"]:
            runner.model.load_state_dict(state["model"])
            runner.optim_wrapper.load_state_dict(state["optimiser"])
            self.step, self.before_s = state["step"], state["seconds"]


def hook_of(training: Training) -> Any:
    """Sets the learning rate by what is left of the budget, reports, keeps checkpoints, and ends the loop."""
    from mmengine.hooks import Hook

    class Budget(Hook):  # type: ignore[misc]
        kept = -math.inf  # the first step is kept: who is stopped in the second has lost one

        def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
            progress = min(training.progress(), 1.0)
            rise = min(1.0, (progress + 1e-3) / WARM_UP)
            fall = LAST_RATE + (1 - LAST_RATE) * 0.5 * (1 + math.cos(math.pi * progress))
            for group in runner.optim_wrapper.param_groups:
                group["lr"] = group.setdefault("initial_lr", group["lr"]) * rise * fall

        def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
            training.step += 1
            loss = float(outputs["loss"])
            if not math.isfinite(loss):
                raise ValueError("the loss is no number any more: lower the option rate")
            say(step=training.step, steps=training.told["max_steps"], seconds=training.seconds(), loss=loss)
            if time.monotonic() - self.kept > CHECKPOINT_EVERY_S:
                training.keep(runner)
                self.kept = time.monotonic()
            if training.stopped or training.progress() >= 1:
                runner.train_loop.stop_training = True

    return Budget()


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def classes_for(labels: list[str], known: list[str]) -> list[str]:
    """The classes to train. Labels that the model knows already keep its class layers, with all that it knows."""
    return known if set(labels) <= set(known) else labels


def set_classes(part: Any, count: int) -> None:
    """`num_classes` wherever the config says it: in heads, and in what assigns targets to them."""
    if isinstance(part, (list, tuple)):
        for value in part:
            set_classes(value, count)
    elif isinstance(part, dict):
        if isinstance(part.get("num_classes"), int):
            part["num_classes"] = count
        for value in part.values():
            set_classes(value, count)


def without_batch_augments(model: Any) -> Any:
    """The network's config, to train on pictures of the size at which it is asked: YOLOX's draws every batch larger, up
    to 640 pixels whatever it is tested with, which costs most of a short budget and teaches another size."""
    model = copy.deepcopy(model)
    if (model.get("data_preprocessor") or {}).get("batch_augments"):
        model.data_preprocessor.batch_augments = None
    return model


def optimiser_for(config: Any, batch: int, rate: float | None) -> dict[str, Any]:
    """The config's optimiser, its learning rate for our batch: in proportion to it with SGD, to its square root with
    the Adams."""
    wrapper: dict[str, Any] = config.optim_wrapper.to_dict()
    wrapper.pop("loss_scale", None)
    optimiser = {key: value for key, value in wrapper["optimizer"].items() if key != "batch_size_per_gpu"}
    usual = (config.get("auto_scale_lr") or {}).get("base_batch_size") or 8 * (config.train_dataloader.batch_size or 2)
    share = min(batch, FASTEST_BATCH) / usual
    adam = "adam" in str(optimiser["type"]).lower()
    if optimiser["type"] in ("Adam", "AdamW"):
        optimiser["fused"] = True  # a quarter of a step's time on a CPU goes into hundreds of small updates
    optimiser["lr"] = rate or optimiser["lr"] * min(1.0, math.sqrt(share) if adam else share)
    clip = wrapper.get("clip_grad") or {"max_norm": 35.0}
    kept = {"paramwise_cfg": wrapper["paramwise_cfg"]} if wrapper.get("paramwise_cfg") else {}
    return {"type": "OptimWrapper", "optimizer": optimiser, "clip_grad": clip, **kept}


def training_pipeline(config: Any, *, masks: bool) -> list[dict[str, Any]]:
    """As pictures are prepared to be tested, and now and then mirrored: what a short training on few pictures can use.
    Mosaics and the like of the config's own pipeline pay after hours."""
    steps = [step for step in pipeline_of(config)[1:] if not str(step["type"]).endswith("PackDetInputs")]
    return [
        {"type": "LoadImageFromFile"},
        {"type": "mmdet.LoadAnnotations", "with_bbox": True, "with_mask": masks, "poly2mask": True},
        *steps,
        {"type": "mmdet.RandomFlip", "prob": 0.5},
        {"type": "mmdet.PackDetInputs"},
    ]


def write_annotations(source: str, target: str, classes: list[str], *, outlines: bool) -> int:
    """The COCO file with categories as the classes are numbered; how many pictures it has. Raises ValueError where a
    network that makes masks would learn from something without an outline."""
    with open(source, encoding="utf-8") as file:
        content = json.load(file)
    numbers = {one["id"]: classes.index(one["name"]) + 1 for one in content["categories"] if one["name"] in classes}
    kept = [one for one in content["annotations"] if one["category_id"] in numbers]
    if outlines and any(not one.get("segmentation") for one in kept):
        raise ValueError("the model makes masks, and some of what was drawn are boxes without an outline")
    for one in kept:
        one["category_id"] = numbers[one["category_id"]]
        one.setdefault("iscrowd", 0)
        one.setdefault("area", one["bbox"][2] * one["bbox"][3])
    content["annotations"] = kept
    content["categories"] = [{"id": number, "name": name} for number, name in enumerate(classes, 1)]
    with open(target, "w", encoding="utf-8") as file:
        json.dump(content, file)
    return len(content["images"])

"""How good a detector gets in how long: the trainers `head` and `full` on a labelled data set, several seeds.

python benchmarks/finetune.py --data FOLDER --model yolox_nano_416.onnx --family yolox --budget 60 --seeds 3
python benchmarks/finetune.py --data FOLDER --model nanodet_m_320.onnx --family nanodet --budget 60 --pictures 20
python benchmarks/finetune.py --data FOLDER --model deimv2_atto_320.onnx --family detr --budget 60

FOLDER holds train.json, val.json, test.json (COCO) and images/. Each run is a child process, as in the product, and the
budget is wall time: on a busy machine fewer steps fit into it, so the steps are printed, and `--max-steps` trains by
steps instead. Needs faster-coco-eval.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Size
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.detect.recognise import recognise
from labelloop.engines.labels import read_labels
from labelloop.engines.onnx import OnnxModel
from labelloop.learning.trainers import process
from labelloop.learning.trainers.base import Progress, Trained, TrainRequest

SPLITS = ("val", "test")
SPEED_PICTURES = 40


class Result(NamedTuple):
    """`scores`: split -> (AP50, AP). `processor_s` is what the child used. `network` and `engine`: speed of the new
    file as a part of the old one's, without and with the suppression, which has more to do where more is seen."""

    scores: dict[str, tuple[float, float]]
    metrics: dict[str, float]
    wall_s: float
    processor_s: float
    network: float
    engine: float


def main() -> None:
    asked = arguments()
    results = []
    for seed in range(asked.first_seed, asked.first_seed + asked.seeds):
        with tempfile.TemporaryDirectory() as folder:
            results.append(run(asked, seed=seed, folder=Path(folder)))
        print(row(f"seed {seed}", results[-1]), flush=True)
    print(row("median", median(results)))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--family")
    parser.add_argument("--labels", default="coco", help="class names of the model")
    parser.add_argument("--side", type=int, help="width and height of the input, for files that leave them free")
    parser.add_argument("--trainer", default="head", choices=["head", "full"])
    parser.add_argument("--budget", type=float, default=60.0, help="seconds")
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--pictures", type=int, help="train on so many, chosen by the seed; all by default")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="an option of the trainer")
    return parser.parse_args()


def run(asked: argparse.Namespace, *, seed: int, folder: Path) -> Result:
    data, labels = subset(asked.data, folder / "data", pictures=asked.pictures, seed=seed)
    options = {name: json.loads(value) for name, _, value in (one.partition("=") for one in asked.option)}
    options |= {"max_steps": asked.max_steps} if asked.max_steps else {}
    spec = InputSpec(size_wh=(asked.side, asked.side) if asked.side else None)
    card = ModelCard(name="base", family=asked.family, labels=read_labels(asked.labels), input=spec)
    request = TrainRequest(
        data=data,
        labels=labels,
        out=folder / "out",
        budget_s=asked.budget,
        base=asked.model,
        base_card=card,
        threads=asked.threads,
        seed=seed,
        options=options,
    )
    started, used = time.monotonic(), os.times()
    trained = process.run(asked.trainer, request, on_event=follow, limits=process.Limits(overtime_s=3600, nice=0))
    wall_s, now = time.monotonic() - started, os.times()
    processor_s = now.children_user + now.children_system - used.children_user - used.children_system
    scores = {split: average_precision(trained, asked.data, split) for split in SPLITS}
    network, engine = served_speed(Trained(asked.model, card), trained, asked.data)
    return Result(scores, trained.metrics, wall_s, processor_s, network, engine)


def follow(progress: Progress) -> None:
    if progress.step % 50 == 0 and progress.loss is not None:
        print(f"    step {progress.step}: {progress.seconds:.0f} s, loss {progress.loss:.3f}", flush=True)


def subset(source: Path, target: Path, *, pictures: int | None, seed: int) -> tuple[Path, tuple[str, ...]]:
    """A folder for the trainer, and the labels in the order of their category ids."""
    target.mkdir(parents=True)
    (target / "images").symlink_to((source / "images").resolve())
    coco = json.loads((source / "train.json").read_text())
    if pictures is not None:
        chosen = np.random.default_rng(seed).permutation(len(coco["images"]))[:pictures]
        coco["images"] = [coco["images"][index] for index in sorted(chosen)]
        kept = {one["id"] for one in coco["images"]}
        coco["annotations"] = [one for one in coco["annotations"] if one["image_id"] in kept]
    (target / "train.json").write_text(json.dumps(coco))
    (target / "val.json").write_text((source / "val.json").read_text())
    return target, tuple(one["name"] for one in sorted(coco["categories"], key=lambda one: one["id"]))


def average_precision(trained: Trained, data: Path, split: str) -> tuple[float, float]:
    """COCO AP50 and AP 50:95 of the file, served by the engine."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth = json.loads((data / f"{split}.json").read_text())
    category = {one["name"]: one["id"] for one in truth["categories"]}
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu"))
    found: list[dict[str, Any]] = []
    for image in truth["images"]:
        for region in engine.predict([engine.prepare(read(data / "images" / image["file_name"]))])[0]:
            assert isinstance(region.shape, Box)
            left, top, right, bottom = region.shape.xyxy
            box = [left, top, right - left, bottom - top]
            entry = {"image_id": image["id"], "category_id": category[str(region.label)], "bbox": box}
            found.append(entry | {"score": region.score})
    if not found:
        return 0.0, 0.0
    coco = COCO(truth)
    evaluation = COCOeval_faster(coco, coco.loadRes(found), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1]), float(evaluation.stats[0])


def served_speed(old: Trained, new: Trained, data: Path) -> tuple[float, float]:
    """Time per picture of the old file over that of the new one, of the network alone and of the engine. Both in turn
    on each picture, medians, in time of the processor: neighbours on the machine then count little."""
    engines = [DetectEngine(one.model, one.card, EngineOptions(device="cpu")) for one in (old, new)]
    networks = [OnnxModel(one.model, device="cpu") for one in (old, new)]
    heads = [recognise(network.signature, one.card)[0] for network, one in zip(networks, (old, new), strict=True)]
    extras = [{name: row[None] for name, row in head.extra.items()} for head in heads]
    taken: list[tuple[list[float], ...]] = [([], []), ([], [])]
    for path in sorted((data / "images").iterdir())[:SPEED_PICTURES]:
        for place in range(2):
            prepared = engines[place].prepare(read(path))
            pixels = prepared.planes[None].astype(np.float32)
            feeds = {networks[place].signature.inputs[0].name: pixels} | extras[place]
            taken[0][place].append(timed(lambda at=place, feeds=feeds: networks[at].run(feeds)))
            taken[1][place].append(timed(lambda at=place, prepared=prepared: engines[at].predict([prepared])))
    ratios = [statistics.median(some[0][5:]) / statistics.median(some[1][5:]) for some in taken]
    return ratios[0], ratios[1]


def timed(call: Callable[[], object]) -> float:
    started = time.thread_time()
    call()
    return time.thread_time() - started


def read(path: Path) -> Picture:
    rgb = np.asarray(cv2.imread(str(path), cv2.IMREAD_COLOR_RGB), np.uint8)
    return Picture(rgb=rgb, size=Size(rgb.shape[1], rgb.shape[0]))


def median(results: Sequence[Result]) -> Result:
    """The median of every figure by itself."""
    middle = statistics.median
    scores = {
        split: (middle(one.scores[split][0] for one in results), middle(one.scores[split][1] for one in results))
        for split in SPLITS
    }
    metrics = {name: middle(one.metrics[name] for one in results) for name in results[0].metrics}
    wall_s, processor_s = middle(one.wall_s for one in results), middle(one.processor_s for one in results)
    speeds = middle(one.network for one in results), middle(one.engine for one in results)
    return Result(scores, metrics, wall_s, processor_s, *speeds)


def row(name: str, result: Result) -> str:
    parts = [f"{split} {ap50:.3f}/{ap:.3f}" for split, (ap50, ap) in result.scores.items()]
    metrics = result.metrics
    parts += [
        f"{metrics['steps']:.0f} steps",
        f"{1000 * metrics['training_s'] / max(metrics['steps'], 1):.0f} ms a step",
        f"{result.wall_s:.1f} s of wall time, {result.processor_s:.0f} s of processor",
        f"apart {metrics['pixels_apart']:.1e} px, {metrics['score_apart']:.1e}",
        f"speed {result.network:.2f}, with suppression {result.engine:.2f}",
    ]
    return f"{name}: " + " · ".join(parts)


if __name__ == "__main__":
    main()

"""What the trainer `scratch` reaches in a number of processor seconds, on the belt or on a data set of yours.

    python benchmarks/scratch.py 60
    python benchmarks/scratch.py 120 --data FOLDER        # train.json, val.json (COCO), images/

Processor seconds of all threads, not wall time: a busy machine then says the same as a quiet one. `--rounds 2` trains a
second time, from the first model.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import msgspec

from labelloop.demo import belt
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.learning.trainers.base import Progress, Trained, TrainRequest
from labelloop.learning.trainers.scratch import ScratchTrainer
from labelloop.media.image import decode


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("seconds", type=float)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        data = asked.data or work / "belt"
        if asked.data is None:
            belt.write_data_set(data, train=range(120), val=range(1000, 1040))
        categories = json.loads((data / "train.json").read_text())["categories"]
        request = TrainRequest(
            data=data,
            labels=tuple(category["name"] for category in categories),
            out=work,
            budget_s=asked.seconds,
            seed=asked.seed,
            options={"clock": "cpu"},
        )
        for round_ in range(asked.rounds):
            request = msgspec.structs.replace(request, out=work / f"round-{round_}")
            request.out.mkdir()
            trained = ScratchTrainer().train(request, quiet)
            figures = " · ".join(f"{split} AP50 {ap50:.3f} AP {ap:.3f}" for split, ap50, ap in measured(trained, data))
            print(f"round {round_ + 1}: {trained.metrics['steps']:.0f} steps, {figures}", flush=True)
            print(f"   parity {trained.metrics['parity_px']:.1e} px, {trained.metrics['parity_score']:.1e}", flush=True)
            request = msgspec.structs.replace(request, base=trained.model, base_card=trained.card)


def quiet(progress: Progress) -> None:
    if progress.message:
        print(progress.message, flush=True)


def measured(trained: Trained, data: Path) -> list[tuple[str, float, float]]:
    """Split, AP50 and AP of what the served file finds, for val and, where there is one, test."""
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu"))
    splits = [split for split in ("val", "test") if (data / f"{split}.json").is_file()]
    return [(split, *box_ap(engine, data, json.loads((data / f"{split}.json").read_text()))) for split in splits]


def box_ap(engine: DetectEngine, data: Path, truth: dict[str, Any]) -> tuple[float, float]:
    from faster_coco_eval import COCO, COCOeval_faster

    category = {row["name"]: row["id"] for row in truth["categories"]}
    rows = []
    for image in truth["images"]:
        picture = decode((data / "images" / image["file_name"]).read_bytes(), max_pixels=10**9)
        for region in engine.predict([engine.prepare(picture)])[0]:
            left, top, right, bottom = region.shape.xyxy  # type: ignore[union-attr]
            box = [left, top, right - left, bottom - top]
            label = category[str(region.label)]
            rows.append({"image_id": image["id"], "category_id": label, "bbox": box, "score": region.score})
    coco = COCO(truth)
    evaluation = COCOeval_faster(coco, coco.loadRes(rows), "bbox", print_function=lambda *_: None)
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return float(evaluation.stats[1]), float(evaluation.stats[0])


if __name__ == "__main__":
    main()

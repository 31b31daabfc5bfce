"""How long it takes to learn choices: from the start of the trainer's process to the file, and from the trainer's first
word on; and the processor time of all of it, which other work on the machine changes less.

python benchmarks/choices.py --data FOLDER_WITH_COCO_TRAIN --model yolox_nano_416.onnx --items 60 200

Pictures are the objects of the data set cut out, one class each; texts are made up. Pictures are learned twice: the
second time their features are known. Beside it, what importing scikit-learn's regression alone takes, and the training
alone, in a process that has imported it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2

from labelloop.core.cards import ModelCard
from labelloop.core.regions import MediaKey, Size
from labelloop.engines.detect import DetectEngine
from labelloop.learning.manifest import Item, Manifest, Options, encode
from labelloop.learning.trainers import process
from labelloop.learning.trainers.base import Progress, TrainRequest, load_trainer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from reference.tickets import tickets

COCO = tuple(f"class {number}" for number in range(80))
IMPORT = "import sklearn.linear_model, sklearn.feature_extraction.text"
LEAST_SIDE = 16


def texts(number: int) -> list[Item]:
    return [
        Item(at, MediaKey("text"), "", "train", (at,), (), said=(one.label,), text=one.text)
        for at, one in enumerate(tickets(number))
    ]


def cut_out(data: Path, number: int, images: Path) -> list[Item]:
    """The first objects of each class, with some of their surroundings, written into `images`."""
    dataset = json.loads((data / "train.json").read_text())
    files = {row["id"]: row["file_name"] for row in dataset["images"]}
    names = {row["id"]: row["name"] for row in dataset["categories"]}
    room, items = dict.fromkeys(names.values(), -(-number // len(names))), list[Item]()
    for row in dataset["annotations"]:
        (x, y, w, h), name = row["bbox"], names[row["category_id"]]
        if len(items) == number or not room[name] or min(w, h) < LEAST_SIDE:
            continue
        room[name] -= 1
        picture = cv2.imread(str(data / "images" / files[row["image_id"]]))
        top, left = max(0, round(y - h / 4)), max(0, round(x - w / 4))
        part = picture[top : round(y + 1.25 * h), left : round(x + 1.25 * w)]
        file = f"{len(items)}.png"
        cv2.imwrite(str(images / file), part)
        size = Size(part.shape[1], part.shape[0])
        items.append(
            Item(
                len(items), MediaKey("image"), "x", "train", (len(items),), (), size=size, file_name=file, said=(name,)
            )
        )
    return items


def request(folder: Path, items: list[Item], **more: Any) -> TrainRequest:
    labels = tuple(dict.fromkeys(label for item in items for label in item.said))
    reads = "texts" if items[0].text is not None else "pictures"
    manifest = Manifest(1, labels, Options(), tuple(items), learns="choices", reads=reads)
    (folder / "data" / "manifest.json").write_bytes(encode(manifest))
    return TrainRequest(folder / "data", labels, folder / "out", budget_s=60, **more)


def spent_s() -> float:
    """Processor seconds of the processes that we have started."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def learn(what: str, trainer: str, asked: TrainRequest) -> None:
    words: list[float] = []
    begun, before = time.perf_counter(), spent_s()

    def hear(_: Progress) -> None:
        words.append(time.perf_counter() - begun)

    trained = process.run(trainer, asked, on_event=hear)
    wall = time.perf_counter() - begun
    print(
        f"{what}: {wall:.2f} s to the file, {wall - words[0]:.2f} after the trainer's first word, "
        f"{spent_s() - before:.2f} s of processor time; cross-validated macro-F1 "
        f"{trained.metrics.get('cross_validated_macro_F1', float('nan')):.3f}"
    )


def learn_here(what: str, trainer: str, asked: TrainRequest) -> None:
    """In this process, twice: what is imported the first time is there the second time."""
    for _ in range(2):
        begun = time.perf_counter()
        load_trainer(trainer).train(asked, lambda _: None)
        wall = time.perf_counter() - begun
    print(f"{what}: {wall:.2f} s for the training alone")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--items", type=int, nargs="+", default=[60, 200])
    arguments = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors")
    begun, before = time.perf_counter(), spent_s()
    subprocess.run([sys.executable, "-c", IMPORT], check=True)
    took = time.perf_counter() - begun
    print(f"importing scikit-learn alone: {took:.2f} s, {spent_s() - before:.2f} s of processor time")
    card = DetectEngine.describe(arguments.model, ModelCard(name="base", labels=COCO))
    for number in arguments.items:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "data" / "images").mkdir(parents=True)
            learn(f"{number} texts", "text", request(folder, texts(number)))
            learn_here(f"{number} texts", "text", request(folder, texts(number)))
            items = cut_out(arguments.data, number, folder / "data" / "images")
            asked = request(folder, items, base=arguments.model, base_card=card, cache=folder / "cache")
            learn(f"{number} pictures, new", "classify", asked)
            learn(f"{number} pictures, known", "classify", asked)
            learn_here(f"{number} pictures, known", "classify", asked)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()

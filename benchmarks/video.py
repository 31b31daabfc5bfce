"""How fast tracks are made of a film, against the detector alone in the same run. See README.md beside this file.

python benchmarks/video.py --model yolox_nano_416.onnx --film woman_and_dog.mp4
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2

from labelloop.app import assemble, close
from labelloop.core.cards import ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import MediaKey, Region, Track
from labelloop.core.settings import read_settings
from labelloop.core.tasks import MediaRef
from labelloop.engines.base import Engine
from labelloop.engines.labels import COCO
from labelloop.media.film import describe, read_frames
from labelloop.serving.films import Films, Wanted
from labelloop.serving.media_metrics import MediaMetrics
from labelloop.serving.models import add_model
from labelloop.serving.stage import Priority
from labelloop.video.lifespans import lifespans

DAY_S = 86_400.0


PICTURES = 40
"""Decoded frames that are kept in memory, and given to the detector again and again."""


def detector_alone(engine: Engine, pictures: Sequence[Picture], frames_count: int) -> float:
    """Frames a second from decoded frames in memory to boxes; as many threads as the server uses."""

    def detect(picture: Picture) -> None:
        engine.predict([engine.prepare(picture)])

    return rate(engine.parallel, detect, itertools.islice(itertools.cycle(pictures), frames_count))


def network_alone(engine: Engine, prepared: Sequence[Any]) -> float:
    """The same from tensors that are ready for the network: what no film can reach."""
    return rate(engine.parallel, lambda tensor: engine.predict([tensor]), prepared)


def rate(threads: int, work: Callable[[Any], object], items: Iterable[Any]) -> float:
    """Items a second."""
    begun = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(1 for _ in pool.map(work, items))
    return done / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--film", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tracker", default="bytetrack")
    parser.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)  # as the server does; and the next line
    sys.setswitchinterval(0.0005)
    film = describe(arguments.film)
    with tempfile.TemporaryDirectory() as home:
        settings = read_settings(
            home=Path(home),
            local_files_root=arguments.film.parent,
            log_level="warning",
            tracker=arguments.tracker,
            film_every=arguments.every,
            device="cpu",
        )
        parts = assemble(settings)
        card = ModelCard(name="detector", labels=COCO)
        version = add_model(parts.store.registry, arguments.model, card, settings)
        engine, _ = parts.slots.ensure(version).loaded.result()
        prepared, pictures = [], []
        for frame in read_frames(arguments.film, every=arguments.every):
            picture = Picture(frame.rgb, film.size)
            prepared.append(engine.prepare(picture))
            if len(pictures) < PICTURES:
                pictures.append(picture)
        films = Films(parts.media, settings, MediaMetrics(parts.metrics))
        ref = MediaRef(f"/data/local-files/?d={arguments.film.name}", MediaKey("video"), 1, 1)

        async def follow() -> tuple[Region, ...]:
            wanted = Wanted(ref, film.fps, Priority.BULK, time.monotonic() + DAY_S, None)
            with await parts.slots.lease(version, deadline=wanted.deadline) as lease:
                return (await films.follow(wanted, lease))[1]

        def alone() -> tuple[float, float]:
            return detector_alone(engine, pictures, len(prepared)), network_alone(engine, prepared)

        alone()
        begun = time.process_time()
        network_alone(engine, prepared)
        alone_s = time.process_time() - begun
        tops, rates, costs, regions = [alone()], [], [], ()
        for _ in range(arguments.runs):
            begun, worked = time.perf_counter(), time.process_time()
            regions = asyncio.run(follow())
            rates.append(len(prepared) / (time.perf_counter() - begun))
            costs.append(time.process_time() - worked)
            tops.append(alone())
        films.close()
        close(parts)
    detector, network = zip(*tops, strict=True)
    size = f"{film.size.width} x {film.size.height}"
    print(f"{film.frames_count} frames of {size}, {arguments.tracker}, every {arguments.every}")
    print(f"the whole pipeline: {statistics.median(rates):.1f} frames/s ({rounded(rates)})")
    print(f"the detector alone, from decoded frames: {statistics.median(detector):.1f} frames/s ({rounded(detector)})")
    print(f"the network alone, from tensors: {statistics.median(network):.1f} frames/s ({rounded(network)})")
    per_frame = (1e3 * alone_s / len(prepared), 1e3 * statistics.median(costs) / len(prepared))
    print(f"CPU-ms a frame: {per_frame[0]:.1f} the network, {per_frame[1]:.1f} all of it")
    for name, alone_rates in (("detector", detector), ("network", network)):
        shares = [one / (sum(pair) / 2) for one, pair in zip(rates, itertools.pairwise(alone_rates), strict=True)]
        listed = ", ".join(f"{one:.2f}" for one in shares)
        print(f"share of the {name}, each run beside its neighbours: {statistics.median(shares):.2f} ({listed})")
    for region in regions:
        if isinstance(region.shape, Track):
            lives = ", ".join(f"{life.start} to {life.end}" for life in lifespans(region.shape))
            print(f"  {region.label} {region.score:.2f}: frames {lives}, {len(region.shape.keyframes)} key frames")
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    print(f"memory at its highest: {int(peak[1]) / 1024 if peak else 0:.0f} MB")


def rounded(figures: Sequence[float]) -> str:
    return ", ".join(f"{figure:.0f}" for figure in figures)


if __name__ == "__main__":
    main()

"""What people feel while a version goes live: the time of `/predict` before, and during ten promotions and rollbacks.

python benchmarks/swap.py --model yolox_nano_416.onnx --images FOLDER [--rate 30]

Requests leave at a steady rate whatever the answers do. A swap lasts from the moment when the pointer is moved until
the first answer of the new version, and one second more. Every other swap promotes a version that was never loaded
before, the ones between go back.
"""

from __future__ import annotations

import argparse
import base64
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import urllib3

from serving import CONFIG, free_port, process

PROJECT = 1
SWAPS = 10
PAUSE_S = 3.0
THRESHOLDS = [0.05 + number / 1000 for number in range(SWAPS // 2 + 1)]
"""Each is a version of its own; the first one serves in the beginning."""


class Answer(NamedTuple):
    """`sent` in seconds on the clock of the run; `version` empty: it failed."""

    sent: float
    seconds: float
    version: str


class Crowd:
    """Asks `rate` times a second, with one picture each that no cache has seen."""

    def __init__(self, url: str, pictures: Sequence[bytes], rate: float) -> None:
        self._url = url
        self._pictures = pictures
        self._rate = rate
        self._http = urllib3.PoolManager(maxsize=32, retries=False)
        self._pool = ThreadPoolExecutor(32)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._go)
        self.answers: list[Answer] = []

    def _go(self) -> None:
        began = time.perf_counter()
        for number in itertools.count():
            if self._end.wait(max(0.0, began + number / self._rate - time.perf_counter())):
                return
            self._pool.submit(self._ask, number)

    def _ask(self, number: int) -> None:
        picture = self._pictures[number % len(self._pictures)] + number.to_bytes(
            4
        )  # bytes after JPEG's end are nothing
        task = {"id": number + 1, "data": {"image": "data:image/jpeg;base64," + base64.b64encode(picture).decode()}}
        body = {"tasks": [task], "project": f"{PROJECT}.1", "label_config": CONFIG, "params": {"context": None}}
        sent, version = time.perf_counter(), ""
        try:
            answer = self._http.request("POST", f"{self._url}/predict", json=body, timeout=60)
            (prediction,) = answer.json()["results"]
            version = prediction["model_version"].partition(".")[0] if prediction.get("result") is not None else ""
            version = "" if "error" in prediction else version
        except (urllib3.exceptions.HTTPError, ValueError, KeyError) as error:
            print(f"failed: {error}", file=sys.stderr)
        self.answers.append(Answer(sent, time.perf_counter() - sent, version))

    @contextmanager
    def asking(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._end.set()
            self._thread.join()
            self._pool.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=30.0)
    parser.add_argument("--before", type=float, default=20.0, help="seconds without a swap")
    asked = parser.parse_args()
    pictures = [path.read_bytes() for path in sorted(asked.images.iterdir())[:64]]
    with serving(asked.model) as (url, versions):
        crowd, swaps = Crowd(url, pictures, asked.rate), []
        with crowd.asking():
            time.sleep(3)  # the first requests warm caches and pools
            quiet = time.perf_counter(), time.perf_counter() + asked.before
            time.sleep(asked.before)
            for number in range(SWAPS):
                swaps.append(swap(url, crowd, versions[0] if number % 2 else versions[number // 2 + 1]))
                time.sleep(PAUSE_S)
    print(report(crowd.answers, quiet, swaps))


@contextmanager
def serving(model: Path) -> Iterator[tuple[str, list[str]]]:
    """A server with one version per threshold, the first of them assigned; its URL and the versions' ids."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home:
        environment = {"LABELLOOP_HOME": home, "LABELLOOP_LOG_LEVEL": "error", "LABELLOOP_JOBS": "false"}
        program = [sys.executable, "-m", "labelloop"]
        versions = []
        for threshold in THRESHOLDS:
            card = Path(home) / "card.onnx"
            card.unlink(missing_ok=True)
            card.symlink_to(model.resolve())
            card.with_suffix(".yaml").write_text(f"score_threshold: {threshold}\n")
            add = [*program, "models", "add", str(card), "--name", "detector", "--labels", "coco"]
            subprocess.run(add, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
            versions.append(f"detector@{len(versions) + 1}")
        use = [*program, "models", "use", str(PROJECT), versions[0]]
        subprocess.run(use, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
        with process(*program, "serve", "--port", str(port), url=f"{url}/ready", **environment):
            yield url, versions


def swap(url: str, crowd: Crowd, version: str) -> tuple[float, float]:
    """Move the pointer; when that was, and when the first answer of the new version came."""
    began = time.perf_counter()
    answer: Any = urllib3.request("PUT", f"{url}/api/projects/{PROJECT}/model", json={"model": version}, timeout=30)
    if answer.status != 200:
        raise SystemExit(answer.data)
    while not any(one.version == version and one.sent > began for one in crowd.answers[-20:]):
        time.sleep(0.02)
    return began, time.perf_counter()


def report(answers: Sequence[Answer], quiet: tuple[float, float], swaps: Sequence[tuple[float, float]]) -> str:
    before = [one.seconds for one in answers if quiet[0] <= one.sent < quiet[1]]
    during = [one.seconds for one in answers if any(start <= one.sent < end + 1 for start, end in swaps)]
    failures = sum(not one.version for one in answers)
    live = statistics.median(end - start for start, end in swaps)
    return (
        f"{len(answers)} requests, {failures} failed; {len(swaps)} swaps, live after {live:.2f} s (median)\n"
        f"before: {figures(before)}\nduring: {figures(during)}\n"
        f"p95 during / before: {p95(during) / p95(before):.2f}"
    )


def figures(seconds: Sequence[float]) -> str:
    return f"{len(seconds)} requests, p50 {statistics.median(seconds) * 1e3:.1f} ms, p95 {p95(seconds) * 1e3:.1f} ms"


def p95(seconds: Sequence[float]) -> float:
    return statistics.quantiles(seconds, n=20)[-1]


if __name__ == "__main__":
    main()

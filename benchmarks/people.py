"""What a person feels while a bulk job runs: the time of `/predict` for one task, beside what it takes without the job.

python benchmarks/people.py --model yolox_nano_416.onnx

One `labelloop serve` does both, as it does by default. The job is cancelled and resumed in turns of some seconds,
because the speed of a shared machine changes. The person opens a task, looks at it for a tenth to four tenths of a
second, and opens the next. Label Studio is the fake one, in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from pathlib import Path
from typing import Any

import urllib3

from prelabel import CONFIG, PICTURES, Place, fake_studio, pictures
from serving import labelloop

TASKS = 100_000
TURNS = ("no job", "a job")


class Person:
    """Opens tasks, one after the other; `took` holds the seconds of each by turn."""

    def __init__(self, http: urllib3.HTTPConnectionPool) -> None:
        self._http = http
        self._chance = random.Random(1)
        self._numbers = itertools.count(10**9)
        self._uris = pictures()
        self.took: dict[str, list[float]] = {turn: [] for turn in TURNS}

    def label(self, turn: str, *, seconds: float) -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(self._chance.uniform(0.1, 0.4))
            number = next(self._numbers)
            task = {"id": number, "data": {"image": self._uris[number % PICTURES]}}
            body = {"tasks": [task], "project": "1.1", "label_config": CONFIG, "params": {"context": None}}
            begun = time.perf_counter()
            answer = self._http.request("POST", "/predict", json=body, retries=False)
            self.took[turn].append(time.perf_counter() - begun)
            (item,) = answer.json()["results"]
            assert "error" not in item, item


class Bulk:
    """A job that can be started and stopped."""

    def __init__(self, http: urllib3.HTTPConnectionPool, place: Place) -> None:
        self._http = http
        body = {"project": place.project, "model": "detector", "label_studio": place.url}
        self.id = self._ask("POST", "/api/jobs", json=body)["id"]
        self._until("running", stored=1)

    def resume(self) -> None:
        before = self._ask("POST", f"/api/jobs/{self.id}/resume")["progress"]["stored"]
        self._until("running", stored=before + 1)

    def cancel(self) -> int:
        """Tasks that have been stored so far."""
        self._ask("POST", f"/api/jobs/{self.id}/cancel")
        return self._until("cancelled")

    def _until(self, state: str, *, stored: int = 0) -> int:
        while True:
            row = self._ask("GET", f"/api/jobs/{self.id}")
            if row["state"] == state and row["progress"]["stored"] >= stored:
                return int(row["progress"]["stored"])
            assert row["state"] not in ("failed", "done"), row
            time.sleep(0.1)

    def _ask(self, method: str, path: str, **more: Any) -> Any:
        answer = self._http.request(method, path, retries=False, **more)
        assert answer.status < 300, answer.data
        return answer.json()


def percentile(values: list[float], share: float) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[round(share * 100) - 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="an ONNX detector with the classes of COCO")
    parser.add_argument("--seconds", type=float, default=15, help="of one turn")
    parser.add_argument("--turns", type=int, default=4, help="with the job, and as many without")
    arguments = parser.parse_args()
    arguments.tasks = TASKS
    with fake_studio(arguments) as place:
        told = {"LABEL_STUDIO_URL": place.url, "LABEL_STUDIO_API_KEY": place.token}
        with labelloop(str(arguments.model), **told) as (url, _):
            measure(urllib3.connection_from_url(url), place, arguments)


def measure(http: urllib3.HTTPConnectionPool, place: Place, arguments: argparse.Namespace) -> None:
    person = Person(http)
    person.label("no job", seconds=3)  # to warm up
    person.took["no job"].clear()
    bulk = Bulk(http, place)
    person.label("a job", seconds=arguments.seconds)
    for _ in range(arguments.turns - 1):
        bulk.cancel()
        person.label("no job", seconds=arguments.seconds)
        bulk.resume()
        person.label("a job", seconds=arguments.seconds)
    print(f"the job stored {bulk.cancel()} tasks")
    person.label("no job", seconds=arguments.seconds)
    for turn, took in person.took.items():
        shown = ", ".join(f"p{share * 100:.0f} {1000 * percentile(took, share):.0f} ms" for share in (0.5, 0.95, 0.99))
        print(f"{turn}: {len(took)} requests, {shown}")
    idle, busy = (percentile(person.took[turn], 0.95) for turn in TURNS)
    print(f"p95 with the job: {busy / idle:.2f} times that without it")


if __name__ == "__main__":
    main()

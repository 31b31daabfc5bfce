"""How fast `/predict` is, against the ceiling measured in the same run. See README.md beside this file.

python benchmarks/serving.py empty [--peer PYTHON]
python benchmarks/serving.py detector --model yolox_nano_416.onnx --images FOLDER
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import urllib3

HERE = Path(__file__).parent
CONFIG = (
    '<View><Image name="image" value="$image"/><RectangleLabels name="label" toName="image">'
    '<Label value="person"/><Label value="car"/><Label value="dog"/></RectangleLabels></View>'
)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def process(*command: str, url: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A server that is stopped at the end; begins when `url` answers below 500."""
    running = subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.DEVNULL)
    http = urllib3.PoolManager(retries=False)
    try:
        for _ in range(600):
            try:
                if http.request("GET", url, timeout=1).status < 500:
                    break
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.1)
        else:
            raise SystemExit(f"{url} never answered")
        yield running
    finally:
        running.terminate()
        running.wait(10)


@contextmanager
def labelloop(model: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as home:
        environment |= {"LABELLOOP_HOME": home, "LABELLOOP_LOG_LEVEL": "warning"}
        program = [sys.executable, "-m", "labelloop"]
        if Path(model).is_file():
            add = [*program, "models", "add", model, "--name", "detector", "--labels", "coco"]
            subprocess.run(add, env=os.environ | environment, check=True, stdout=subprocess.DEVNULL)
            model = "detector"
        command = [*program, "serve", "--model", model, "--port", str(port)]
        with process(*command, url=f"{url}/ready", **environment) as running:
            yield url, running


@contextmanager
def official_sdk(python: Path) -> Iterator[str]:
    """The official SDK with a model that does nothing, as it is run in production: gunicorn, one worker, 8 threads."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    command = [str(python), "-m", "gunicorn", "--workers", "1", "--threads", "8", "--bind", url.split("//")[1]]
    with process(*command, "--chdir", str(HERE), "--log-level", "error", "sdk_peer:app", url=f"{url}/health"):
        setup = {"project": "1.1", "schema": CONFIG, "hostname": "http://127.0.0.1:9", "access_token": "none"}
        urllib3.request("POST", f"{url}/setup", json=setup, retries=False)  # as Label Studio does first
        yield url


def empty(arguments: argparse.Namespace) -> None:
    """Requests per second with a model that does nothing: what the path costs. Needs wrk."""
    if not shutil.which("wrk"):
        raise SystemExit("wrk is missing; install the distribution's package")
    task = {"id": 1, "data": {"image": "/data/upload/1/a.jpg"}, "annotations": [], "predictions": []}
    body = json.dumps({"tasks": [task], "project": "1.1", "label_config": CONFIG, "params": {"context": None}})
    script = f"wrk.method='POST'\nwrk.headers['Content-Type']='application/json'\nwrk.body=[[{body}]]\n"
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".lua"))
        file.write(script)
        file.flush()
        urls = {"labelloop": stack.enter_context(labelloop("empty"))[0]}
        if arguments.peer:
            urls["official SDK"] = stack.enter_context(official_sdk(arguments.peer))
        for callers in (1, 16):
            command = ["wrk", "-t1", f"-c{callers}", "-d5s", "--latency", "-s", file.name]
            turns = [(name, [*command, f"{url}/predict"]) for _ in range(3) for name, url in urls.items()]
            runs = [(name, wrk_figures(subprocess.check_output(words, text=True))) for name, words in turns]
            for name in urls:
                rate = statistics.median(run["rate"] for who, run in runs if who == name)
                p50 = statistics.median(run["p50_ms"] for who, run in runs if who == name)
                print(f"empty model, {callers:2d} callers, {name:12s}: {rate:7.0f} requests/s, p50 {p50:.2f} ms")


def wrk_figures(text: str) -> dict[str, float]:
    if "Non-2xx" in text:
        raise SystemExit(text)
    units = {"us": 1e-3, "ms": 1.0, "s": 1e3}
    p50 = re.search(r"50%\s+([\d.]+)(us|ms|s)", text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    assert p50, text
    assert rate, text
    return {"rate": float(rate[1]), "p50_ms": float(p50[1]) * units[p50[2]]}


def detector(arguments: argparse.Namespace) -> None:
    """Unique pictures behind a token, through a real detector. Each run stands between two measurements of the
    ceiling, because the speed of a shared machine changes from one second to the next."""
    port = free_port()
    studio = f"http://127.0.0.1:{port}"
    command = [sys.executable, str(HERE / "picture_server.py"), str(arguments.images), str(port)]
    settings = {"LABEL_STUDIO_URL": studio, "LABEL_STUDIO_API_KEY": "benchmark"}
    numbers = itertools.count()
    with (
        process(*command, url=studio + "/data/upload/0/x.jpg"),
        labelloop(str(arguments.model), **settings) as (url, server),
    ):
        for name, callers, batch in (("1 caller", 1, 1), ("8 callers", 8, 1), ("batches of 30", 1, 30)):
            drive(url, numbers, callers, batch, seconds=2)
            rates, costs = [], []
            tops = [ceiling(arguments.model, arguments.seconds)]
            for _ in range(arguments.runs):
                begun, first = cpu_seconds(server.pid), next(numbers)
                rates.append(drive(url, numbers, callers, batch, seconds=arguments.seconds))
                costs.append((cpu_seconds(server.pid) - begun) / (next(numbers) - first) * 1e3)
                tops.append(ceiling(arguments.model, arguments.seconds))
            shares = [rate / (sum(pair) / 2) for rate, pair in zip(rates, itertools.pairwise(tops), strict=True)]
            print(
                f"{name:14s}: {statistics.median(rates):6.1f} tasks/s ({rounded(rates)}), "
                f"{statistics.median(shares):.2f} of the ceiling beside it ({rounded(tops)} images/s), "
                f"{statistics.median(costs):.1f} CPU-ms a task in the server"
            )
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.pid}/status").read_text())
    print(f"server memory at its highest: {int(peak[1]) / 1024 if peak else 0:.0f} MB")


def cpu_seconds(pid: int) -> float:
    """User and system time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rounded(figures: list[float]) -> str:
    return ", ".join(f"{figure:.0f}" for figure in figures)


def drive(url: str, numbers: Iterator[int], callers: int, batch: int, *, seconds: float) -> float:
    """Tasks per second with `callers` connections that each send `batch` new tasks at a time."""
    http = urllib3.HTTPConnectionPool(url.split("//")[1].split(":")[0], int(url.rsplit(":", 1)[1]), maxsize=callers)
    end = time.perf_counter() + seconds

    def call() -> int:
        done = 0
        while time.perf_counter() < end:
            tasks = [{"id": n, "data": {"image": f"/data/upload/{n}/x.jpg"}} for n in itertools.islice(numbers, batch)]
            body = {"tasks": tasks, "project": "1.1", "label_config": CONFIG, "params": {"context": None}}
            answer = http.request("POST", "/predict", json=body, retries=False)
            items = answer.json()["results"]
            assert len(items) == batch, answer.data
            assert all("error" not in item for item in items), items[0]
            done += batch
        return done

    begun = time.perf_counter()
    with ThreadPoolExecutor(callers) as pool:
        total = sum(pool.map(lambda _: call(), range(callers)))
    return total / (time.perf_counter() - begun)


def ceiling(model: Path, seconds: float) -> float:
    """Images per second of two threads that only run the network, in a process of their own."""
    code = f"from serving import run_network; print(run_network({str(model.resolve())!r}, {seconds}))"
    return float(subprocess.check_output([sys.executable, "-c", code], cwd=HERE, text=True))


def run_network(model: str, seconds: float) -> float:
    import numpy as np
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    barrier = threading.Barrier(2)

    def run() -> int:
        session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        source = session.get_inputs()[0]
        feed = {source.name: np.zeros([d if isinstance(d, int) else 1 for d in source.shape], np.float32)}
        session.run(None, feed)
        barrier.wait(60)
        done, end = 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            session.run(None, feed)
            done += 1
        return done

    with ThreadPoolExecutor(2) as pool:
        return sum(future.result() for future in [pool.submit(run), pool.submit(run)]) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True)
    sub = commands.add_parser("empty")
    sub.add_argument("--peer", type=Path, help="an interpreter that has the official SDK: see sdk_peer.py")
    sub.set_defaults(run=empty)
    sub = commands.add_parser("detector")
    sub.add_argument("--model", type=Path, required=True)
    sub.add_argument("--images", type=Path, required=True)
    sub.add_argument("--seconds", type=float, default=6)
    sub.add_argument("--runs", type=int, default=3)
    sub.set_defaults(run=detector)
    arguments: Any = parser.parse_args()
    run: Callable[[argparse.Namespace], None] = arguments.run
    run(arguments)


if __name__ == "__main__":
    main()

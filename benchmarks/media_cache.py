"""Gigabytes of pictures through a small cache: what stays on the disk and in memory.

python benchmarks/media_cache.py --gigabytes 2 --cache 200MB
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np

from labelloop.core.regions import MediaKey
from labelloop.core.settings import read_settings
from labelloop.core.tasks import MediaRef
from labelloop.media.load import MediaLoader
from serving import HERE, free_port, process


class Studio:
    """The picture server, as the loader sees a Label Studio."""

    trusted = True
    public_urls = ()

    def __init__(self, url: str) -> None:
        self.base_url = url

    def authorization(self) -> str:
        return "Token benchmark"

    def refresh(self) -> bool:
        return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=2)
    parser.add_argument("--cache", default="200MB")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        pictures.mkdir()
        noise = np.random.default_rng(0).integers(0, 255, (300, 400, 3), np.uint8)
        (pictures / "noise.jpg").write_bytes(cv2.imencode(".jpg", cv2.blur(noise, (2, 2)))[1].tobytes())
        size = (pictures / "noise.jpg").stat().st_size
        count = int(arguments.gigabytes * 1e9 / size)
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        command = [sys.executable, str(HERE / "picture_server.py"), str(pictures), str(port)]
        with process(*command, url=f"{url}/data/upload/0/x.jpg"):
            settings = read_settings(home=Path(folder) / "home", media_cache_size=arguments.cache)
            loader = MediaLoader(settings, lambda _project: Studio(url))
            run(loader, count, size, settings.home / "cache")
            loader.close()


def run(loader: MediaLoader, count: int, size: int, cache: Path) -> None:
    begun = time.perf_counter()
    with ThreadPoolExecutor(4) as pool:
        for part in tenths(count):
            refs = [MediaRef(f"/data/upload/{number}/x.jpg", MediaKey("image")) for number in part]
            assert all(len(body) == size for body in pool.map(loader.fetch, refs))
            done = part[-1] + 1
            print(
                f"{done * size / 1e9:5.2f} GB fetched, {done / (time.perf_counter() - begun):5.0f} pictures/s, "
                f"cache {disk(cache) / 1e6:6.1f} MB, memory {memory_mb():5.0f} MB"
            )


def tenths(count: int) -> list[range]:
    step = count // 10 + 1
    return [range(start, min(start + step, count)) for start in range(0, count, step)]


def disk(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def memory_mb() -> float:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{os.getpid()}/status").read_text())
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()

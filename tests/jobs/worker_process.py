"""Workers as processes of their own, to be killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from jobs.desk import IMPORT, Desk
from reference.waiting import wait

WORKER = """
import os, sys, time
from pathlib import Path
from labelloop.app import open_worker
from labelloop.core.settings import read_settings
from labelloop.testing import FakeEngine
from labelloop.testing.engine import middle_box

home, database, url, token, size, seconds, until_idle = sys.argv[1:]
seen = open(Path(home) / f"predicted-{os.getpid()}", "ab", buffering=0)

def find(picture):
    time.sleep(float(seconds))
    seen.write(b".")
    return middle_box(picture)

settings = read_settings(
    home=Path(home),
    database_url=database,
    label_studio_url=url,
    label_studio_token=token,
    import_size=int(size),
    import_settle_s=1.0,
)
with open_worker(settings, load=lambda _: FakeEngine(find, max_batch=1)) as worker:
    worker.run(until_idle=until_idle == "True")
"""


class Victim:
    """A worker process that will be killed. Its model takes `seconds` for a picture."""

    def __init__(self, desk: Desk, *, seconds: float, until_idle: bool = True) -> None:
        self._desk = desk
        desk.settings.home.mkdir(parents=True, exist_ok=True)
        self._arguments = [str(desk.settings.home), desk.settings.database_url, desk.studio.url, desk.studio.token]
        self._arguments += [str(desk.settings.import_size), str(seconds), str(until_idle)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_"))}
        before = len(self._desk.studio.requests)
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORKER, *self._arguments], env=environment, stdout=subprocess.DEVNULL
        )
        wait(lambda: len(self._desk.studio.requests) > before + 1 or self.ended(), every_s=0.005)

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def predicted(self) -> list[int]:
        """Pictures that each worker process of this desk looked at, fewest first."""
        return sorted(len(path.read_text()) for path in self._desk.settings.home.glob("predicted-*"))


def slow_imports(seconds: float) -> Callable[[Any, str, Callable[[], Any]], Any]:
    """Kills then hit imports that are at work inside Label Studio, before or after it stored them."""

    def around(_ask: Any, path: str, answer: Callable[[], Any]) -> Any:
        if not path.endswith(IMPORT):
            return answer()
        time.sleep(seconds / 2)
        answered = answer()
        time.sleep(seconds / 2)
        return answered

    return around

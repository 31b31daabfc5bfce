"""`labelloop serve` as a process of its own, the way people run it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from labelloop.core.errors import RuntimeSetupError
from labelloop.core.settings import table
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.runtimes.processes import child, inherited_environment, tail, take_port

HOST = "127.0.0.1"

_WARM_S = 300.0
_KEPT = ("LABELLOOP_DEVICE", "LABELLOOP_THREADS")
"""What of the user's own settings fits a demo: how to run, not where to keep things or whom to ask."""


@contextlib.contextmanager
def serve(home: Path, label_studio: LabelStudio, *, port: int) -> Iterator[tuple[str, int]]:
    """Run the backend with its store in `home`; gives its URL and process id once its models are warm."""
    port = take_port(port, host=HOST)
    url, log = f"http://{HOST}:{port}", home / "labelloop.log"
    argv = [sys.executable, "-m", "labelloop", "serve", "--host", HOST, "--port", str(port)]
    with child(argv, log=log, env=_environment(home, label_studio)) as process:
        _wait_until_warm(url, process, log)
        yield url, process.pid


def _wait_until_warm(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    began = time.monotonic()
    with httpx.Client(timeout=5, trust_env=False) as http:
        while not _warm(http, url):
            late = time.monotonic() - began > _WARM_S
            if process.poll() is not None or late:
                what = "was not ready in time" if late else "ended"
                raise RuntimeSetupError(
                    f"labelloop serve {what}; the last lines of {log}:\n{tail(log)}\n",
                    hint="If its data is damaged, labelloop demo --fresh starts with an empty store.",
                )
            time.sleep(0.1)


def _warm(http: httpx.Client, url: str) -> bool:
    try:
        return http.get(f"{url}/ready").is_success
    except httpx.HTTPError:
        return False


def _environment(home: Path, label_studio: LabelStudio) -> dict[str, str]:
    """Ours, without the user's own settings: they may name a production Label Studio and its database."""
    ours = {name for row in table() for name in row[1].split(", ")} - set(_KEPT)
    return inherited_environment(without=ours) | {
        "LABELLOOP_HOME": str(home),
        "LABELLOOP_LABEL_STUDIO_URL": label_studio.url,
        "LABELLOOP_LABEL_STUDIO_TOKEN": label_studio.personal_access_token,
    }

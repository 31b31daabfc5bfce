"""`labelloop worker`: runs background jobs."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from labelloop.core.settings import Settings


def worker(
    until_idle: bool = typer.Option(False, "--until-idle", help="End when no job waits any more."),
    device: str = typer.Option(None, help="cpu, cuda, cuda:0, gpu:0, openvino or auto.  [default: auto]"),
    threads: int = typer.Option(None, help="Inferences at a time on the CPU.  [default: one per core]"),
    log_level: str = typer.Option(None, help="debug, info, warning or error.  [default: info]"),
) -> None:
    """Run background jobs until it is stopped; several may run, on any machines that share the database."""
    import signal

    from labelloop.app import open_worker
    from labelloop.core.settings import read_settings

    settings = read_settings(device=device, threads=threads, log_level=log_level)
    prepare_process(settings)
    with open_worker(settings) as running:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: running.stop())
        if not until_idle:
            typer.echo("labelloop worker waits for jobs  (Ctrl-C stops it)")
        running.run(until_idle=until_idle)


def prepare_process(settings: Settings) -> None:
    """As `labelloop serve` does; cli/serve says why."""
    import cv2

    from labelloop.core.logs import configure_logs

    sys.setswitchinterval(0.0005)
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    configure_logs(level=settings.log_level, form=settings.log_format)


def start_in_background(settings: Settings) -> subprocess.Popen[bytes]:
    """A worker that ends with the last job, in a session of its own: Ctrl-C and a closed terminal do not reach it."""
    path = settings.home / "logs" / "worker.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as log:
        command = [sys.executable, "-m", "labelloop", "worker", "--until-idle"]
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )

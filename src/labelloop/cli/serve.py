"""`labelloop serve`: the backend."""

from __future__ import annotations

import errno
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from labelloop.core.settings import Settings

_EVERYWHERE = "Use 127.0.0.1 for this machine alone, 0.0.0.0 for all of its addresses."


def serve(
    model: str = typer.Option(
        None, help="ONNX file, name of a model you added, or 'ocr'; serves every project that has none assigned."
    ),
    models: Path = typer.Option(None, help="Folder of ONNX files to add; 7.onnx serves project 7."),
    host: str = typer.Option(None, help="Address to listen on (default: 127.0.0.1)."),
    port: int = typer.Option(None, "--port", "-p", help="Port; 0 takes a free one (default: 9090)."),
    device: str = typer.Option(None, help="cpu, cuda, cuda:0, gpu:0, openvino or auto (default: auto)."),
    threads: int = typer.Option(None, help="Inferences at a time on the CPU (default: one per core)."),
    score_threshold: float = typer.Option(None, help="Draw regions from this score on (default: 0.3)."),
    labels_file: Path = typer.Option(None, help='JSON file {"model class": "project label"}; it wins over names.'),
    image_dir: Path = typer.Option(None, help="Folder shared with Label Studio, read instead of downloading."),
    basic_auth_user: str = typer.Option(None, help="User name that callers must send."),
    basic_auth_pass: str = typer.Option(
        None, help="Password that callers must send. Visible in the process list; LABELLOOP_BASIC_AUTH_PASS is not."
    ),
    jobs: bool = typer.Option(None, "--jobs/--no-jobs", help="Run background jobs in this process (default: yes)."),
    watch: list[str] = typer.Option(
        None, help="Project to watch, id or title; may be repeated, and is remembered (labelloop watch --forget)."
    ),
    log_level: str = typer.Option(None, help="debug, info, warning or error (default: info)."),
) -> None:
    """Serve models to Label Studio."""
    from labelloop.core.settings import read_settings

    settings = read_settings(
        models_dir=models or rust_layout(),
        host=host,
        port=port,
        device=device,
        threads=threads,
        score_threshold=score_threshold,
        labels_file=labels_file,
        image_dir=image_dir,
        basic_auth_user=basic_auth_user,
        basic_auth_pass=basic_auth_pass,
        jobs=jobs,
        watch=tuple(watch) if watch else None,
        log_level=log_level,
    )
    run(settings, model=model)


def run(settings: Settings, *, model: str | None) -> None:
    """Serve until somebody stops it; `model` is for projects that have none assigned."""
    import cv2
    import uvicorn

    from labelloop.app import assemble, create_app
    from labelloop.core import collector
    from labelloop.core.logs import configure_logs

    # Threads that decode and infer hand over to the event loop through the interpreter's lock; at the default of 5 ms
    # a busy thread may keep the others waiting that long, once per step of a request.
    sys.setswitchinterval(0.0005)
    # One picture per thread: OpenCV's own threads would compete with the model's for the same cores, and its messages
    # about damaged files repeat what the task's error says.
    cv2.setNumThreads(1)
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    configure_logs(level=settings.log_level, form=settings.log_format)
    address, number = settings.listen
    with _told(address, number):  # before models begin to load in vain
        door = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port in TIME_WAIT is free for a server
        door.bind((address, number))
    application = create_app(settings, assemble(settings, model=model))
    config = uvicorn.Config(
        application,
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,  # nobody here asks for the address of the caller
        timeout_graceful_shutdown=5,
    )
    with _told(address, number):
        door.listen(config.backlog)  # from here on callers wait instead of being refused
    shown = f"[{address}]" if ":" in address else address
    typer.echo(f"labelloop listens on http://{shown}:{door.getsockname()[1]}  (Ctrl-C stops it)")
    # uvicorn sends itself the signal again when everything is closed: it shall end the process, and not become an
    # exception after which the interpreter waits for threads that wait for a Label Studio.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    server = uvicorn.Server(config)
    wait_for_callers = server.shutdown

    async def shutdown(sockets: list[Any] | None = None) -> None:
        application.end_streams()  # listeners would stay until the time that callers get to finish is over
        await wait_for_callers(sockets)

    server.shutdown = shutdown  # type: ignore[method-assign]
    collector.keep_short()
    server.run(sockets=[door])


@contextmanager
def _told(address: str, port: int) -> Iterator[None]:
    """Why this machine does not let us listen there, with the next step. Raises SettingsError."""
    from labelloop.core.errors import SettingsError

    try:
        yield
    except (socket.gaierror, UnicodeError) as error:  # UnicodeError: what cannot be a name, "a..b"
        raise SettingsError(f"The host {address} to listen on is not known.", hint=_EVERYWHERE) from error
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise SettingsError(f"This machine does not have the address {address}.", hint=_EVERYWHERE) from error
        hint = "Does labelloop run already? Stop it, or choose another port, for instance --port 9191; 0: any free one."
        reason = error.strerror or str(error)
        raise SettingsError(f"Port {port} on {address} is not free ({reason}).", hint=hint) from error


def rust_layout() -> Path | None:
    """`models/PROJECT_ID.onnx` below the working directory, the layout of a backend in Rust, is served unasked.

    The environment's own `LABELLOOP_MODELS_DIR` would lose against an option, so it is looked at first.
    """
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import project_of

    folder = Path("models")
    if read_settings().models_dir is None and any(project_of(path) is not None for path in folder.glob("*.onnx")):
        return folder
    return None

"""`labelloop serve`: the backend."""

from __future__ import annotations

import sys
from pathlib import Path

import typer


def serve(
    model: str = typer.Option(
        None, help="ONNX file, name of a model you added, or 'ocr'; serves every project that has none assigned."
    ),
    models: Path = typer.Option(None, help="Folder of ONNX files to add; 7.onnx serves project 7."),
    host: str = typer.Option(None, help="Address to listen on.  [default: 127.0.0.1]"),
    port: int = typer.Option(None, "--port", "-p", help="Port; 0 takes a free one.  [default: 9090]"),
    device: str = typer.Option(None, help="cpu, cuda, cuda:0, gpu:0 or auto.  [default: auto]"),
    threads: int = typer.Option(None, help="Inferences at a time on the CPU.  [default: one per core]"),
    score_threshold: float = typer.Option(None, help="Draw regions from this score on.  [default: 0.3]"),
    labels_file: Path = typer.Option(None, help='JSON file {"model class": "project label"}.'),
    image_dir: Path = typer.Option(None, help="Folder shared with Label Studio, read instead of downloading."),
    basic_auth_user: str = typer.Option(None, help="User name that callers must send."),
    basic_auth_pass: str = typer.Option(None, help="Password that callers must send."),
    log_level: str = typer.Option(None, help="debug, info, warning or error.  [default: info]"),
) -> None:
    """Serve models to Label Studio."""
    import uvicorn

    from labelloop.app import assemble, create_app
    from labelloop.core.logs import configure_logs
    from labelloop.core.settings import read_settings

    settings = read_settings(
        models_dir=models,
        host=host,
        port=port,
        backend_addr="" if host else None,
        device=device,
        threads=threads,
        score_threshold=score_threshold,
        labels_file=labels_file,
        image_dir=image_dir,
        basic_auth_user=basic_auth_user,
        basic_auth_pass=basic_auth_pass,
        log_level=log_level,
    )
    # Threads that decode and infer hand over to the event loop through the interpreter's lock. At the default of 5 ms a
    # busy loop keeps the others waiting that long (measured: 16 callers of an empty model, p50 7 ms instead of SWITCH).
    sys.setswitchinterval(0.0005)
    configure_logs(level=settings.log_level, form=settings.log_format)
    application = create_app(settings, assemble(settings, model=model))
    address, number = settings.listen
    config = uvicorn.Config(
        application,
        host=address,
        port=number,
        access_log=False,
        log_config=None,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    socket = config.bind_socket()
    shown = f"[{address}]" if ":" in address else address
    typer.echo(f"labelloop listens on http://{shown}:{socket.getsockname()[1]}  (Ctrl-C stops it)")
    uvicorn.Server(config).run(sockets=[socket])

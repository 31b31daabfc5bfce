"""`labelloop watch`: pre-annotate what is new and hear of annotations, without an inbound port."""

from __future__ import annotations

import typer


def watch(
    projects: list[str] = typer.Argument(None, help="Ids or titles of projects in Label Studio."),
    interval: float = typer.Option(None, min=0.5, help="Seconds between two looks.  [default: 5]"),
    forget: bool = typer.Option(False, "--forget", help="Stop watching these projects, everywhere; returns at once."),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path.  [env: LABEL_STUDIO_URL]"),
    token: str = typer.Option(None, help="Personal access token or legacy token.  [env: LABEL_STUDIO_API_KEY]"),
    device: str = typer.Option(None, help="cpu, cuda, cuda:0, gpu:0, openvino or auto.  [default: auto]"),
    log_level: str = typer.Option(None, help="debug, info, warning or error.  [default: info]"),
) -> None:
    """Watch PROJECTS until it is stopped: new tasks are pre-annotated within seconds, annotations become events."""
    import signal
    from functools import partial

    from labelloop.app import open_watch
    from labelloop.cli.connect import label_studio
    from labelloop.cli.worker import prepare_process
    from labelloop.core.settings import read_settings
    from labelloop.jobs.submit import known_project
    from labelloop.labelstudio.client import Client
    from labelloop.serving.models import open_store
    from labelloop.store.watches import Key

    settings = read_settings(
        label_studio_url=url,
        label_studio_token=token,
        watch_interval_s=interval,
        device=device,
        log_level=log_level,
    )
    if not projects:
        raise typer.BadParameter("Name at least one project.")
    store = open_store(settings)
    address, key = label_studio(settings, store.registry)
    with Client(address, key) as client:  # a mistyped title is said now, not in a log
        find = client.find_project if forget else partial(known_project, client, store.registry)
        found = [find(project) for project in projects]
    if forget:
        for project in found:
            known = store.watches.forget(Key(address, project.id))
            typer.echo(f"{project.title} is {'not watched any more' if known else 'not watched'}.")
        return
    store.registry.save_connection(address, key)  # jobs need it, and may run elsewhere
    store.engine.dispose()
    prepare_process(settings)
    with open_watch(settings, [str(project.id) for project in found]) as watching:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: watching.stop())
        titles = ", ".join(project.title for project in found)
        typer.echo(f"labelloop watches {titles}  (Ctrl-C stops it)")
        watching.run()

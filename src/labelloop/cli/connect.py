"""`labelloop connect`: register the backend in a project of Label Studio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from labelloop.core.settings import Settings
    from labelloop.labelstudio.client import Client
    from labelloop.store.registry import Registry


def connect(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path (or LABEL_STUDIO_URL)."),
    token: str = typer.Option(None, help="Personal access token or legacy token (or LABEL_STUDIO_API_KEY)."),
    model: str = typer.Option(None, help="Model for this project: NAME, NAME@VERSION, an ONNX file, 'ocr' or 'none'."),
    backend_url: str = typer.Option(
        None, help="Address of labelloop as Label Studio sees it (default: http://127.0.0.1:9090)."
    ),
    basic_auth_user: str = typer.Option(None, help="User name that the backend asks for."),
    basic_auth_pass: str = typer.Option(None, help="Password that the backend asks for."),
    interactive: bool = typer.Option(
        None, "--interactive/--no-interactive", help="Use it for smart tools (default: yes for a new connection)."
    ),
    title: str = typer.Option(None, help="Name of the backend in Label Studio (default: labelloop)."),
    take_over: bool = typer.Option(
        False, "--take-over", help="Forget the project of another Label Studio that had this number before."
    ),
) -> None:
    """Connect PROJECT to labelloop. Safe to repeat."""
    from labelloop.cli import report as terminal
    from labelloop.cli.doctor import coverage
    from labelloop.connection.connect import connect as connect_project
    from labelloop.connection.findings import Finding, failed
    from labelloop.connection.project_checks import check_labels
    from labelloop.core.settings import read_settings
    from labelloop.labelstudio.client import Client
    from labelloop.serving.models import open_registry

    settings = read_settings(
        label_studio_url=url,
        label_studio_token=token,
        basic_auth_user=basic_auth_user,
        basic_auth_pass=basic_auth_pass,
    )
    registry = open_registry(settings)
    address, key = label_studio(settings, registry)
    out = terminal.console()
    with Client(address, key) as client:
        _get_to_know(client, registry, project, take_over=take_over)
        if model:
            out.print(_assign(client, registry, settings, model, project, backend_url))
        report = connect_project(
            client,
            project,
            backend_url=backend_url or own_url(settings),
            title=title,
            basic_auth=basic_auth(settings),
            interactive=interactive,
        )
        labels: list[Finding] = []
        if report.backend is not None:
            labels += check_labels(client, report.project, report.backend, coverage(settings, registry))
    registry.save_connection(address, key)
    shown = terminal.print_findings([*report.findings, *labels], out)
    for change in report.changes:
        out.print(f"  {change}", markup=False)
    if failed(shown):
        raise typer.Exit(1)
    done = "is connected" if report.changes else "was connected already"
    out.print(f"\nProject {report.project.id} {done}: {address}/projects/{report.project.id}/data", markup=False)


def _get_to_know(client: Client, registry: Registry, project: str, *, take_over: bool) -> None:
    """See that our rows mean this project by its number; with `take_over` they do from now on."""
    from labelloop.core.errors import ProjectElsewhere
    from labelloop.jobs.submit import known_project

    try:
        known_project(client, registry, project)
    except ProjectElsewhere:
        if not take_over:
            raise
        registry.homes.move(client.find_project(project).id)
        known_project(client, registry, project)


def _assign(client: Client, registry: Registry, settings: Settings, model: str, project: str, url: str | None) -> str:
    """Make `model` (a file is added to the registry) serve the project, before Label Studio asks for its version."""
    from labelloop.cli.models import person
    from labelloop.connection.backend import BackendProbe, wait_for_model
    from labelloop.serving.models import default_model
    from labelloop.store.moves import NOTHING

    found = client.find_project(project)
    spec = model if model == NOTHING else default_model(registry, model, settings)
    # A name alone follows the newest version; NAME@VERSION stays where it is.
    target = spec if "@" in model else spec.partition("@")[0]
    version = registry.bind(found.id, target, reason="labelloop connect", by=person())
    if version is None:
        return f"Project {found.id} ({found.title}) has no model until one is trained or assigned."
    wait_for_model(BackendProbe(url or own_url(settings), basic_auth=basic_auth(settings)), version.id)
    return f"{version.id} serves project {found.id} ({found.title})."


def label_studio(settings: Settings, registry: Registry) -> tuple[str, str]:
    """Address and token: from the settings, else what the last `labelloop connect` saved. Raises SettingsError."""
    from labelloop.jobs.submit import address_of

    return address_of(settings, registry)


def own_url(settings: Settings) -> str:
    """Where `labelloop serve` with the same settings is reached on this machine."""
    host, port = settings.listen
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, host)  # noqa: S104 - recognised, not bound
    return f"http://{host}:{port}"


def basic_auth(settings: Settings) -> tuple[str, str] | None:
    """User name and password of the backend; None when it has none."""
    user, password = settings.basic_auth_user, settings.basic_auth_pass.get_secret_value()
    return (user, password) if user and password else None

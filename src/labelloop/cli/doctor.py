"""`labelloop doctor`: what is wrong, and how to mend it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from labelloop.connection.project_checks import Coverage, Look
    from labelloop.core.settings import Settings
    from labelloop.store.registry import ModelVersion, Registry


def doctor(
    project: str = typer.Argument(None, help="Id or title of a project (default: all that are connected)."),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path (or LABEL_STUDIO_URL)."),
    token: str = typer.Option(None, help="Personal access token or legacy token (or LABEL_STUDIO_API_KEY)."),
    backend_url: str = typer.Option(
        None, help="Address of labelloop as Label Studio sees it (default: http://127.0.0.1:9090)."
    ),
    basic_auth_user: str = typer.Option(None, help="User name that the backend asks for."),
    basic_auth_pass: str = typer.Option(None, help="Password that the backend asks for."),
) -> None:
    """Check everything between Label Studio and labelloop; every failed line says the fix. Changes nothing."""
    from labelloop.cli import report as terminal
    from labelloop.cli.connect import basic_auth, label_studio, own_url
    from labelloop.connection.doctor import examine
    from labelloop.connection.findings import failed
    from labelloop.connection.server_checks import Installation
    from labelloop.core.errors import SettingsError
    from labelloop.core.settings import read_settings
    from labelloop.serving.models import open_registry

    settings = read_settings(
        label_studio_url=url,
        label_studio_token=token,
        basic_auth_user=basic_auth_user,
        basic_auth_pass=basic_auth_pass,
    )
    registry = open_registry(settings)
    try:
        address, key = label_studio(settings, registry)
    except SettingsError:  # the first line of the report says it, and the other checks go on
        address, key = "", ""
    installation = Installation(address, key, (backend_url or own_url(settings)).rstrip("/"), basic_auth(settings))
    findings = examine(installation, project, coverage=coverage(settings, registry), look=look(settings, address, key))
    out = terminal.console()
    shown = terminal.print_findings(findings, out)
    out.print("\n" + summary([finding.status for finding in shown]))
    if failed(shown):
        raise typer.Exit(1)


def summary(statuses: list[str]) -> str:
    """One line that counts."""
    fails, warnings = statuses.count("fail"), statuses.count("warn")
    if not fails and not warnings:
        return "All is well."
    parts = [f"{fails} failed"] * bool(fails) + [f"{warnings} to look at"] * bool(warnings)
    return ", ".join([*parts, f"{statuses.count('ok')} fine"]) + "."


def coverage(settings: Settings, registry: Registry) -> Coverage:
    """Looks the model up in our store: by the version that Label Studio was told, else by what serves the project,
    since hosted models call themselves as they like. Those have no label map."""
    from labelloop.core.errors import ModelNotFound
    from labelloop.labelstudio.config import parse_config
    from labelloop.labelstudio.labelmap import LabelMap
    from labelloop.labelstudio.records import Project
    from labelloop.serving.projects import Lens

    catalogue = registry.catalogue()
    lens = Lens.shared(settings, catalogue)

    def named(project: Project, version: str) -> ModelVersion | None:
        try:
            return catalogue.find(version) if version else catalogue.of_project(project.id)
        except ModelNotFound:
            serving, called = catalogue.serving(project.id)
            return serving if called == version else None

    def cover(project: Project, version: str) -> tuple[str, LabelMap | None] | None:
        try:
            found = named(project, version)
        except ModelNotFound:
            return None
        if found is None:
            return None
        if found.card.task == "raw":
            return found.id, None
        return found.id, lens.label_map(found.card, parse_config(project.label_config))

    return cover


def look(settings: Settings, url: str, token: str) -> Look:
    """Fetches and decodes the first picture of a task, as a prediction would."""
    from labelloop.core.regions import Size
    from labelloop.core.tasks import Task
    from labelloop.labelstudio.config import parse_config
    from labelloop.labelstudio.records import Project
    from labelloop.labelstudio.tokens import Credentials
    from labelloop.labelstudio.wire import media_refs
    from labelloop.media.load import MediaLoader
    from labelloop.serving.origins import Origin

    origin = Origin(Credentials(url, token), public_urls=(), trusted=True)

    def see(project: Project, task: Mapping[str, Any]) -> Size | None:
        pictures = [tag for tag in parse_config(project.label_config).objects if tag.tag == "Image"]
        refs = media_refs(Task(task["id"], dict(task["data"]), project.id), tuple(pictures))
        if not refs:
            return None
        loader = MediaLoader(settings, lambda _project: origin)
        try:
            return loader.load(refs[0]).size
        finally:
            loader.close()

    return see

"""`labelloop quality`: what people made of the predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from labelloop.jobs.quality import Look, Question
    from labelloop.jobs.quality_report import Report
    from labelloop.labelstudio.client import Client
    from labelloop.store.registry import Registry


def quality(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    as_json: bool = typer.Option(False, "--json", help="Print JSON (docs/api.md has the schema) instead of tables."),
    version: str = typer.Option(
        "", help="Only predictions of NAME, NAME@VERSION or a version string; it also judges.  [default: all]"
    ),
    since: str = typer.Option("", help="Only annotations saved from this day or moment on, in UTC: 2026-11-01."),
    mistakes: bool = typer.Option(
        True, "--mistakes/--no-mistakes", help="Look for likely label mistakes, with the version that serves PROJECT."
    ),
    tab: bool = typer.Option(
        True, "--tab/--no-tab", help="Put their tasks into the tab 'Likely label mistakes' of the Data Manager."
    ),
    sure: float = typer.Option(0.9, min=0.0, max=1.0, help="Confidence from which the model may contradict a person."),
    overruled: bool = typer.Option(
        False, "--overruled", help="List also what a person saw in the model's prediction and decided against."
    ),
    limit: int = typer.Option(500, min=1, max=5000, help="List at most this many mistakes."),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path.  [env: LABEL_STUDIO_URL]"),
    token: str = typer.Option(None, help="Personal access token or legacy token.  [env: LABEL_STUDIO_API_KEY]"),
) -> None:
    """How much of PROJECT's predictions people accepted, changed and missed, and where people may have erred."""
    from labelloop.cli.connect import label_studio
    from labelloop.core.settings import read_settings
    from labelloop.jobs.quality import Question, show_in_tab
    from labelloop.labelstudio.client import Client
    from labelloop.labelstudio.filters import parse_moment
    from labelloop.serving.models import open_registry

    settings = read_settings(label_studio_url=url, label_studio_token=token)
    registry = open_registry(settings)
    question = Question(version, parse_moment(since) if since else None, mistakes, sure, overruled, limit)
    with Client(*label_studio(settings, registry)) as client:
        report = _measure(client, registry, project, question)
        try:
            if tab and report.mistakes is not None:
                report = show_in_tab(client, report)
        finally:  # a tab that Label Studio refuses must not cost the figures
            _show(report, client.base_url, as_json=as_json)
    if mistakes and report.mistakes is None:
        typer.echo(f"Nothing can judge: assign a model (labelloop models use {report.project} NAME).", err=True)


def _measure(client: Client, registry: Registry, project: str, question: Question) -> Report:
    from labelloop.core.errors import ModelNotFound
    from labelloop.jobs.quality import measure

    found = client.find_project(project)
    try:
        assigned = registry.catalogue().of_project(found.id)
    except ModelNotFound:  # removed by hand: what is stored can still be counted
        assigned = None
    with _Bar() as look:
        return measure(client, found, question, live=assigned.id if assigned else None, look=look)


def _show(report: Report, base_url: str, *, as_json: bool) -> None:
    import msgspec

    from labelloop.cli.quality_tables import print_report

    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(report), indent=2).decode())
    else:
        print_report(report, base_url)


class _Bar:
    """How far the reading is, on stderr; nothing where that is no terminal."""

    def __enter__(self) -> Look:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console: Console = Console(stderr=True)
        columns = TextColumn("reading annotated tasks"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._bar.start()
        shown = self._bar.add_task("", total=None)
        return lambda done, left: self._bar.update(shown, completed=done, total=done + left)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

"""`labelloop order`: what should be labelled next, first."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from labelloop.core.settings import Settings
    from labelloop.jobs.order import Ordered, Wish


def order(
    project: str = typer.Argument(help="Id or title of the project in Label Studio."),
    strategy: str = typer.Option(
        None, help="random, least_confidence, margin or entropy.  [default: LABELLOOP_ACQUISITION, margin]"
    ),
    aggregate: str = typer.Option(
        None, help="max, mean, sum or top-k of a picture's regions.  [default: LABELLOOP_AGGREGATION, top-k]"
    ),
    top_k: int = typer.Option(3, min=1, help="How many regions top-k looks at."),
    class_balance: bool = typer.Option(
        False, "--class-balance", help="Ask more for classes that are predicted rarely."
    ),
    empty_quota: float = typer.Option(
        None, min=0.0, max=0.99, help="Share of places for pictures on which nothing was found.  [default: 0.1]"
    ),
    flip: bool = typer.Option(False, "--flip", help="Look at every picture and its mirror image: do they agree?"),
    diverse: int = typer.Option(None, min=1, help="Choose so many that differ, from four times as many doubtful ones."),
    method: str = typer.Option("k-center", help="How they are chosen: k-center or k-means++."),
    first: int = typer.Option(None, min=1, help="Put only so many in their places: quicker where much has changed."),
    sampling: bool = typer.Option(True, "--sampling/--no-sampling", help="Let 'Label All Tasks' follow the order too."),
    seed: int = typer.Option(0, help="Of the random strategy, of k-means++, and of ties."),
    model: str = typer.Option(None, help="NAME or NAME@VERSION.  [default: the model that serves the project]"),
    url: str = typer.Option(None, help="Address of Label Studio, with its sub-path.  [env: LABEL_STUDIO_URL]"),
    token: str = typer.Option(None, help="Personal access token or legacy token.  [env: LABEL_STUDIO_API_KEY]"),
) -> None:
    """Put PROJECT's tasks into an order, most uncertain first. Safe to repeat, and to end with Ctrl-C."""
    from labelloop.cli.report import console
    from labelloop.core.settings import read_settings
    from labelloop.jobs.order import wish_of

    settings = read_settings(label_studio_url=url, label_studio_token=token)
    wish = wish_of(
        settings,
        strategy=strategy,
        aggregation=aggregate,
        top_k=top_k,
        balance=class_balance,
        empty_quota=empty_quota,
        flip=flip,
        diverse=diverse,
        method=method,
        first=first,
        sampling=sampling,
        seed=seed,
    )
    done, address = _run(settings, project, model, wish, console())
    report(done, address, console())


def _run(settings: Settings, project: str, model: str | None, wish: Wish, out: Console) -> tuple[Ordered, str]:
    from labelloop.app import open_looks
    from labelloop.cli.connect import label_studio
    from labelloop.cli.worker import prepare_process
    from labelloop.core.logs import configure_logs
    from labelloop.jobs.order import reorder
    from labelloop.jobs.patience import Patience
    from labelloop.jobs.submit import known_project, view_of
    from labelloop.labelstudio.client import Client
    from labelloop.serving.models import default_model, open_store

    store = open_store(settings)
    address, key = label_studio(settings, store.registry)
    if wish.looks:
        prepare_process(settings)
    # that classes map to nothing is worth a line to a server; here it would tear the progress bar apart
    configure_logs(level="error", form=settings.log_format)
    with Client(address, key) as client:
        found = known_project(client, store.registry, project)
        spec = default_model(store.registry, model, settings) if model else None
        view = view_of(settings, store.registry, found, spec)
        looks: Any = nullcontext()
        if wish.looks:
            looks = open_looks(settings, store, view, project_id=found.id, label_studio=(client.base_url, key))
        bar = _Bar(out)
        patience = Patience(settings.patience_s, check=lambda: None, tell=bar.tell)
        with looks as seeing, bar:
            done = reorder(
                client, found.id, view, store.scores, wish=wish, patience=patience, looks=seeing, progress=bar
            )
    return done, client.base_url


def report(done: Ordered, address: str, out: Console) -> None:
    """What was done, and where the order can be followed."""
    from labelloop.jobs.order import TAB

    def say(text: str) -> None:
        out.print(text, markup=False)

    say(f"{done.ranked} tasks in order by {done.version}; {done.changed} scores were changed.")
    if done.read_back:
        say(f"  {done.read_back} predictions were read back from Label Studio: nothing was remembered of them.")
    if done.unseen:
        say(f"  {done.unseen} pictures could not be looked at; labelloop doctor {done.project_id} says why.")
    if done.unpredicted:
        say(f"  {done.unpredicted} tasks have no prediction of this version and come last.")
        say(f"  → labelloop prelabel {done.project_id}, then this again")
    if done.switched_from is not None:
        say(f"  The project now shows the predictions of {done.version}, instead of {done.switched_from or 'none'}:")
        say("  Label Studio sorts stored predictions only. New tasks get theirs from labelloop prelabel.")
    say(f"Follow the order: {address}/projects/{done.project_id}/data?tab={done.tab}")
    say(f"  tab '{TAB}', the arrow beside 'Label All Tasks', 'Label Tasks As Displayed'")
    if done.sampled:
        say("  or the button 'Label All Tasks': it keeps people who label at the same time apart")


class _Bar:
    """Progress on a terminal, one line per stage; elsewhere nothing."""

    def __init__(self, out: Console) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._out = out
        self._bar = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
        self._stages: dict[str, Any] = {}

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._stages:
            self._stages[stage] = self._bar.add_task(stage, total=total)
        self._bar.update(self._stages[stage], completed=done, total=total)

    def tell(self, level: str, text: str) -> None:
        if level != "info":
            self._out.print(text, markup=False)

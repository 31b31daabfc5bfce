"""A project's loop on a terminal: where it is, what its latest run made, and how good that is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelloop.core.extras import not_installed
from labelloop.jobs.training import LoopState, summary
from labelloop.store.runs import Run

CURVE_WIDTH = 40
CLASSES_SHOWN = 12
_BARS = "▁▂▃▄▅▆▇█"

BOXES = {"boxes": "boxes", "ap50": "AP50", "ap": "AP", "precision": "precision", "recall": "recall"}
CHOICES = {"items": "items", "f1": "F1", "precision": "precision", "recall": "recall"}
"""The columns of a table of classes: the figure's name, and what it is called. The second is shown of both versions."""


def print_state(state: LoopState, out: Console, *, works: bool) -> None:
    """Where the loop is, what the latest run made, and why it was or was not promoted. `works`: a worker lives."""
    switch = "[green]on[/]" if state.enabled else "[yellow]off[/]"
    out.print(f"The loop of project {state.project_id} is {switch}. {state.next}", markup=True)
    waits = state.enabled or (state.job is not None and not state.job.ended)
    if waits and not works:
        out.print("Nobody is here to train: run labelloop serve, or labelloop worker.", style="yellow")
    if waits and (missing := not_installed("torch", "sklearn", "faster_coco_eval")):
        out.print(f"If this machine is to train: {missing}", style="yellow", markup=False)
    if state.run is not None:
        print_run(state.run, state.job.error if state.job is not None else "", out)


def print_run(run: Run, error: str, out: Console) -> None:
    """What a run did, and its figures."""
    out.print(f"\nRun {run.job_id}, {run.started_at:%Y-%m-%d %H:%M}, because {run.reason}.", markup=False)
    for line in summary(run):
        out.print(f"  {line}", markup=False)
    losses = [point.loss for point in run.curve if point.loss is not None]
    if losses:
        out.print(f"  loss {sparkline(losses)} {losses[0]:.3g} → {losses[-1]:.3g}", markup=False)
    candidate = run.metrics.get("candidate")
    if isinstance(candidate, Mapping):
        out.print(_classes(candidate, run.metrics.get("live")))
    if error:
        out.print(f"  {error}", markup=False, style="red")
    out.print(f"  log: labelloop jobs logs {run.job_id}", markup=False)


def sparkline(values: list[float]) -> str:
    """The shape of a curve in one line of text."""
    step = max(1, len(values) // CURVE_WIDTH)
    shown = values[::step]
    low, high = min(shown), max(shown)
    span = (high - low) or 1.0
    return "".join(_BARS[min(int((value - low) / span * len(_BARS)), len(_BARS) - 1)] for value in shown)


def _classes(candidate: Mapping[str, Any], live: Any) -> Table:
    """How good the candidate is at each class, with how many of them were held out, and the live version beside it."""
    rows: Sequence[Mapping[str, Any]] = candidate.get("classes") or ()
    columns = BOXES if rows and "boxes" in rows[0] else CHOICES
    others = {row["label"]: row for row in live["classes"]} if isinstance(live, Mapping) else None
    count, first, *rest = columns
    table = Table("  held out", box=None, pad_edge=False, padding=(0, 2))
    beside = [] if others is None else ["live"]
    for title in (columns[count], columns[first], *beside, *(columns[name] for name in rest)):
        table.add_column(title, justify="right")
    for row in rows[:CLASSES_SHOWN]:
        beside = [] if others is None else [_figure(others.get(row["label"], {}).get(first))]
        figures = [_figure(row.get(name)) for name in rest]
        table.add_row(f"  {escape(row['label'])}", str(row[count]), _figure(row.get(first)), *beside, *figures)
    if len(rows) > CLASSES_SHOWN:
        table.add_row(f"  {len(rows) - CLASSES_SHOWN} more: --json")
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"

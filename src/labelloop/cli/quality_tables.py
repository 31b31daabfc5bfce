"""A quality report on a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from labelloop.jobs.quality_report import Mistake, Mistakes, Regions, Report, VersionQuality

CLASSES_SHOWN = 12
MISTAKES_SHOWN = 20
GONE = "(deleted)"


def print_report(report: Report, base_url: str) -> None:
    """The figures, what they mean, and the likely mistakes; in 80 columns."""
    out = Console(highlight=False)
    out.print(f"[bold]{escape(report.title)}[/] (project {report.project}): {_read(report)}")
    if report.versions:
        out.print(_per_picture(report.versions))
        out.print(
            "Edits are changes, deletions and additions; from nothing, each region is drawn. Saved is the difference, "
            "(accepted - wrong) / pictures: as a correction counts like a drawing, the model saved at least this.",
            style="dim",
        )
        out.print(_per_class(report.versions))
        if not all(one.wrong_known for one in report.versions):
            out.print(
                f"{GONE}: these predictions are gone from Label Studio. What was wrong is not known, so accepted and "
                "saved are at most this.",
                style="dim",
            )
    if report.mistakes is not None:
        _print_mistakes(report.mistakes, report, base_url, out)


def _read(report: Report) -> str:
    since = f" since {report.since[:10]}" if report.since else ""
    if not report.annotations:
        return f"no submitted annotations{since} yet."
    parts = [f"{report.began_with_prediction} began with a prediction", f"{report.began_with_nothing} with nothing"]
    if report.not_looked_at:
        parts.append(f"{report.not_looked_at} Label Studio made from predictions and nobody touched (not counted)")
    return f"{report.annotations} submitted annotations{since}: {', '.join(parts)}."


def _per_picture(versions: Iterable[VersionQuality]) -> Table:
    table = Table(title="Per picture", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("Version", overflow="fold")
    for name in ("Pictures", "Untouched", "Edits", "From nothing", "Saved"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in versions:
        table.add_row(
            _name(one),
            str(one.pictures),
            f"{one.untouched / one.pictures:.0%}",
            f"{one.edits_per_picture:.2f}",
            f"{one.edits_from_nothing_per_picture:.2f}",
            f"{one.edits_saved_per_picture:+.2f}",
        )
    return table


def _per_class(versions: Iterable[VersionQuality]) -> Table:
    """One block per version: all regions, then its classes, those with the most edits first."""
    table = Table(title="Regions", title_justify="left", box=SIMPLE_HEAD)
    table.add_column("Version, class", overflow="fold")
    for name in ("Predicted", "Accepted", "Changed", "IoU", "Wrong", "Missed"):
        table.add_column(name, justify="right", no_wrap=True)
    for one in versions:
        table.add_row(_name(one), *_cells(one.regions, one.wrong_known), style="bold")
        ordered = sorted(one.classes, key=lambda found: -_edits(found.regions))
        for found in ordered[:CLASSES_SHOWN]:
            table.add_row(f"  {escape(found.label) or '-'}", *_cells(found.regions, one.wrong_known))
        if len(ordered) > CLASSES_SHOWN:
            table.add_row(f"  {len(ordered) - CLASSES_SHOWN} more: --json")
        table.add_section()
    return table


def _name(one: VersionQuality) -> str:
    return escape(one.version) or GONE


def _cells(regions: Regions, wrong_known: bool) -> list[str]:
    rate, iou = regions.acceptance_rate, regions.edit_iou
    return [
        str(regions.predicted),
        "-" if rate is None else f"{rate:.0%}",
        str(regions.changed),
        "-" if iou is None else f"{iou:.2f}",
        str(regions.wrong) if wrong_known else "?",
        str(regions.missed),
    ]


def _edits(regions: Regions) -> int:
    return regions.changed + regions.wrong + regions.missed


def _print_mistakes(found: Mistakes, report: Report, base_url: str, out: Console) -> None:
    out.print(f"\n[bold]Likely label mistakes[/], as {escape(found.judge)} sees it: {_judged(found)}")
    if found.without_prediction:
        out.print(
            f"{found.without_prediction} could not be compared: their tasks have no prediction of it. Store them:"
        )
        model = f" --model {found.judge}" if re.fullmatch(r"[\w.-]+@\d+", found.judge) else ""
        command = f"labelloop prelabel {report.project}{model} --filter 'total_annotations>0'"
        out.print(f"  {command}", soft_wrap=True, markup=False)  # unbroken, to be copied
    if not found.listed:
        return
    table = Table(box=SIMPLE_HEAD)
    for name in ("Task", "Annotation", "Model sees", "Sure", "A person"):
        table.add_column(name, justify="right" if name in ("Task", "Annotation", "Sure") else "left")
    for one in found.listed[:MISTAKES_SHOWN]:
        sees, link = escape(one.model_label) or "-", f"{base_url}/projects/{report.project}/data?task={one.task}"
        table.add_row(f"[link={link}]{one.task}[/link]", str(one.annotation), sees, f"{one.confidence:.2f}", _said(one))
    out.print(table)
    if len(found.listed) > MISTAKES_SHOWN:
        out.print(f"{len(found.listed) - MISTAKES_SHOWN} more: --json")
    if report.tab is not None:
        out.print(f"{report.tab.tasks} tasks are in the tab {report.tab.title!r}: {report.tab.url}", soft_wrap=True)


def _judged(found: Mistakes) -> str:
    text = f"{found.found} in {found.compared} annotations, at confidence {found.sure:g} or more."
    if found.overruled:
        text += f" {found.overruled} more a person saw in its prediction and decided against (--overruled)."
    return text


def _said(one: Mistake) -> str:
    label, iou = escape(one.person_label or ""), 0.0 if one.iou is None else one.iou
    said = {
        "overlooked": "drew nothing there",
        "swapped": f"says {label} (IoU {iou:.2f})",
        "misplaced": f"drew {label} elsewhere (IoU {iou:.2f})",
    }[one.kind]
    return said + (", having seen it" if one.overruled else "")

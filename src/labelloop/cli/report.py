"""Findings on a terminal: one line each, what to do indented below."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from labelloop.connection.findings import Finding

_MARKS = {"ok": "[green]✓[/]", "warn": "[yellow]![/]", "fail": "[red]✗[/]", "skipped": "[dim]–[/]"}


def print_findings(findings: Iterable[Finding], console: Console) -> list[Finding]:
    """Print each finding as it comes, below a heading per project; returns them all."""
    shown: list[Finding] = []
    subject = ""
    for finding in findings:
        if finding.subject != subject:
            subject = finding.subject
            console.print(f"\n[bold]{escape(subject)}[/]")
        console.print(f"{_MARKS[finding.status]} [bold]{escape(finding.check)}[/]  {escape(finding.message)}")
        if finding.fix:
            console.print(f"    [cyan]→[/] {escape(finding.fix)}")
        shown.append(finding)
    return shown


def console() -> Console:
    """Lines are not broken, so that a command in a fix can be copied."""
    return Console(highlight=False, soft_wrap=True)

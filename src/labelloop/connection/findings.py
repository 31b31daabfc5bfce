"""What a check found out. Every failure says the fix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal

import msgspec

from labelloop.core.errors import LabelloopError

Status = Literal["ok", "warn", "fail", "skipped"]


class Finding(msgspec.Struct, frozen=True):
    """One line of a report. `fix` is a command, a setting or a step; a finding that is not ok always has one.
    `subject` is the project it is about, empty for the servers."""

    check: str
    status: Status
    message: str
    fix: str = ""
    subject: str = ""


def ok(check: str, message: str) -> Finding:
    return Finding(check, "ok", message)


def warn(check: str, message: str, fix: str) -> Finding:
    return Finding(check, "warn", message, fix)


def fail(check: str, message: str, fix: str) -> Finding:
    return Finding(check, "fail", message, fix)


def skipped(check: str, message: str, fix: str) -> Finding:
    return Finding(check, "skipped", message, fix)


def attempt(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Run one check; one of our errors becomes its failed finding, so that the next check still runs."""
    try:
        yield from look()
    except LabelloopError as error:
        yield fail(check, error.message, error.hint or "Look at Label Studio's log for the reason.")


def failed(findings: Iterable[Finding]) -> bool:
    return any(finding.status == "fail" for finding in findings)

"""`labelloop quality` as a process, the way people run it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest
from starlette.responses import JSONResponse, Response

from labelloop.jobs.quality import TAB
from labelloop.jobs.quality_report import Report
from labelloop.labelstudio.client import Client
from labelloop.testing import FakeLabelStudio
from labelloop.testing.label_studio.exchange import Ask
from reference.reviewed_project import FIRST, REGIONS_OF_FIRST, SECOND, ReviewedProject, box


class Terminal:
    """A person with a reviewed project that shows the second version, and no model of their own."""

    def __init__(self, reviewed: ReviewedProject, token: str, home: Path) -> None:
        self.reviewed = reviewed
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_"))}
        self.environment = kept | {"LABELLOOP_HOME": str(home), "COLUMNS": "100"}
        self.environment |= {"LABEL_STUDIO_URL": reviewed.client.base_url, "LABEL_STUDIO_API_KEY": token}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "labelloop", "quality", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)

    def tabs(self) -> int:
        return sum(view.title == TAB for view in self.reviewed.client.views(self.reviewed.project_id))


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as studio:
        yield studio


@pytest.fixture
def terminal(studio: FakeLabelStudio, tmp_path: Path) -> Iterator[Terminal]:
    with Client(studio.url, studio.token) as client:
        reviewed = ReviewedProject(client, studio.token, "street [1]")  # a title that rich would take for markup
        reviewed.people()
        client.set_project(reviewed.project_id, model_version=SECOND)
        yield Terminal(reviewed, studio.token, tmp_path / "home")
        reviewed.close()


def test_a_person_sees_the_figures_and_the_mistakes(terminal: Terminal) -> None:
    done = terminal.run("street [1]")
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()]
    assert [FIRST, "4", "25%", "1.00", "1.25", "+0.25"] in rows
    assert [FIRST, "5", "40%", "2", "0.67", "1", "1"] in rows
    assert ["Car", "5", "40%", "2", "0.67", "1", "0"] in rows
    assert ["Bus", "0", "-", "0", "-", "0", "1"] in rows
    assert ["(deleted)", "1", "0%", "2.00", "3.00", "+1.00"] in rows
    assert ["(deleted)", "2", "50%", "1", "-", "?", "1"] in rows
    reviewed = terminal.reviewed
    overlooked = [str(reviewed.tasks[5]), str(reviewed.annotations[5][0]), "Car", "0.97", "drew nothing there"]
    swapped = [str(reviewed.tasks[0]), str(reviewed.annotations[0][0]), "Bus", "0.96", "says Car (IoU 1.00)"]
    assert rows.index(overlooked) + 1 == rows.index(swapped)
    said = " ".join(done.stdout.split())
    assert "8 submitted annotations: 6 began with a prediction, 1 with nothing, 1 Label Studio made" in said
    assert "3 could not be compared" in said
    assert f"labelloop prelabel {reviewed.project_id} --filter 'total_annotations>0'" in done.stdout
    assert "1 more a person saw" in said
    assert f"3 tasks are in the tab '{TAB}'" in done.stdout
    assert terminal.tabs() == 1


def test_json_has_the_same_in_a_stable_form(terminal: Terminal) -> None:
    done = terminal.run("street [1]", "--json", "--no-tab", "--overruled", "--since", "2020-01-01")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    report = msgspec.convert(json.loads(done.stdout), Report, strict=True)
    assert report.versions[0].regions == REGIONS_OF_FIRST
    assert report.mistakes is not None
    assert len(report.mistakes.listed) == 4
    assert report.since == "2020-01-01T00:00:00+00:00"
    assert report.tab is None
    assert terminal.tabs() == 0


def test_without_a_model_the_figures_are_all_there_is(terminal: Terminal) -> None:
    terminal.reviewed.client.set_project(terminal.reviewed.project_id, model_version="")
    done = terminal.run("street [1]")
    assert done.returncode == 0
    assert FIRST in done.stdout
    assert f"labelloop models use {terminal.reviewed.project_id} NAME" in done.stderr
    assert terminal.tabs() == 0


def test_figures_alone(terminal: Terminal) -> None:
    done = terminal.run("street [1]", "--no-mistakes", "--version", "cars@1")
    assert done.returncode == 0, done.stderr
    assert FIRST in done.stdout
    assert SECOND not in done.stdout
    assert TAB not in done.stdout
    assert terminal.tabs() == 0


def test_many_classes_and_mistakes_are_summed_up(terminal: Terminal) -> None:
    names = [f"n{number}" for number in range(25)]
    terminal.reviewed.predict(8, SECOND, [box(name, 2 * place, score=0.95) for place, name in enumerate(names)])
    terminal.reviewed.annotate(8, [])
    done = terminal.run("street [1]")
    assert done.returncode == 0, done.stderr
    assert "8 more: --json" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("nowhere",), "no project 'nowhere'"),
        (("street [1]", "--version", "cars@9"), "has no prediction of 'cars@9'"),
        (("street [1]", "--since", "yesterday"), "'yesterday' is not a date"),
    ],
    ids=["no such project", "no such version", "no date"],
)
def test_what_cannot_be_done_is_said(terminal: Terminal, arguments: tuple[str, ...], reason: str) -> None:
    done = terminal.run(*arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr


def test_a_tab_that_label_studio_refuses_does_not_cost_the_figures(terminal: Terminal, studio: FakeLabelStudio) -> None:
    def refuse(ask: Ask, path: str, answer: Callable[[], Response]) -> Response:
        return JSONResponse({"detail": "not you"}, 403) if path == "/api/dm/views" else answer()

    studio.around = refuse
    done = terminal.run("street [1]")
    assert done.returncode == 1
    assert FIRST in done.stdout
    assert "not you" in done.stderr

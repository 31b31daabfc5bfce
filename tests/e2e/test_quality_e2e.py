"""What people made of predictions, on a real Label Studio: the same hand count as against the fake one."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from labelloop.jobs.quality import TAB, Question, measure, show_in_tab
from labelloop.jobs.quality_report import Report
from labelloop.labelstudio.annotated import annotated_pages
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.views import put_tab
from reference.reviewed_project import CLASSES_OF_FIRST, FIRST, REGIONS_OF_FIRST, SECOND, ReviewedProject, box

pytestmark = pytest.mark.e2e

HUNDREDS = 400


@pytest.fixture(scope="module")
def reviewed(label_studio: Any) -> Iterator[ReviewedProject]:
    with Client(label_studio.url, label_studio.token) as client:
        reviewed = ReviewedProject(client, label_studio.token, f"quality {time.time_ns()}")
        reviewed.people()
        yield reviewed
        reviewed.close()
        client.delete_project(reviewed.project_id)


def report_on(reviewed: ReviewedProject, **question: Any) -> Report:
    return measure(reviewed.client, reviewed.project, Question(**question), live="cars@2")


def in_tab(reviewed: ReviewedProject) -> list[int]:
    """The tasks of our one tab, by number."""
    (view,) = [view for view in reviewed.client.views(reviewed.project_id) if view.title == TAB]
    page = reviewed.client.tasks(reviewed.project_id, include=("id",), view=view.id)
    return [reviewed.tasks.index(row["id"]) for row in page.tasks]


def test_figures_are_those_counted_by_hand(reviewed: ReviewedProject) -> None:
    report = report_on(reviewed)
    assert (report.annotations, report.began_with_prediction, report.began_with_nothing, report.not_looked_at) == (
        8,
        6,
        1,
        1,
    )
    first, second, gone = report.versions
    assert (first.version, second.version, gone.version) == (FIRST, SECOND, "")
    assert first.regions == REGIONS_OF_FIRST
    assert {one.label: one.regions for one in first.classes} == CLASSES_OF_FIRST
    assert (first.pictures, first.untouched, first.edits_saved_per_picture) == (4, 1, 0.25)
    assert (second.regions.accepted, second.regions.wrong) == (1, 1)
    assert (gone.regions.accepted, gone.regions.changed, gone.regions.missed) == (1, 1, 1)


def test_mistakes_are_in_one_tab_that_shows_them(reviewed: ReviewedProject) -> None:
    report = show_in_tab(reviewed.client, report_on(reviewed))
    assert report.mistakes is not None
    found = report.mistakes
    assert (found.compared, found.without_prediction, found.found, found.overruled) == (4, 3, 3, 1)
    assert [reviewed.tasks.index(one.task) for one in found.listed] == [5, 0, 2]
    assert sorted(in_tab(reviewed)) == [0, 2, 5]
    show_in_tab(reviewed.client, report_on(reviewed, sure=0.965))
    assert in_tab(reviewed) == [5], "updated, and still one"
    assert show_in_tab(reviewed.client, report_on(reviewed, sure=1.0)).tab is None
    assert not [view for view in reviewed.client.views(reviewed.project_id) if view.title == TAB]


def test_since_finds_what_was_changed_meanwhile(reviewed: ReviewedProject) -> None:
    """Tasks are chosen by their own time: it has to move with a change of an old annotation."""
    pages = annotated_pages(reviewed.client, reviewed.project_id)
    newest = max(one.updated_at for page in pages for task in page.tasks for one in task.submissions if one.updated_at)
    first = reviewed.annotations[0][0]
    reviewed.change(first, [box("a", 0, origin="prediction")])
    report = report_on(reviewed, since=_after(newest), mistakes=False)
    assert (report.annotations, report.versions[0].regions.wrong) == (1, 1)


def _after(moment: datetime) -> datetime:
    return moment.replace(microsecond=moment.microsecond + 1) if moment.microsecond < 999_999 else moment


def test_a_tab_takes_hundreds_of_annotations(reviewed: ReviewedProject) -> None:
    """As many ids as fit our list, in the one filter for them that the Data Manager has."""
    client, project = reviewed.client, reviewed.project_id
    drawn = {"result": [box("n", 60, "Bus")]}
    items = [{"data": {"image": f"/many/{number}.jpg"}, "annotations": [drawn]} for number in range(HUNDREDS)]
    tasks = client.import_tasks(project, items).task_ids
    rows = [
        {"task": task, "result": [box("m", 0, score=0.9)], "score": 0.9, "model_version": "many@1"} for task in tasks
    ]
    assert client.import_predictions(project, rows).created == HUNDREDS
    report = measure(client, reviewed.project, Question(version="many@1"), live=None)
    assert report.mistakes is not None
    assert report.mistakes.found == HUNDREDS
    shown = show_in_tab(client, report)
    assert shown.tab is not None
    page = client.tasks(project, page_size=1000, include=("id",), view=shown.tab.id)
    assert [row["id"] for row in page.tasks] == list(tasks)


def test_our_kind_of_filter_is_one_that_works(reviewed: ReviewedProject) -> None:
    """Two annotations of one task make one row, and an id that is not there none."""
    both = ",".join(map(str, [*reviewed.annotations[1], 10**9]))
    items = [{"filter": "filter:tasks:annotations_ids", "operator": "contains", "type": "String", "value": both}]
    view = put_tab(reviewed.client, reviewed.project_id, "by hand", filters={"conjunction": "and", "items": items})
    rows = reviewed.client.tasks(reviewed.project_id, include=("id",), view=view.id).tasks
    assert [row["id"] for row in rows] == [reviewed.tasks[1]]

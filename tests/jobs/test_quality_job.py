from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from labelloop.core.errors import LabelStudioRejected, ModelNotFound
from labelloop.jobs.quality import TAB, Question, is_version, measure, show_in_tab
from labelloop.jobs.quality_report import Mistake, Report, in_order_of_numbers
from labelloop.labelstudio.client import Client
from labelloop.testing import FakeLabelStudio
from reference.reviewed_project import CLASSES_OF_FIRST, FIRST, REGIONS_OF_FIRST, SECOND, ReviewedProject, box


@pytest.fixture
def reviewed() -> Iterator[ReviewedProject]:
    with FakeLabelStudio() as studio, Client(studio.url, studio.token) as client:
        reviewed = ReviewedProject(client, studio.token, "reviewed")
        reviewed.people()
        yield reviewed
        reviewed.close()


def report_on(reviewed: ReviewedProject, *, live: str | None = "cars@2", **question: Any) -> Report:
    return measure(reviewed.client, reviewed.project, Question(**question), live=live)


def listed(report: Report) -> tuple[Mistake, ...]:
    assert report.mistakes is not None
    return report.mistakes.listed


def in_tab(reviewed: ReviewedProject) -> list[list[int]]:
    """The tasks of each tab of ours, by number."""
    views = [view for view in reviewed.client.views(reviewed.project_id) if view.title == TAB]
    pages = [reviewed.client.tasks(reviewed.project_id, include=("id",), view=view.id) for view in views]
    return [[reviewed.tasks.index(row["id"]) for row in page.tasks] for page in pages]


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
    assert (first.pictures, first.untouched) == (4, 1)
    per_picture = first.edits_per_picture, first.edits_from_nothing_per_picture, first.edits_saved_per_picture
    assert per_picture == (1.0, 1.25, 0.25)
    assert (second.pictures, second.regions.accepted, second.regions.wrong, second.edits_saved_per_picture) == (
        1,
        1,
        1,
        0,
    )
    assert (gone.regions.accepted, gone.regions.changed, gone.regions.missed, gone.regions.edit_iou) == (1, 1, 1, None)
    assert [one.wrong_known for one in report.versions] == [True, True, False]


def test_likely_mistakes_are_ranked(reviewed: ReviewedProject) -> None:
    report = report_on(reviewed)
    assert report.mistakes is not None
    found = report.mistakes
    assert (found.judge, found.compared, found.without_prediction, found.found, found.overruled) == (
        "cars@2",
        4,
        3,
        3,
        1,
    )
    said = [(reviewed.tasks.index(one.task), one.kind, one.model_label, one.person_label) for one in found.listed]
    assert said == [(5, "overlooked", "Car", None), (0, "swapped", "Bus", "Car"), (2, "misplaced", "Bus", "Bus")]
    assert [one.confidence for one in found.listed] == [0.97, 0.96, 0.94]
    assert [one.weight for one in found.listed] == pytest.approx([0.97, 0.96, 0.94 * 2 / 3])
    assert [one.iou for one in found.listed] == [None, pytest.approx(1), pytest.approx(1 / 3)]
    assert [one.annotation for one in found.listed] == [reviewed.annotations[number][0] for number in (5, 0, 2)]
    assert found.listed[0].box_xyxy == pytest.approx((120, 10, 160, 30))
    assert (found.listed[0].field, found.listed[0].page) == ("image", 0)
    assert not any(one.overruled for one in found.listed)


def test_what_a_person_saw_and_decided_against_is_listed_last_and_only_on_demand(reviewed: ReviewedProject) -> None:
    report = report_on(reviewed, overruled=True)
    assert [reviewed.tasks.index(one.task) for one in listed(report)] == [5, 0, 2, 6]
    assert [one.overruled for one in listed(report)] == [False, False, False, True]
    assert [reviewed.tasks.index(one.task) for one in listed(report_on(reviewed, overruled=True, limit=3))] == [5, 0, 2]


def test_a_replaced_prediction_is_known_by_the_ids_of_its_regions(reviewed: ReviewedProject) -> None:
    """`prelabel --all` deletes what the person began with and stores the same answer anew."""
    reviewed.client.delete_prediction(reviewed.prediction(6, SECOND))
    reviewed.predict(6, SECOND, [box("s", 0, score=0.95), box("t", 60, score=0.92)])
    report = report_on(reviewed)
    assert report.mistakes is not None
    assert (report.mistakes.found, report.mistakes.overruled) == (3, 1)


def test_the_best_are_kept_when_there_are_more(reviewed: ReviewedProject) -> None:
    for limit, expected in ((0, []), (1, [5]), (2, [5, 0])):
        report = report_on(reviewed, limit=limit)
        assert [reviewed.tasks.index(one.task) for one in listed(report)] == expected
        assert report.mistakes is not None
        assert report.mistakes.found == 3


@pytest.mark.parametrize(
    ("question", "live", "judge"),
    [
        ({}, "cars@2", "cars@2"),
        ({}, None, None),
        ({"mistakes": False}, "cars@2", None),
        ({"version": "cars@1"}, "cars@2", "cars@1"),
        ({"version": FIRST}, None, FIRST),
    ],
    ids=["what serves", "nothing serves", "not asked for", "what was asked about", "a whole version string"],
)
def test_who_judges(reviewed: ReviewedProject, question: dict[str, Any], live: str | None, judge: str | None) -> None:
    report = report_on(reviewed, live=live, **question)
    assert (report.mistakes.judge if report.mistakes else None) == judge


def test_the_version_that_the_project_shows_judges_where_nothing_is_assigned(reviewed: ReviewedProject) -> None:
    reviewed.client.set_project(reviewed.project_id, model_version=SECOND)
    report = report_on(reviewed, live=None)
    assert report.mistakes is not None
    assert (report.mistakes.judge, report.mistakes.found) == (SECOND, 3)


@pytest.mark.parametrize(
    ("version", "shown"),
    [("cars@1", [FIRST]), ("cars", [FIRST, SECOND]), (SECOND, [SECOND])],
    ids=["a number", "a name", "a version string"],
)
def test_one_version_alone(reviewed: ReviewedProject, version: str, shown: list[str]) -> None:
    assert [one.version for one in report_on(reviewed, version=version).versions] == shown


def test_a_version_without_predictions_is_refused_with_those_there_are(reviewed: ReviewedProject) -> None:
    with pytest.raises(ModelNotFound, match=r"no prediction of 'cars@3'.*cars@1\.aaaaaaaa"):
        report_on(reviewed, version="cars@3")


@pytest.mark.parametrize(
    ("version", "spec", "same"),
    [
        ("cars@1.aa", "cars@1.aa", True),
        ("cars@1.aa", "cars@1", True),
        ("cars@1.aa", "cars", True),
        ("cars@10.aa", "cars@1", False),
        ("big-cars@1.aa", "cars", False),
        ("carsharing@1.aa", "cars", False),
    ],
)
def test_which_versions_a_name_means(version: str, spec: str, same: bool) -> None:
    assert is_version(version, spec) is same


def test_versions_are_in_the_order_of_their_numbers() -> None:
    shuffled = ["", "cars@10.aa", "cars@9.bb", "boats@11.cc", "stub", "7"]
    assert sorted(shuffled, key=in_order_of_numbers) == ["7", "boats@11.cc", "cars@9.bb", "cars@10.aa", "stub", ""]


def test_the_tab_is_made_once_kept_up_to_date_and_removed(reviewed: ReviewedProject) -> None:
    shown = show_in_tab(reviewed.client, report_on(reviewed))
    assert shown.tab is not None
    assert shown.tab.tasks == 3
    assert shown.tab.url == f"{reviewed.client.base_url}/projects/{reviewed.project_id}/data?tab={shown.tab.id}"
    assert in_tab(reviewed) == [[0, 2, 5]]
    again = show_in_tab(reviewed.client, report_on(reviewed, sure=0.965))
    assert again.tab is not None
    assert again.tab.id == shown.tab.id
    assert in_tab(reviewed) == [[5]]
    assert show_in_tab(reviewed.client, report_on(reviewed, sure=1.0)).tab is None
    assert in_tab(reviewed) == []


def test_a_tab_shows_one_row_for_a_task_with_two_doubted_annotations(reviewed: ReviewedProject) -> None:
    reviewed.annotate(5, [])
    shown = show_in_tab(reviewed.client, report_on(reviewed))
    assert len(listed(shown)) == 5
    assert shown.tab is not None
    assert shown.tab.tasks == 3
    assert in_tab(reviewed) == [[0, 2, 5]]


def test_reading_tells_how_far_it_is_and_can_be_ended(reviewed: ReviewedProject) -> None:
    told: list[tuple[int, int]] = []
    measure(reviewed.client, reviewed.project, Question(), live=None, look=lambda *now: told.append(now))
    assert told == [(7, 0)]

    def stop(_done: int, _left: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(reviewed.client, reviewed.project, Question(), live=None, look=stop)


def test_a_project_that_is_not_there_is_an_error(reviewed: ReviewedProject) -> None:
    with pytest.raises(LabelStudioRejected):
        reviewed.client.project(4711)

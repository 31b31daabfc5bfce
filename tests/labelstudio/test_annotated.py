from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from labelloop.labelstudio.annotated import AnnotatedTask, Submission, annotated_pages
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import BadFilter, parse_moment
from labelloop.testing import FakeLabelStudio
from reference.reviewed_project import FIRST, SECOND, ReviewedProject, box


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as studio:
        yield studio


@pytest.fixture
def reviewed(studio: FakeLabelStudio) -> Iterator[ReviewedProject]:
    with Client(studio.url, studio.token) as client:
        reviewed = ReviewedProject(client, studio.token, "reviewed")
        reviewed.people()
        yield reviewed
        reviewed.close()


def read(reviewed: ReviewedProject, **options: Any) -> dict[int, AnnotatedTask]:
    """By number."""
    pages = annotated_pages(reviewed.client, reviewed.project_id, **options)
    return {reviewed.tasks.index(task.id): task for page in pages for task in page.tasks}


@pytest.mark.parametrize("page_size", [1, 3, 7, 100], ids=lambda size: f"{size} a page")
def test_every_submitted_annotation_is_read_once(reviewed: ReviewedProject, page_size: int) -> None:
    found = read(reviewed, page_size=page_size)
    assert {number: len(task.submissions) for number, task in found.items()} == {
        0: 1,
        1: 2,
        2: 1,
        4: 1,
        5: 1,
        6: 1,
        7: 1,
    }
    assert [task.id for task in found.values()] == sorted(task.id for task in found.values())


def test_what_is_said_about_one(reviewed: ReviewedProject) -> None:
    found = read(reviewed)
    (submission,) = found[0].submissions
    assert submission.origins() == {"a": "prediction", "b": "prediction-changed", "n": "manual"}
    shown = found[0].predictions[submission.parent_prediction or 0]
    assert (shown.version, [one["id"] for one in shown.result]) == (FIRST, ["a", "b"])
    assert {one.version for one in found[0].predictions.values()} == {FIRST, SECOND}
    assert [one.looked_at for task in found.values() for one in task.submissions].count(False) == 1
    assert not found[4].submissions[0].looked_at
    assert [one.parent_prediction for one in (*found[5].submissions, *found[7].submissions)] == [None, None]
    assert found[7].submissions[0].origins()["b"] == "prediction-changed"


def test_pages_tell_what_is_left_and_go_by_ids(reviewed: ReviewedProject, studio: FakeLabelStudio) -> None:
    pages = annotated_pages(reviewed.client, reviewed.project_id, page_size=3)
    first = next(pages)
    assert (len(first.tasks), first.left) == (3, 7)
    studio.state.remove_task(reviewed.tasks[0])  # page numbers would now leave one out
    studio.state.projects[reviewed.project_id].task_ids.remove(reviewed.tasks[0])
    rest = [reviewed.tasks.index(task.id) for page in pages for task in page.tasks]
    assert rest == [4, 5, 6, 7]


def test_since_counts_annotations_and_not_tasks(reviewed: ReviewedProject, studio: FakeLabelStudio) -> None:
    studio.advance(3600)
    moment = datetime.fromtimestamp(studio.clock(), UTC)
    assert read(reviewed, since=moment) == {}
    reviewed.annotate(1, [])  # the third about this task
    reviewed.annotate(8, [box("s", 0)], shown=SECOND)
    found = read(reviewed, since=moment)
    assert {number: len(task.submissions) for number, task in found.items()} == {1: 1, 8: 1}


def test_a_project_without_annotations_has_no_pages(studio: FakeLabelStudio) -> None:
    with Client(studio.url, studio.token) as client:
        empty = ReviewedProject(client, studio.token, "empty")
        assert list(annotated_pages(client, empty.project_id)) == []
        empty.close()


def test_relations_are_left_out(reviewed: ReviewedProject) -> None:
    relation = {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"}
    reviewed.annotate(8, [box("a", 0, origin="manual"), relation])
    (submission,) = read(reviewed)[8].submissions
    assert [one["id"] for one in submission.result] == ["a"]


def test_the_first_of_several_results_with_one_id_says_where_it_is_from() -> None:
    parts = ({"id": "a", "origin": "prediction"}, {"id": "a", "origin": "manual"}, {"origin": "manual"}, {"id": "c"})
    assert Submission(1, parts, None, None, looked_at=True).origins() == {"a": "prediction"}


@pytest.mark.parametrize(
    ("text", "moment"),
    [
        ("2026-11-01", datetime(2026, 11, 1, tzinfo=UTC)),
        ("2026-11-01T08:30:00", datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),
        (" 2026-11-01T08:30:00+01:00", datetime(2026, 11, 1, 7, 30, tzinfo=UTC)),
        ("2026-11-01T08:30:00Z", datetime(2026, 11, 1, 8, 30, tzinfo=UTC)),
    ],
    ids=["a day", "a moment", "with an offset", "in UTC"],
)
def test_dates(text: str, moment: datetime) -> None:
    assert parse_moment(text) == moment


@pytest.mark.parametrize("text", ["", "yesterday", "01.11.2026", "2026-13-01"])
def test_what_is_no_date_is_refused(text: str) -> None:
    with pytest.raises(BadFilter, match="is not a date"):
        parse_moment(text)

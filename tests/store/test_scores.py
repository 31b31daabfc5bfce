"""The rows that are kept of predictions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from labelloop.core.settings import read_settings
from labelloop.store.db import open_database
from labelloop.store.scores import Scores, Seen


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[sa.Engine]:
    engine = open_database(read_settings(home=tmp_path / "home"))
    yield engine
    engine.dispose()


@pytest.fixture
def scores(engine: sa.Engine) -> Scores:
    return Scores(engine)


def known(scores: Scores, project_id: int = 1, version: str = "cars@1") -> dict[int, tuple[bytes, float | None]]:
    return {seen.task_id: (seen.content, seen.inconsistency) for seen in scores.all(project_id, version)}


def test_the_newest_prediction_of_a_task_replaces_all_that_was_known(scores: Scores) -> None:
    scores.put(1, "cars@1", [Seen(2, b"a"), Seen(1, b"b")])
    scores.set_inconsistency(1, "cars@1", {1: 0.5, 2: 0.25})
    scores.set_embeddings(1, "cars@1", {1: b"xyz"})
    scores.put(1, "cars@1", [Seen(1, b"c")])
    assert known(scores) == {1: (b"c", None), 2: (b"a", 0.25)}
    assert scores.embeddings(1, "cars@1") == {}


def test_projects_and_versions_are_apart(scores: Scores) -> None:
    for project, version in ((1, "cars@1"), (1, "cars@2"), (2, "cars@1")):
        scores.put(project, version, [Seen(7, f"{project} {version}".encode())])
    scores.set_embeddings(1, "cars@2", {7: b"e"})
    assert known(scores, 1, "cars@1") == {7: (b"1 cars@1", None)}
    assert scores.embeddings(1, "cars@1") == {}
    assert scores.forget(1, keep={"cars@2"}) == 1
    assert known(scores, 1, "cars@1") == {}
    assert known(scores, 1, "cars@2") == {7: (b"1 cars@2", None)}
    assert known(scores, 2, "cars@1") == {7: (b"2 cars@1", None)}


def test_what_is_found_later_belongs_to_tasks_that_are_known(scores: Scores) -> None:
    scores.put(1, "cars@1", [Seen(1, b"a")])
    scores.set_inconsistency(1, "cars@1", {1: 0.5, 2: 0.5})
    scores.set_embeddings(1, "cars@1", {1: b"one", 3: b"three"})
    scores.set_embeddings(1, "cars@1", {})
    assert known(scores) == {1: (b"a", 0.5)}
    assert scores.embeddings(1, "cars@1") == {1: b"one"}


def test_a_task_twice_in_one_call_and_ids_that_no_column_holds(scores: Scores) -> None:
    scores.put(1, "cars@1", [Seen(1, b"old"), Seen(2**63, b"beyond"), Seen(1, b"new")])
    scores.put(1, "cars@1", [])
    assert known(scores) == {1: (b"new", None)}


def test_many_rows_are_written_and_read_in_parts(scores: Scores, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelloop.store.scores.AT_ONCE", 7)
    monkeypatch.setattr("labelloop.store.scores.READ", 5)
    scores.put(1, "cars@1", [Seen(task, b"%d" % task) for task in range(40, 0, -1)])
    assert [seen.task_id for seen in scores.all(1, "cars@1")] == list(range(1, 41))

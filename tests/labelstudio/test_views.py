"""Tabs of the Data Manager: made once, kept up to date, never broken."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from labelloop.core.errors import LabelStudioRejected
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import item
from labelloop.labelstudio.records import View
from labelloop.labelstudio.views import put_tab, remove_tab
from labelloop.testing import FakeLabelStudio

CONFIG = '<View><Image name="img" value="$image"/><Choices name="c" toName="img"><Choice value="a"/></Choices></View>'
TITLE = "Most uncertain first"
BY_SCORE = ["tasks:predictions_score"]


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as server:
        yield server


@pytest.fixture
def client(studio: FakeLabelStudio) -> Iterator[Client]:
    with Client(studio.url, studio.token) as made:
        yield made


@pytest.fixture
def project(studio: FakeLabelStudio) -> int:
    number = studio.add_project("streets", CONFIG)
    studio.add_tasks(number, [{"image": "/1.jpg"}, {"image": "/2.jpg"}])
    return number


def ours(client: Client, project: int) -> list[View]:
    return [view for view in client.views(project) if view.title == TITLE]


def test_a_project_without_tabs_gets_the_one_that_shows_everything(client: Client, project: int) -> None:
    put_tab(client, project, TITLE, ordering=BY_SCORE)
    put_tab(client, project, "Other", ordering=BY_SCORE)
    first, *others = client.views(project)
    assert (first.title, [view.title for view in others]) == ("Default", [TITLE, "Other"])
    assert "filters" not in first.data
    assert "tasks:total_annotations" not in first.data["hiddenColumns"]["explore"]


def test_a_tab_is_made_once_and_keeps_what_people_set(client: Client, project: int) -> None:
    first = put_tab(client, project, TITLE, ordering=BY_SCORE)
    assert first.title == TITLE
    assert "tasks:predictions_score" not in first.data["hiddenColumns"]["explore"], "the order can be seen"
    assert "tasks:updated_by" in first.data["hiddenColumns"]["explore"]
    client.update_view(first, {**first.data, "gridWidth": 7})
    only_cars = {"conjunction": "and", "items": [item("data.kind", "equal", "String", "car")]}
    second = put_tab(client, project, TITLE, ordering=["-tasks:id"], filters=only_cars)
    (there,) = ours(client, project)
    assert there == second
    assert (there.id, there.data["gridWidth"]) == (first.id, 7)
    assert (there.data["ordering"], there.data["filters"]) == (["-tasks:id"], only_cars)


def test_tabs_of_other_titles_and_projects_are_left_alone(
    studio: FakeLabelStudio, client: Client, project: int
) -> None:
    other = studio.add_project("fields", CONFIG)
    mine = client.create_view(project, {"title": "Mine", "ordering": ["tasks:id"]})
    theirs = client.create_view(other, {"title": TITLE})
    put_tab(client, project, TITLE, ordering=BY_SCORE)
    assert client.views(project)[0] == mine
    assert client.views(other) == [theirs]
    assert remove_tab(client, project, TITLE) == 1
    assert client.views(project) == [mine]


def test_doubles_become_the_oldest_one(client: Client, project: int) -> None:
    ids = [client.create_view(project, {"title": TITLE}).id for _ in range(3)]
    assert put_tab(client, project, TITLE, ordering=BY_SCORE).id == ids[0]
    assert [view.id for view in client.views(project)] == ids[:1]


def test_two_at_the_same_moment_make_one_tab(studio: FakeLabelStudio, client: Client, project: int) -> None:
    made: list[int] = []

    def around(ask: Any, path: str, answer: Any) -> Any:
        """The other one creates its tab after we looked and before we create ours."""
        if path == "/api/dm/views" and ask.method == "POST" and not made:
            made.append(0)
            made[0] = client.create_view(project, {"title": TITLE}).id
        return answer()

    client.create_view(project, {"title": "Mine"})
    studio.around = around
    put_tab(client, project, TITLE, ordering=BY_SCORE)
    (there,) = ours(client, project)
    assert (there.id, there.data["ordering"]) == (made[0], BY_SCORE)


def test_a_tab_that_label_studio_cannot_show_is_taken_back(client: Client, project: int) -> None:
    with pytest.raises(LabelStudioRejected, match="nonsense"):
        put_tab(client, project, TITLE, ordering=["tasks:nonsense"])
    assert ours(client, project) == []
    put_tab(client, project, TITLE, ordering=BY_SCORE)
    with pytest.raises(LabelStudioRejected, match="nonsense"):
        put_tab(client, project, TITLE, ordering=["tasks:nonsense"])
    (there,) = ours(client, project)
    assert there.data["ordering"] == BY_SCORE

"""`labelloop dataset export` against the real Label Studio, with everything that people do to a task."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from labelloop.cli import app
from labelloop.formats import coco
from labelloop.jobs.folder import read_folder
from labelloop.jobs.pull import pull
from labelloop.labelstudio.client import Client
from labelloop.learning.manifest import LeftOut, Options

pytestmark = pytest.mark.e2e

CONFIG = """<View><Image name="picture" value="$photo"/>
<RectangleLabels name="thing" toName="picture"><Label value="RBC"/><Label value="WBC"/><Label value="Platelets"/></RectangleLabels></View>"""
PICTURES = 8


@pytest.fixture
def client(label_studio: Any) -> Iterator[Client]:
    with Client(label_studio.url, label_studio.token) as made:
        yield made


@pytest.fixture
def second(label_studio: Any) -> str:
    """The token of a second annotator, who came by the invitation that the first one gives out."""
    email, password = f"second-{time.time_ns()}@example.com", "second-12345"
    first = httpx.Client(
        base_url=label_studio.url, headers={"Authorization": f"Token {label_studio.token}"}, trust_env=False
    )
    with first, httpx.Client(base_url=label_studio.url, follow_redirects=True, trust_env=False) as browser:
        invitation = first.get("/api/invite").json()["invite_url"]
        browser.get(invitation)
        answer = browser.post(
            invitation,
            data={
                "email": email,
                "password": password,
                "allow_newsletters": "false",
                "csrfmiddlewaretoken": browser.cookies["csrftoken"],
            },
            headers={"Referer": label_studio.url},
        )
        assert answer.status_code == 200, answer.text[:500]
        return str(browser.get("/api/current-user/token").json()["token"])


@pytest.fixture
def project(client: Client, shared: Path) -> Iterator[tuple[int, list[int], list[coco.Image]]]:
    """Pictures of blood cells, uploaded; gone after the test."""
    folder = shared / "data/datasets/bccd"
    images = list(coco.read(folder / "test.json").images[:PICTURES])
    number = client.create_project(f"dataset {time.time_ns()}", CONFIG, maximum_annotations=2).id
    client.upload_files(number, [folder / "images" / image.file_name for image in images])
    rows = client.tasks(number, include=("id", "data")).tasks
    tasks = {row["data"]["photo"].rpartition("-")[2]: row["id"] for row in rows}
    yield number, [tasks[image.file_name] for image in images], images
    client.delete_project(number)


def rectangles(dataset: coco.Dataset, image: coco.Image) -> list[dict[str, Any]]:
    """What people drew on a picture, as the editor sends it."""
    return [
        {
            "id": f"r{thing.id}", "from_name": "thing", "to_name": "picture", "type": "rectanglelabels",
            "original_width": image.width, "original_height": image.height, "image_rotation": 0,
            "value": {
                "x": 100 * thing.bbox[0] / image.width, "y": 100 * thing.bbox[1] / image.height,
                "width": 100 * thing.bbox[2] / image.width, "height": 100 * thing.bbox[3] / image.height,
                "rotation": 0, "rectanglelabels": [dataset.names[thing.category_id]],
            },
        }
        for thing in dataset.by_image()[image.id]
    ]  # fmt: skip


class Annotator:
    """A person, who comes with a token."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def submits(self, task: int, result: list[dict[str, Any]], *, skips: bool = False, **fields: Any) -> int:
        """Submit or, as the editor's Skip does, cancel."""
        params = {"was_cancelled": "1"} if skips else {}
        answer = self._http.post(f"/api/tasks/{task}/annotations/", params=params, json={"result": result, **fields})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])


@pytest.fixture
def annotators(label_studio: Any, second: str) -> Iterator[tuple[Annotator, Annotator]]:
    with ExitStack() as stack:
        clients = [
            httpx.Client(base_url=label_studio.url, headers={"Authorization": f"Token {token}"}, trust_env=False)
            for token in (label_studio.token, second)
        ]
        first, other = (Annotator(stack.enter_context(client)) for client in clients)
        yield first, other


def test_what_people_did_is_exported(
    client: Client,
    label_studio: Any,
    annotators: tuple[Annotator, Annotator],
    project: tuple[int, list[int], list[coco.Image]],
    shared: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    number, tasks, images = project
    truth = coco.read(shared / "data/datasets/bccd/test.json")
    first, other = annotators
    drawn = [rectangles(truth, image) for image in images]
    plain, empty, skipped, marked, both, changed, half, untouched = tasks

    first.submits(plain, drawn[0])
    first.submits(empty, [])
    first.submits(skipped, drawn[2], skips=True)
    right = first.submits(marked, drawn[3], ground_truth=True)
    other.submits(marked, [])
    agreed = [first.submits(both, drawn[4]), other.submits(both, drawn[4][1:])]
    first.submits(changed, drawn[5][:1])
    newest = first.submits(changed, drawn[5])
    first.submits(half, drawn[6], skips=True)
    other.submits(half, drawn[6])

    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    typed = [
        "dataset",
        "export",
        str(number),
        "-o",
        str(tmp_path / "set"),
        "--url",
        label_studio.url,
        "--token",
        label_studio.token,
    ]
    done = CliRunner().invoke(app, typed)
    assert done.exit_code == 0, done.output or done.exception
    manifest = read_folder(tmp_path / "set").manifest
    found = {item.task_id: item for item in manifest.items}
    assert sorted(found) == sorted({plain, empty, marked, both, changed, half})
    assert manifest.labels == ("RBC", "WBC", "Platelets")
    assert manifest.left_out == (LeftOut(skipped, "skipped", "everybody passed it on"),)
    assert found[empty].drawn == ()
    assert (found[marked].annotation_ids, found[marked].ground_truth, len(found[marked].drawn)) == (
        (right,),
        True,
        len(drawn[3]),
    )
    assert len(found[both].drawn) == len(drawn[4]) - 1, "the latest"
    assert (found[changed].annotation_ids, len(found[changed].drawn)) == ((newest,), len(drawn[5]))
    assert len(found[half].drawn) == len(drawn[6]), "one skipped it and one did not"

    written = {
        image.task_id: (image, side)
        for side in ("train", "val")
        for image in coco.read(tmp_path / "set" / f"{side}.json").images
    }
    image, side = written[plain]
    boxes = sorted(
        thing.bbox for thing in coco.read(tmp_path / "set" / f"{side}.json").annotations if thing.image_id == image.id
    )
    assert boxes == [
        pytest.approx(box, abs=0.002) for box in sorted(thing.bbox for thing in truth.by_image()[images[0].id])
    ]
    assert (tmp_path / "set/images" / image.file_name).read_bytes() == (
        shared / "data/datasets/bccd/images" / images[0].file_name
    ).read_bytes()

    joined = pull(client, client.project(number), Options(annotators="consensus"))
    item = next(item for item in joined.items if item.task_id == both)
    assert item.annotation_ids == tuple(sorted(agreed))
    assert len(item.drawn) == len(drawn[4]) - 1, "one box was drawn by one of two"
    assert sum(dropped.regions for dropped in joined.dropped if dropped.reason == "no-majority") == 1
    again = pull(client, client.project(number), Options())
    assert [item.drawn for item in again.items] == [item.drawn for item in manifest.items]
    assert untouched not in found

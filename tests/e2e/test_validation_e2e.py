"""What encode_prediction sends, against the check of the real Label Studio: its bulk import drops what it refuses."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from labelloop.core.regions import Box, MediaKey, Point, Polygon, Prediction, Raw, Region, Shape, Size, Whole
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.validate import problem_with
from labelloop.labelstudio.wire import encode_prediction

pytestmark = pytest.mark.e2e

XML = """<View><Image name="first" value="$photo"/><Image name="pages" valueList="$pages"/>
<RectangleLabels name="boxes" toName="first,pages"><Label value="Car"/><Label value="Zug" alias="train"/></RectangleLabels>
<PolygonLabels name="outlines" toName="first"><Label value="Lake"/></PolygonLabels>
<KeyPoint name="points" toName="first"/><Rectangle name="bare" toName="first"/><Polygon name="lines" toName="first"/>
<Labels name="names" toName="first"><Label value="Text"/><Label value="Nose"/></Labels>
<TextArea name="says" toName="first" perRegion="true"/>
<EllipseLabels name="rounds" toName="first"><Label value="Car"/></EllipseLabels>
<Choices name="kind" toName="first"><Choice value="day"/></Choices></View>"""
CONFIG = parse_config(XML)
CLASSES = ["car", "zug", "lake", "text", "nose", "day"]
PER_TASK = 200


@pytest.fixture(scope="module")
def client(label_studio: Any) -> Iterator[Client]:
    with Client(label_studio.url, label_studio.token) as made:
        yield made


@pytest.fixture(scope="module")
def project(client: Client) -> Iterator[int]:
    """A project with ten tasks, gone after the test. Nobody opens them, so their pictures need not be there."""
    number = client.create_project(f"validation {time.time_ns()}", XML).id
    client.import_tasks(number, [{"photo": "/p.jpg", "pages": ["/1.jpg", "/2.jpg"]}] * 10)
    yield number
    client.delete_project(number)


def region(rng: random.Random, size: Size, media: MediaKey) -> Region:
    """Anything a model might say: beyond the borders, turned, tiny, flat, without a number."""

    def x() -> float:
        return rng.choice([rng.uniform(-0.2, 1.2) * size.width, rng.random() * size.width, 0.0, size.width])

    def y() -> float:
        return rng.choice([rng.uniform(-0.2, 1.2) * size.height, rng.random() * size.height, 0.0, size.height])

    left, top, scale = x(), y(), rng.choice([1e-4, 1.0, 80.0, 400.0])
    shapes: list[Shape] = [
        Box((left, top, left + scale * rng.random(), top + scale * rng.random()), rng.choice([0.0, rng.uniform(-200, 400)])),
        Polygon(tuple((x(), y()) for _ in range(rng.randrange(3, 8)))),
        Point(x(), y()),
        Whole(),
    ]  # fmt: skip
    text = rng.choice([None, "hello", ""])
    return Region(rng.choice(shapes), rng.choice(CLASSES), rng.choice([None, rng.random()]), text, media=media)


@pytest.mark.parametrize("task", ["detect", "ocr", "pose", "classify"])
def test_everything_that_is_sent_is_stored(client: Client, project: int, task: str) -> None:
    rng = random.Random(f"real {task}")
    labels = build_label_map(CONFIG, CLASSES, task=task, threshold=0.0)
    items: list[dict[str, Any]] = []
    for row in client.tasks(project, include=("id",)).tasks:
        size = Size(rng.randrange(20, 4000), rng.randrange(20, 4000))
        pictures = [MediaKey("photo"), MediaKey("pages", 1)]
        regions = tuple(region(rng, size, rng.choice(pictures)) for _ in range(PER_TASK))
        prediction = Prediction(regions, dict.fromkeys(pictures, size), f"any {task}@1", rng.uniform(-1, 2))
        items.append({"task": row["id"], **encode_prediction(prediction, labels, task_id=row["id"])})
    assert len(items) == 10
    least = 5 if task == "classify" else 50  # a picture has one class, and many boxes
    assert sum(len(item["result"]) for item in items) > least, "the test says something"
    assert client.import_predictions(project, items).created == len(items)
    stored = client.predictions(items[0]["task"])
    assert items[0]["result"] in [row["result"] for row in stored]


def box(**changes: Any) -> dict[str, Any]:
    value = {"x": 1, "y": 2, "width": 3, "height": 4, "rotation": 0, "rectanglelabels": ["Car"]} | changes
    return {"id": "r", "from_name": "boxes", "to_name": "first", "type": "rectanglelabels", "value": value}


@pytest.mark.parametrize(
    ("item", "taken"),
    [
        (box(), True),
        (box(rectanglelabels=["train"]), True),
        (box(rectanglelabels=["Zug"]), False),
        (box(rectanglelabels=["Bus"]), False),
        (box(x=101), False),
        (box(height="tall"), False),
        (box(rotation=361), False),
        (box() | {"from_name": "nobody"}, False),
        (box() | {"to_name": "pages"}, True),
        (box() | {"type": "rectangle"}, False),
        (box() | {"value": {"rectanglelabels": ["Car"]}}, False),
        ({**box(), "from_name": "kind", "type": "choices", "value": {"choices": "day"}}, False),
        ({**box(), "from_name": "kind", "type": "choices", "value": {"choices": ["day"]}}, True),
        ({**box(), "from_name": "says", "type": "textarea", "value": {"text": "one"}}, False),
        ({**box(), "from_name": "rounds", "type": "ellipselabels",
          "value": {"x": 1, "y": 1, "radiusX": 51, "radiusY": 1, "ellipselabels": ["Car"]}}, False),
    ],
    ids=["a box", "an alias", "what has an alias", "unknown label", "x beyond the picture", "height is a text", "turned too far",
         "unknown control", "the other picture", "another type", "no numbers", "a choice not in a list", "a choice",
         "a text not in a list", "wider than the picture"],
)  # fmt: skip
def test_the_real_one_agrees(client: Client, project: int, item: dict[str, Any], taken: bool) -> None:
    """With what we refuse, and with what we take."""
    assert (problem_with(item, CONFIG) is None) == taken
    task = client.tasks(project, include=("id",)).tasks[0]["id"]
    raw = encode_prediction(Prediction((Region(Raw(item)),)), build_label_map(CONFIG, []), task_id=task)
    assert raw["result"] == ([item] if taken else [])
    row = {"task": task, "result": [item], "score": 0.5, "model_version": "one@1"}
    assert client.import_predictions(project, [row]).created == int(taken)

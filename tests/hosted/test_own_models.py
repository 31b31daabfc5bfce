"""Classes of the user's own: the examples, through `labelloop models add` and over HTTP; and what they may get wrong."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from labelloop.cli.hosting import hosted_card, parse_options, spread
from labelloop.core.errors import ModelError, ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Polygon, Size, Whole
from labelloop.core.settings import read_settings
from labelloop.engines.base import EngineOptions
from labelloop.engines.own import OwnEngine, outlines
from labelloop.serving.models import add_model
from reference.running_server import Start

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def encoded(picture: Any) -> str:
    return "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", picture[:, :, ::-1])[1]).decode()


def scene() -> Any:
    """White, with a black rectangle and a green one."""
    picture = np.full((60, 100, 3), 255, np.uint8)
    picture[10:30, 20:50] = 0
    picture[40:55, 60:90] = (0, 200, 0)
    return picture


IMAGE = '<Image name="img" value="$image"/>'
CASES: list[tuple[str, str, dict[str, Any], Callable[[dict[str, Any]], bool]]] = [
    (
        "own_detector.py",
        f'<View>{IMAGE}<RectangleLabels name="c" toName="img"><Label value="thing"/></RectangleLabels></View>',
        {"image": encoded(scene())},
        lambda r: [r["value"][key] for key in ("x", "width", "height")] == [20, 30, pytest.approx(33.3333)],
    ),
    (
        "own_segmenter.py",
        f'<View>{IMAGE}<PolygonLabels name="c" toName="img"><Label value="green"/></PolygonLabels></View>',
        {"image": encoded(scene())},
        lambda r: min(x for x, _ in r["value"]["points"]) == pytest.approx(60.5),
    ),
    (
        "own_classifier.py",
        f'<View>{IMAGE}<Choices name="c" toName="img"><Choice value="day"/><Choice value="night"/></Choices></View>',
        {"image": encoded(scene())},
        lambda r: r["value"]["choices"] == ["day"],
    ),
    (
        "own_reader.py",
        f'<View>{IMAGE}<Rectangle name="b" toName="img"/><Labels name="c" toName="img"><Label value="text"/></Labels>'
        '<TextArea name="t" toName="img" perRegion="true"/></View>',
        {"image": encoded(scene())},
        lambda r: r["type"] != "textarea" or r["value"]["text"] == ["35 rows of ink"],
    ),
    (
        "own_text.py",
        '<View><Text name="t" value="$text"/><Choices name="c" toName="t"><Choice value="good"/><Choice value="bad"/></Choices></View>',
        {"text": "Thanks for the sun"},
        lambda r: r["value"]["choices"] == ["good"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(("file", "config", "data", "fits"), CASES, ids=[case[0] for case in CASES])
def test_each_example_answers_over_http(
    start: Start, tmp_path: Path, file: str, config: str, data: dict[str, Any], fits: Callable[[dict[str, Any]], bool]
) -> None:
    backend = start(models=(), load=lambda version: OwnEngine(None, version.card, EngineOptions()))
    registry = backend.parts.store.registry
    settings = read_settings(home=tmp_path / "home")
    card = hosted_card(str(EXAMPLES / file), engine=None, name=None, options=(), python=None, model_dir=None)
    version = add_model(registry, None, card, settings)
    backend.parts.projects.refresh()
    (said,) = backend.predict([{"id": 1, "data": data}], config=config).json()["results"]
    assert said["result"], said
    assert all(fits(region) for region in said["result"]), said["result"]
    assert said["model_version"].startswith(f"{version.id}.")
    assert (
        backend.http.post("/setup", json={"project": "1.1", "schema": config}).json()["model_version"]
        == said["model_version"]
    )


# --- what may be wrong ----------------------------------------------------------------------------------


def engine_of(folder: Path, text: str, **options: Any) -> OwnEngine:
    (folder / "mine.py").write_text(text)
    words = [f"{key}={value}" for key, value in options.items()]
    card = hosted_card(f"{folder}/mine.py", engine="own", name=None, options=words, python=None, model_dir=None)
    return OwnEngine(None, OwnEngine.describe(None, card), EngineOptions())


def grey(value: int) -> Any:
    return Picture(np.full((8, 8, 3), value, np.uint8), Size(8, 8))


MIXED = """
import os
class Mixed:
    labels = ["a"]
    max_batch = 8
    def __init__(self, score=0.5):
        self.score = score
    def predict(self, picture):
        kind = int(picture[0, 0, 0])
        if kind == 1: raise RuntimeError("too dark")
        if kind == 2: return [{"box": (1, 2, 3), "label": "a"}]
        if kind == 3: return [{"label": "a", "score": float("nan")}]
        if kind == 4: os._exit(5)
        return [{"label": "a", "score": 0.1}, {"box": (1, 2, 3, 4), "angle": 30, "label": "a", "score": self.score}]
"""


def test_one_bad_answer_or_crash_fails_one_picture(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, MIXED, score=0.25)
    try:
        found = engine.predict([engine.prepare(grey(kind)) for kind in (0, 1, 2, 3, 4, 0)])
    finally:
        engine.close()
    assert [isinstance(one, tuple) for one in found] == [True, False, False, False, False, True]
    assert [type(region.shape) for region in found[0]] == [Box, Whole]  # best first
    assert found[0][0].shape == Box((1, 2, 3, 4), 30)
    for place, says in ((1, "too dark"), (2, "cannot be read"), (3, "the score is nan"), (4, "status 5")):
        assert isinstance(found[place], ModelFailed)
        assert says in str(found[place])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("class A:\n    def predict(self, p): return []", "has no labels"),
        ("class A:\n    labels = ['x']\n    task = 'dance'\n    def predict(self, p): return []", "task = 'dance'"),
        ("x = 1", "not one class with predict but none"),
        (
            "class A:\n    labels = ['x']\n    def __init__(self, need): pass\n    def predict(self, p): return []",
            "need",
        ),
    ],
    ids=["no labels", "an unknown task", "no class", "an option that is missing"],
)
def test_a_class_that_cannot_serve_is_refused_when_it_is_added(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ModelError, match=says):
        engine_of(tmp_path, text)


def test_a_mask_becomes_an_outline_for_each_part() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:10, 3:12] = mask[12:18, 20:29] = True
    mask[0, 29] = True  # a speck
    found = outlines(mask)
    assert sorted(min(x for x, _ in part.points) for part in found) == [3.5, 20.5]
    assert all(isinstance(part, Polygon) for part in found)


def test_with_takes_every_following_pair() -> None:
    words = spread(["start", "DIR", "--with", "a=1", "b=x/y", "c=true", "--port", "80", "--kwargs", "d=0.5"])
    assert words == [
        "start",
        "DIR",
        "--with",
        "a=1",
        "--with",
        "b=x/y",
        "--with",
        "c=true",
        "--port",
        "80",
        "--with",
        "d=0.5",
    ]
    assert parse_options(["a=1", "c=true", "d=0.5", "e=x=y"]) == {"a": 1, "c": True, "d": 0.5, "e": "x=y"}
    with pytest.raises(ModelError, match="not NAME=VALUE"):
        parse_options(["nothing"])

"""Classes of the user's own: the examples, through `labelloop models add` and over HTTP; and what they may get wrong."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest

from labelloop.cli.hosting import hosted_card, parse_options, spread
from labelloop.core.errors import ModelError, ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Mask, Size, Span, Whole
from labelloop.core.settings import read_settings
from labelloop.engines.base import EngineOptions
from labelloop.engines.own import OwnEngine, region_of
from labelloop.labelstudio.video import decode_track
from labelloop.serving.models import add_model
from labelloop.video.lifespans import boxes_by_frame
from reference.brush import decode_rle
from reference.film_scene import FILM_CONFIG, HEIGHT, SIDE, WIDTH, across, write_scene
from reference.running_server import Backend, servers
from reference.tiny_transformers import segmenter

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
TEXT = '<Text name="t" value="$text"/>'


def green_part() -> Any:
    return (scene() == (0, 200, 0)).all(axis=2)


class Case(NamedTuple):
    """One example: a label config that its answers land in, a task, and what each region of the answer must be."""

    file: str
    config: str
    data: dict[str, Any]
    fits: Callable[[dict[str, Any]], bool]
    options: tuple[str, ...] = ()
    regions: int = 1

    @property
    def name(self) -> str:
        return f"{self.file}-{self.config.partition(IMAGE)[2].partition(' ')[0].strip('<')}"


def picture(body: str, rgb: Any = None) -> tuple[str, dict[str, Any]]:
    return f"<View>{IMAGE}{body}</View>", {"image": encoded(scene() if rgb is None else rgb)}


def stick() -> Any:
    """A dark bar of 60 x 12 pixels about the middle of the picture, turned by 30 degrees clockwise."""
    canvas = np.full((100, 100, 3), 255, np.uint8)
    corners = cv2.boxPoints(((50.0, 50.0), (60.0, 12.0), 30.0))
    return cv2.fillPoly(canvas, [np.round(corners).astype(np.int32)], (0, 0, 0))


def marks() -> Any:
    rgb = np.full((60, 100, 3), 255, np.uint8)
    rgb[10:20, 20:40] = (230, 20, 20)
    rgb[40:50, 60:80] = (20, 20, 230)
    return rgb


def lies_as(value: dict[str, Any], *, angle: float, along: float, across: float, middle: float) -> bool:
    """A turned box as Label Studio has it: percent, turned about the corner that `x`, `y` names. A stick has two
    ends."""
    turn = math.radians(value["rotation"])
    x = value["x"] + (value["width"] * math.cos(turn) - value["height"] * math.sin(turn)) / 2
    y = value["y"] + (value["width"] * math.sin(turn) + value["height"] * math.cos(turn)) / 2
    off = (value["rotation"] - angle + 90) % 180 - 90
    found = (off, value["width"], value["height"], x, y)
    return found == pytest.approx((0, along, across, middle, middle), abs=2)


CASES = (
    Case(
        "own_detector.py",
        *picture('<RectangleLabels name="c" toName="img"><Label value="thing"/></RectangleLabels>'),
        lambda r: [r["value"][key] for key in ("x", "width", "height")] == [20, 30, pytest.approx(33.3333)],
    ),
    Case(
        "own_turned_boxes.py",
        *picture('<RectangleLabels name="c" toName="img"><Label value="stick"/></RectangleLabels>', stick()),
        lambda r: lies_as(r["value"], angle=30, along=61, across=13, middle=50.5),
    ),
    Case(
        "own_segmenter.py",
        *picture('<PolygonLabels name="c" toName="img"><Label value="green"/></PolygonLabels>'),
        lambda r: min(x for x, _ in r["value"]["points"]) == pytest.approx(60.5),
    ),
    Case(
        "own_segmenter.py",
        *picture('<BrushLabels name="c" toName="img"><Label value="green"/></BrushLabels>'),
        lambda r: np.array_equal(np.reshape(decode_rle(r["value"]["rle"])[1::4], (60, 100)) == 255, green_part()),
    ),
    Case(
        "own_points.py",
        *picture('<KeyPointLabels name="c" toName="img"><Label value="red"/><Label value="blue"/></KeyPointLabels>', marks()),
        lambda r: [round(r["value"][k], 2) for k in "xy"] == {"red": [30, 25], "blue": [70, 75]}[r["value"]["keypointlabels"][0]],
        regions=2,
    ),
    Case(
        "own_classifier.py",
        *picture('<Choices name="c" toName="img"><Choice value="day"/><Choice value="night"/></Choices>'),
        lambda r: r["value"]["choices"] == ["day"],
    ),
    Case(
        "own_reader.py",
        *picture('<Rectangle name="b" toName="img"/><Labels name="c" toName="img"><Label value="text"/></Labels>'
        '<TextArea name="t" toName="img" perRegion="true"/>'),
        lambda r: r["type"] != "textarea" or r["value"]["text"] == ["35 rows of ink"],
        regions=3,
    ),
    Case(
        "own_text.py",
        f'<View>{TEXT}<Choices name="c" toName="t"><Choice value="good"/><Choice value="bad"/></Choices></View>',
        {"text": "Thanks for the sun"},
        lambda r: r["value"]["choices"] == ["good"],
    ),
    Case(
        "own_names.py",
        f'<View>{TEXT}<Labels name="c" toName="t"><Label value="name"/><Label value="year"/></Labels></View>',
        {"text": "\U0001f600 they met Ada in 1943"},
        lambda r: r["value"] in (
            {"start": 11, "end": 14, "text": "Ada", "labels": ["name"]},
            {"start": 18, "end": 22, "text": "1943", "labels": ["year"]},
        ),
        regions=2,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """One server for all: each example is a project's model."""
    folder = tmp_path_factory.mktemp("examples")
    with servers(folder) as begin:
        yield begin(
            models=(),
            load=lambda version: OwnEngine(None, version.card, EngineOptions()),
            local_files_root=folder,
        )


PROJECTS = itertools.count(1)


def answer(server: Backend, case: Case) -> list[dict[str, Any]]:
    """What the model says through `labelloop models add`, `models use`, `/setup` and `/predict`."""
    registry, project = server.parts.store.registry, next(PROJECTS)
    card = hosted_card(
        str(EXAMPLES / case.file),
        engine=None,
        name=f"example-{project}",
        options=case.options,
        python=None,
        model_dir=None,
    )
    version = add_model(registry, None, card, read_settings(home=server.home))
    registry.bind(project, version.id, reason="test")
    server.parts.projects.refresh()
    named = server.setup(project, config=case.config)
    (said,) = server.predict([{"id": 1, "data": case.data}], project=project, config=case.config).json()["results"]
    assert said.get("result"), said
    assert said["model_version"] == named
    assert named.startswith(f"{version.id}.")
    return said["result"]


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_each_example_answers_over_http(server: Backend, case: Case) -> None:
    found = answer(server, case)
    assert len(found) == case.regions, found
    assert all(case.fits(region) for region in found), found


def test_a_detector_of_the_user_follows_what_it_finds_through_a_film(server: Backend, tmp_path: Path) -> None:
    film = write_scene(server.home.parent / "film.mp4", frames=20)
    config = FILM_CONFIG.format(rate=25).replace('"red"', '"thing"')
    data = {"video": f"/data/local-files/?d={film.name}"}
    case = Case("own_detector.py", config, data, lambda _: True, options=("darkest=110",))
    (track,) = answer(server, case)
    (region,) = decode_track(track, size=Size(WIDTH, HEIGHT))
    boxes = boxes_by_frame(region.shape)
    assert len(boxes) == 20
    left, top = across(10)
    assert boxes[10].xyxy == pytest.approx((left, top, left + SIDE, top + SIDE), abs=5)


@pytest.mark.slow  # it imports torch, in a process of its own
def test_a_model_of_transformers_in_a_class_of_the_user(server: Backend, tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    config, data = picture('<PolygonLabels name="c" toName="img"><Label value="dog"/></PolygonLabels>')
    folder = segmenter(tmp_path / "scene", sees="dog")
    case = Case("own_transformers.py", config, data, lambda _: True, options=(f"folder={folder}",))
    (whole,) = answer(server, case)
    assert whole["value"]["polygonlabels"] == ["dog"]
    assert max(x for x, _ in whole["value"]["points"]) == pytest.approx(99.5)


def test_every_example_is_run_and_named_in_the_documents() -> None:
    files = {path.name for path in EXAMPLES.glob("own_*.py")}
    assert files == {case.file for case in CASES} | {"own_transformers.py"}
    named = (EXAMPLES.parent / "docs" / "hosted.md").read_text()
    assert [file for file in sorted(files) if f"(../examples/{file})" not in named] == []


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


READER = """
class Reader:
    labels = ["word"]
    task = "ner"
    max_batch = 8
    def predict(self, text):
        return [{"span": {"fine": (1, 3), "long": (0, 9), "none": (2, 2), "odd": (0.5, 2)}[text], "label": "word"}]
"""


def test_a_span_that_is_not_in_its_text_fails_that_text(tmp_path: Path) -> None:
    engine = engine_of(tmp_path, READER)
    try:
        fine, *wrong = engine.predict(["fine", "long", "none", "odd"])
    finally:
        engine.close()
    (region,) = fine
    assert (region.shape, region.text) == (Span(1, 3), "in")
    for error, says in zip(wrong, ("from 0 to 9 is not in", "from 2 to 2 is not in", "float"), strict=True):
        assert isinstance(error, ModelFailed)
        assert says in str(error)


def test_a_mask_is_one_region_of_all_its_parts() -> None:
    mask = np.zeros((20, 30), bool)
    mask[2:10, 3:12] = mask[12:18, 20:29] = True
    region = region_of({"mask": mask, "label": "green", "score": 0.5})
    assert region is not None
    assert isinstance(region.shape, Mask)
    assert sorted(min(x for x, _ in outer) for (outer,) in region.shape.parts) == [3.5, 20.5]
    assert (region.label, region.score) == ("green", 0.5)
    assert region_of({"mask": ~mask & mask, "label": "green"}) is None


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
    assert spread(["--with", "a=1", "DIR"]) == ["--with", "a=1", "DIR"]
    assert spread(["--with", "oops", "--port", "80"]) == ["--with", "oops", "--port", "80"], "an error that says more"
    assert parse_options(["a=1", "c=true", "d=0.5", "e=x=y"]) == {"a": 1, "c": True, "d": 0.5, "e": "x=y"}
    assert parse_options(["a=-2", "b=1e-3", "c=2026_11", "d=nan", "e="]) == {
        "a": -2, "b": 0.001, "c": "2026_11", "d": "nan", "e": "",
    }  # fmt: skip
    with pytest.raises(ModelError, match="not NAME=VALUE"):
        parse_options(["nothing"])

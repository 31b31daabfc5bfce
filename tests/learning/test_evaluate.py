"""Versions on held-out pictures, through the real serving path, against the figures of a plain decode."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from structlog.testing import capture_logs

from labelloop.app import Parts, assemble, close
from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Prediction, Region
from labelloop.core.settings import Settings, read_settings
from labelloop.core.tasks import Task
from labelloop.engines.labels import COCO
from labelloop.formats import coco
from labelloop.jobs.open import Loop
from labelloop.learning.detections import match
from labelloop.learning.evaluate import Predict, evaluate, held_out, without_thresholds
from labelloop.learning.measures import IOU_THRESHOLDS, average_precisions
from labelloop.learning.promote import Gate, judge
from labelloop.serving.models import add_model
from labelloop.serving.projects import Lens, View
from labelloop.serving.slots import Load
from labelloop.serving.stage import Priority
from labelloop.testing import FakeEngine
from reference.running_server import jpeg

TWO_PICTURES = """<View><Image name="top" value="$top"/><Image name="side" value="$side"/>
<RectangleLabels name="box" toName="top,side"><Label value="Car" predicted_values="car"/><Label value="Dog" score_threshold="0.9"/></RectangleLabels></View>"""

EXPECTED = {"yolox_nano_416": 0.326, "nanodet_m_320": 0.282, "deimv2_atto_320": 0.335}
"""The same figures as in tests/engines/test_detect_map.py, which come from a plain decode."""

Serve = Callable[..., tuple[Parts, Predict, Settings]]


@pytest.fixture
def quiet() -> Iterator[None]:
    """Logs are not drawn: a traceback with pictures in its variables takes seconds."""
    with capture_logs():
        yield


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """The parts of a server, and its prediction path as a plain function."""
    running: list[tuple[Parts, Loop]] = []

    def begin(load: Load | None = None) -> tuple[Parts, Predict, Settings]:
        settings = read_settings(home=tmp_path / "home")
        parts = assemble(settings, load=load)
        loop = Loop()
        loop.__enter__()
        running.append((parts, loop))

        def predict(tasks: Sequence[Task], view: View) -> Sequence[Prediction]:
            return loop.run(
                parts.predictor.predict(tasks, view, priority=Priority.BULK, deadline_s=60), check=lambda: None
            )

        return parts, predict, settings

    yield begin
    for parts, loop in running:
        loop.__exit__(None, None, None)
        close(parts)


def folder(path: Path, *, boxes: int = 2) -> Path:
    """Four held-out pictures of which the first `boxes` have a car in the middle, where FakeEngine finds one."""
    (path / "images").mkdir(parents=True)
    for number in range(1, 5):
        (path / "images" / f"{number}.jpg").write_bytes(jpeg(80, 40, seed=number))
    images = tuple(coco.Image(number, f"{number}.jpg", 80, 40, task_id=number) for number in range(1, 5))
    things = tuple(coco.Instance(number, number, 1, (20, 10, 40, 20)) for number in range(1, boxes + 1))
    coco.write(path / "val.json", coco.Dataset(images, things, (coco.Category(1, "Car"), coco.Category(2, "Dog"))))
    return path


def view_of(
    parts: Parts, settings: Settings, *, classes: tuple[str, ...] = ("car", "dog"), config: str = TWO_PICTURES
) -> View:
    version = add_model(parts.store.registry, None, ModelCard(name="cars", engine="empty", labels=classes), settings)
    return Lens().view(version, config)


@pytest.mark.parametrize("model", EXPECTED)
def test_the_serving_path_reaches_the_figures_of_a_plain_decode(
    serve: Serve, shared: Path, tmp_path: Path, model: str
) -> None:
    parts, predict, settings = serve()
    data = shared / "data/datasets/coco32"
    (tmp_path / "set").mkdir()
    (tmp_path / "set/val.json").write_bytes((data / "annotations.json").read_bytes())
    (tmp_path / "set/images").symlink_to(data / "images")
    labels = "".join(f'<Label value="{name}"/>' for name in COCO)
    config = (
        f'<View><Image name="i" value="$image"/><RectangleLabels name="b" toName="i">{labels}</RectangleLabels></View>'
    )
    version = add_model(
        parts.store.registry, shared / "data/models" / f"{model}.onnx", ModelCard(name=model, labels=COCO), settings
    )
    view = Lens().view(version, config)
    found = evaluate(held_out(tmp_path / "set"), view, predict)
    assert found.measures.ap == pytest.approx(EXPECTED[model], abs=0.005)
    matches = match(found.truth, found.found, iou_thresholds=IOU_THRESHOLDS["AP"])
    assert average_precisions(matches, np.ones((1, 32)))[0] == pytest.approx(found.measures.ap, abs=1e-9)
    assert (found.measures.pictures, found.measures.boxes, found.measures.failed) == (32, 240, 0)
    assert found.measures.seconds_per_picture > 0
    assert 0.2 < (found.measures.recall or 0) < 0.9, "as drawn at 0.3"
    assert 0.2 < (found.measures.precision or 0) < 0.9


def test_labels_and_thresholds_are_those_of_the_project(serve: Serve, tmp_path: Path) -> None:
    """Unsure boxes count for AP and are not drawn; the class "car" is the label "Car"; one of two pictures is asked."""

    def find(picture: Picture) -> tuple[Region, ...]:
        middle = Box((20, 10, 60, 30))
        return Region(middle, "car", 0.2), Region(middle, "dog", 0.8), Region(middle, "bird", 0.9)

    parts, predict, settings = serve(lambda _version: FakeEngine(find))
    evaluation = evaluate(held_out(folder(tmp_path / "set")), view_of(parts, settings), predict)
    measures = evaluation.measures
    assert evaluation.found.label.tolist() == [0, 1] * 4, "no label for a bird"
    assert not evaluation.found.drawn.any(), "0.2 is below 0.3, and the config wants 0.9 for a dog"
    assert (measures.precision, measures.recall, measures.failed) == (None, 0.0, 0)
    assert measures.classes[0].ap50 == pytest.approx(1.0), "the first two of four equal ones are there"


@pytest.mark.usefixtures("quiet")
def test_a_picture_that_a_model_fails_on_counts_as_nothing_found(serve: Serve, tmp_path: Path) -> None:
    answered: list[int] = []

    def find(picture: Picture) -> tuple[Region, ...]:
        if picture.size == (80, 40):  # not the one that it is warmed with
            answered.append(1)
        if len(answered) == 1:
            raise RuntimeError("cannot")
        return (Region(Box((20, 10, 60, 30)), "car", 0.9),)

    parts, predict, settings = serve(lambda _version: FakeEngine(find, max_batch=1))
    measures = evaluate(held_out(folder(tmp_path / "set", boxes=4)), view_of(parts, settings), predict).measures
    assert (measures.failed, measures.precision, measures.recall) == (1, 1.0, 0.75)


@pytest.mark.usefixtures("quiet")
def test_a_model_that_answers_for_nothing_has_no_figures(serve: Serve, tmp_path: Path) -> None:
    def find(picture: Picture) -> tuple[Region, ...]:
        if picture.size == (80, 40):
            raise RuntimeError("out of memory")
        return ()

    parts, predict, settings = serve(lambda _version: FakeEngine(find))
    with pytest.raises(ModelFailed, match=r"none of 4 held-out pictures: .*out of memory"):
        evaluate(held_out(folder(tmp_path / "set")), view_of(parts, settings), predict)


def test_a_model_without_a_label_in_the_project_finds_nothing(serve: Serve, tmp_path: Path) -> None:
    parts, predict, settings = serve(lambda _version: FakeEngine(classes=("cat",)))
    evaluation = evaluate(held_out(folder(tmp_path / "set")), view_of(parts, settings, classes=("cat",)), predict)
    assert (evaluation.measures.ap50, evaluation.measures.seconds_per_picture) == (0.0, 0.0)


def test_two_versions_meet_at_the_gate(serve: Serve, tmp_path: Path) -> None:
    pictures = held_out(folder(tmp_path / "set", boxes=4))
    parts, predict, settings = serve(
        lambda version: FakeEngine(
            lambda _: (Region(Box((20, 10, 60, 30) if version.number == 2 else (0, 0, 9, 9)), "car", 0.9),)
        )
    )
    live, candidate = (
        evaluate(pictures, view_of(parts, settings, classes=classes), predict) for classes in (("car",), ("car", "dog"))
    )
    assert (live.model, candidate.model) == ("cars@1", "cars@2")
    verdict = judge(candidate, live, Gate(min_pictures=4, min_boxes=4))
    assert (
        verdict.sentence
        == "AP50 1.000 against 0.000 on 4 held-out pictures with 4 boxes, 100 % of resamples better: promoted"
    )


def test_an_open_view_draws_everything_on_one_picture(serve: Serve) -> None:
    parts, _, settings = serve(lambda _version: FakeEngine())
    view = view_of(parts, settings)
    opened = without_thresholds(view)
    assert [tag.field for tag in opened.label_map.fields] == ["top"]
    assert {target.threshold for found in opened.label_map.targets.values() for target in found} == {0.0}
    assert [tag.field for tag in view.label_map.fields] == ["top", "side"], "the view itself is as it was"

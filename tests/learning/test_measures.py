"""Average precision, against COCO's own code on real models and on random boxes; what people see drawn; calibration."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from labelloop.learning import coco_figures
from labelloop.learning.detections import Found, Truth, match
from labelloop.learning.measures import (
    IOU_THRESHOLDS,
    Measures,
    average_precisions,
    calibration_error,
    measure,
)

Row = tuple[int, int, float, tuple[float, float, float, float]]


def found_of(rows: list[Row], *, threshold: float = 0.5) -> Found:
    return Found(
        np.array([row[0] for row in rows], np.intp),
        np.array([row[1] for row in rows], np.intp),
        np.array([row[2] for row in rows], float),
        np.array([row[3] for row in rows], float).reshape(-1, 4),
        np.array([row[2] >= threshold for row in rows], bool),
    )


def truth(
    things: list[tuple[int, int, tuple[float, float, float, float]]],
    *,
    pictures: int,
    labels: int = 1,
    crowd: tuple[int, ...] = (),
) -> Truth:
    return Truth(
        pictures,
        tuple(f"label {number}" for number in range(labels)),
        np.array([thing[0] for thing in things], np.intp),
        np.array([thing[1] for thing in things], np.intp),
        np.array([thing[2] for thing in things], float).reshape(-1, 4),
        np.array([number in crowd for number in range(len(things))], bool),
    )


def ours(given: Truth, found: Found, metric: str) -> float:
    """The metric by our own way, on every picture once."""
    matches = match(given, found, iou_thresholds=IOU_THRESHOLDS[metric])  # type: ignore[index]
    return float(average_precisions(matches, np.ones((1, given.pictures)))[0])


def random_case(seed: int, *, pictures: int = 12, labels: int = 3) -> tuple[Truth, Found]:
    """Things, some of them groups, and detections near them, near groups, and anywhere; equal scores among them."""
    rng = np.random.default_rng(seed)
    things = [
        (int(rng.integers(pictures)), int(rng.integers(labels - 1)), tuple(rng.integers(1, 60, 4).tolist()))
        for _ in range(40)
    ]
    rows: list[Row] = []
    for picture, label, box in things * 2:
        moved = tuple((np.array(box) + rng.integers(-6, 7, 4)).clip(1).tolist())
        rows.append((picture, int(rng.choice([label, labels - 1])), float(rng.integers(1, 20) / 20), moved))
    crowd = tuple(rng.choice(40, 4, replace=False).tolist())
    return truth(things, pictures=pictures, labels=labels, crowd=crowd), found_of(rows)


@pytest.mark.parametrize("seed", range(8))
def test_both_ways_agree_on_crowds_ties_and_classes_that_nobody_drew(seed: int) -> None:
    given, found = random_case(seed)
    measures = measure(given, found)
    assert ours(given, found, "AP") == pytest.approx(measures.ap, abs=1e-9)
    assert ours(given, found, "AP50") == pytest.approx(measures.ap50, abs=1e-9)
    assert measures.classes[-1].ap is None, "nobody drew the last class"


def test_another_process_says_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    given, found = random_case(0)
    here = coco_figures.precisions(given, found)
    asked: list[str] = []
    start = subprocess.run

    def run(argv: list[str], **options: Any) -> Any:
        asked.append(argv[0])
        return start(argv, **options)

    monkeypatch.setattr(coco_figures, "APART_FROM", 10)
    monkeypatch.setattr(subprocess, "run", run)
    np.testing.assert_array_equal(coco_figures.precisions(given, found), here)
    assert asked == [sys.executable]
    monkeypatch.setattr(sys, "executable", "/no/such/program")
    np.testing.assert_array_equal(coco_figures.precisions(given, found), here)
    assert asked[1:] == ["/no/such/program"], "it was tried, and then done here"


@pytest.mark.parametrize("seed", range(4))
def test_a_weight_is_a_picture_that_occurs_so_often(seed: int) -> None:
    """COCO's code on the sample, picture by picture copied, says what the weights say. Scores differ here: the order of
    equal ones would depend on where the copies stand."""
    given, found = random_case(seed, pictures=6)
    rng = np.random.default_rng(seed)
    found = found._replace(score=rng.permutation(np.linspace(0.01, 0.99, len(found.score))))
    times = rng.multinomial(6, [1 / 6] * 6)
    copies = np.repeat(np.arange(6), times)
    things = [np.flatnonzero(given.picture == picture) for picture in copies]
    seen = [np.flatnonzero(found.picture == picture) for picture in copies]
    sample = given._replace(
        pictures=6,
        picture=np.repeat(np.arange(6), [len(rows) for rows in things]),
        label=given.label[np.concatenate(things)],
        xywh=given.xywh[np.concatenate(things)],
        crowd=given.crowd[np.concatenate(things)],
    )
    rows = np.concatenate(seen)
    copied = Found(np.repeat(np.arange(6), [len(rows) for rows in seen]), *(column[rows] for column in found[1:]))
    matches = match(given, found, iou_thresholds=IOU_THRESHOLDS["AP"])
    weights = np.stack([np.ones(6), times]).astype(float)
    assert average_precisions(matches, weights)[1] == pytest.approx(measure(sample, copied).ap, abs=1e-9)


def test_many_samples_at_once_are_the_same_as_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    given, found = random_case(1)
    matches = match(given, found, iou_thresholds=IOU_THRESHOLDS["AP50"])
    weights = np.random.default_rng(0).multinomial(12, [1 / 12] * 12, size=50).astype(float)
    together = average_precisions(matches, weights)
    monkeypatch.setattr("labelloop.learning.measures._CELLS", 1)
    assert np.array_equal(average_precisions(matches, weights), together)
    assert len(set(together.tolist())) > 10, "the samples differ"


def test_a_sample_without_a_box_says_nothing() -> None:
    given = truth([(0, 0, (0, 0, 10, 10))], pictures=2)
    matches = match(given, found_of([(0, 0, 0.9, (0, 0, 10, 10))]), iou_thresholds=(0.5,))
    assert np.isnan(average_precisions(matches, np.array([[0.0, 2.0]]))[0])


BOX, FAR = (0, 0, 10, 10), (50, 50, 10, 10)


@pytest.mark.parametrize(
    ("rows", "precision", "recall"),
    [
        ([(0, 0, 0.9, BOX)], 1.0, 0.5),
        ([(0, 0, 0.9, BOX), (0, 0, 0.8, BOX)], 0.5, 0.5),
        ([(0, 0, 0.9, BOX), (1, 0, 0.9, FAR)], 0.5, 0.5),
        ([(0, 0, 0.9, BOX), (1, 0, 0.4, BOX)], 1.0, 0.5),
        ([(0, 0, 0.2, BOX)], None, 0.0),
        ([(0, 1, 0.9, BOX)], 0.0, 0.0),
        ([], None, 0.0),
    ],
    ids=["one of two", "the same thing twice", "beside the thing", "below the threshold", "nothing drawn", "another label", "nothing found"],
)  # fmt: skip
def test_precision_and_recall_are_of_what_is_drawn(rows: list[Row], precision: float | None, recall: float) -> None:
    measures = measure(truth([(0, 0, BOX), (1, 0, BOX)], pictures=3, labels=2), found_of(rows))
    assert (measures.precision, measures.recall) == (precision, recall)


def test_figures_of_each_class_come_with_counts() -> None:
    given = truth([(0, 0, BOX), (0, 0, FAR), (1, 0, BOX), (1, 1, FAR)], pictures=3, labels=3)
    measures = measure(given, found_of([(0, 0, 0.9, BOX), (1, 1, 0.9, FAR), (2, 2, 0.9, FAR)]))
    first, second, third = measures.classes
    assert (first.boxes, first.pictures, first.recall) == (3, 2, pytest.approx(1 / 3))
    assert (second.ap50, second.precision, second.recall) == (pytest.approx(1.0), 1.0, 1.0)
    assert (third.boxes, third.ap, third.precision, third.recall) == (0, None, 0.0, None)
    assert (measures.pictures, measures.boxes) == (3, 4)
    assert measures.ap50 == pytest.approx((34 / 101 + 1) / 2), "the first 34 of 101 recalls are reached"


def test_nothing_to_find_leaves_nothing_to_measure() -> None:
    measures = measure(truth([], pictures=2), found_of([(0, 0, 0.9, BOX)]))
    assert (measures.ap, measures.ap50, measures.recall, measures.precision) == (None, None, None, 0.0)


def test_a_group_is_neither_found_nor_wrong() -> None:
    given = truth([(0, 0, (0, 0, 100, 100)), (0, 0, FAR)], pictures=1, crowd=(0,))
    measures = measure(given, found_of([(0, 0, 0.9, BOX), (0, 0, 0.8, FAR)]))
    assert (measures.precision, measures.recall, measures.boxes) == (1.0, 1.0, 1)


@pytest.mark.parametrize(
    ("scores", "right", "error"),
    [
        ([0.8] * 5, 4, 0.0),
        ([0.9] * 4, 2, 0.4),
        ([0.55, 0.55, 0.95, 0.95], 4, 0.25),
        ([1.0], 1, 0.0),
    ],
    ids=["four of five at 0.8", "too sure", "too modest in two bins", "certain"],
)
def test_calibration_is_the_gap_between_score_and_share_right(scores: list[float], right: int, error: float) -> None:
    given = truth([(picture, 0, BOX) for picture in range(right)], pictures=len(scores))
    found = found_of([(picture, 0, score, BOX) for picture, score in enumerate(scores)])
    assert calibration_error(match(given, found, iou_thresholds=(0.5,))) == pytest.approx(error)


def test_measures_go_into_the_store_and_come_back() -> None:
    measures = measure(*random_case(0), seconds_per_picture=0.01, failed=1)
    import msgspec

    assert msgspec.convert(json.loads(msgspec.json.encode(measures)), Measures) == measures

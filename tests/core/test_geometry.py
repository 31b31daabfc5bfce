from __future__ import annotations

import numpy as np
import pytest

from labelloop.core.geometry import area, iou, nms

FAR = [[0, 0, 10, 10], [100, 100, 110, 110]]


def greedy(
    xyxy: np.ndarray, scores: np.ndarray, *, iou_threshold: float, classes: np.ndarray | None = None
) -> list[int]:
    """The definition, one box at a time."""
    kept: list[int] = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        rivals = [other for other in kept if classes is None or classes[other] == classes[index]]
        if not rivals or iou(xyxy[[index]], xyxy[rivals]).max() <= iou_threshold:
            kept.append(index)
    return kept


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        pytest.param([0, 0, 10, 10], [0, 0, 10, 10], 1.0, id="the same"),
        pytest.param([0, 0, 10, 10], [5, 0, 15, 10], 1 / 3, id="half beside"),
        pytest.param([0, 0, 10, 10], [2, 2, 7, 7], 0.25, id="inside"),
        pytest.param([0, 0, 10, 10], [10, 0, 20, 10], 0.0, id="touching"),
        pytest.param([0, 0, 10, 10], [100, 100, 110, 110], 0.0, id="disjoint, equal size: known elsewhere to give 1"),
        pytest.param([0, 0, 10, 10], [500, 500, 502, 502], 0.0, id="disjoint, smaller: known elsewhere to give 4"),
        pytest.param([-10, -10, 0, 0], [-5, -10, 5, 0], 1 / 3, id="negative coordinates"),
        pytest.param([3, 3, 3, 3], [3, 3, 3, 3], 0.0, id="no area"),
    ],
)
def test_iou(first: list[float], second: list[float], expected: float) -> None:
    result = iou(np.array([first], float), np.array([second], float))
    assert result.shape == (1, 1)
    assert result[0, 0] == pytest.approx(expected)
    assert iou(np.array([second], float), np.array([first], float))[0, 0] == pytest.approx(expected)


def test_iou_is_a_table_of_all_pairs() -> None:
    boxes = np.array([[0, 0, 2, 2], [1, 0, 3, 2], [9, 9, 10, 10]], float)
    np.testing.assert_allclose(iou(boxes[:2], boxes), [[1, 1 / 3, 0], [1 / 3, 1, 0]])
    assert iou(boxes[:0], boxes).shape == (0, 3)


def test_area_of_an_inverted_box_is_zero() -> None:
    np.testing.assert_array_equal(area(np.array([[0, 0, 4, 5], [4, 5, 0, 0], [0, 5, 4, 0]], float)), [20, 0, 0])


@pytest.mark.parametrize(
    ("boxes", "scores", "classes", "kept"),
    [
        pytest.param(FAR, [0.9, 0.8], None, [0, 1], id="disjoint equal boxes both stay"),
        pytest.param(FAR, [0.8, 0.9], [0, 0], [1, 0], id="best first"),
        pytest.param([[0, 0, 10, 10]] * 3, [0.5, 0.9, 0.7], None, [1], id="identical: the best stays"),
        pytest.param(
            [[0, 0, 10, 10]] * 3, [0.5, 0.9, 0.7], [0, 1, 2], [1, 2, 0], id="identical, other classes: all stay"
        ),
        pytest.param([[0, 0, 10, 10]] * 2, [0.5, 0.5], None, [0], id="a tie keeps the earlier"),
        pytest.param(
            [[0, 0, 10, 10], [2, 2, 7, 7]], [0.9, 0.8], None, [0, 1], id="small inside large stays (IoU 0.25)"
        ),
        pytest.param([[0, 0, 10, 10], [0, 0, 10, 6]], [0.9, 0.8], None, [0], id="large part of it goes (IoU 0.6)"),
        pytest.param([[0, 0, 10, 10], [0, 0, 10, 5]], [0.9, 0.8], None, [0, 1], id="exactly at the threshold stays"),
        pytest.param([[0, 0, 10, 10]] * 2, [0.0, -3.0], [0, 1], [0, 1], id="scores of zero and below count too"),
        pytest.param(
            [[-90, -101, -80, -91], [11, 0, 21, 10], [90, 0, 100, 10]],
            [0.9, 0.8, 0.7],
            [1, 0, 0],
            [0, 1, 2],
            id="classes stay apart where a box sticks out to the left: cv2's batched NMS deletes the second",
        ),
    ],
)
def test_nms(boxes: list[list[float]], scores: list[float], classes: list[int] | None, kept: list[int]) -> None:
    arrays = np.array(boxes, np.float32), np.array(scores, np.float32)
    result = nms(*arrays, iou_threshold=0.5, classes=None if classes is None else np.array(classes))
    assert result.tolist() == kept
    assert result.dtype == np.intp


def test_a_chain_keeps_what_only_a_loser_overlapped() -> None:
    chain = np.array([[0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]], np.float32)
    assert nms(chain, np.array([0.9, 0.8, 0.7], np.float32), iou_threshold=0.5).tolist() == [0, 2]


def test_nothing_gives_nothing() -> None:
    assert (
        nms(np.empty((0, 4), np.float32), np.empty(0, np.float32), iou_threshold=0.5, classes=np.empty(0, int)).tolist()
        == []
    )


@pytest.mark.parametrize("per_class", [True, False])
def test_three_thousand_candidates_as_the_definition_says(per_class: bool) -> None:
    random = np.random.default_rng(7)
    middles, sizes = random.uniform(-50, 600, (120, 2)), random.uniform(10, 90, (120, 2))
    thing = random.integers(0, 120, 3000)
    half = sizes[thing] * random.uniform(0.8, 1.2, (3000, 2)) / 2
    centre = middles[thing] + random.normal(0, 4, (3000, 2))
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    scores, classes = random.permutation(3000) / 3000, thing % 5
    chosen = classes if per_class else None
    expected = greedy(boxes, scores, iou_threshold=0.6, classes=chosen)
    assert 120 < len(expected) < 1500
    assert nms(boxes, scores, iou_threshold=0.6, classes=chosen).tolist() == expected

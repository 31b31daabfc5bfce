"""Trackers on scenes whose truth is known. What each is better at than the others is a row of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from labelloop.core.geometry import iou
from labelloop.video import kalman
from labelloop.video.bytetrack import BotSort, ByteTrack
from labelloop.video.camera import Camera
from labelloop.video.cbiou import CBIoU, widened
from labelloop.video.kalman import AreaMotion, AspectMotion, Motion, SizeMotion
from labelloop.video.ocsort import OcSort
from labelloop.video.tracker import NOBODY, Options, Tracker, as_detections, assign

ALL = [ByteTrack, OcSort, BotSort, CBIoU]
OPTIONS = Options(high=0.5, new=0.6, low=0.1, lost_steps=30)

Rows = list[tuple[tuple[float, float, float, float], float]]


def box(x: float, y: float, width: float = 60, height: float = 100) -> tuple[float, float, float, float]:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def follow(tracker: Tracker, frames: Iterable[Rows]) -> list[list[int]]:
    """The number of each detection, frame by frame."""
    return [tracker.update(as_detections([(xyxy, score, 0) for xyxy, score in rows])).tolist() for rows in frames]


# --- the filters ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("motion", [AspectMotion(), SizeMotion(), AreaMotion()], ids=lambda one: type(one).__name__)
def test_a_filter_learns_a_steady_motion_and_goes_on_with_it(motion: Motion) -> None:
    def truth(step: int) -> np.ndarray:
        return np.array([box(100 + 6 * step, 300 - 2 * step), box(500, 80 + 3 * step, 40, 40)])

    belief = kalman.begin(motion, truth(0))
    for step in range(1, 60):
        belief = kalman.correct(motion, kalman.predict(motion, belief), truth(step))
    for _ in range(5):
        belief = kalman.predict(motion, belief)
    assert motion.boxes(belief.mean) == pytest.approx(truth(64), abs=1.5)
    assert (np.linalg.eigvalsh(belief.covariance) > 0).all()


@pytest.mark.parametrize("motion", [AspectMotion(), SizeMotion(), AreaMotion()], ids=lambda one: type(one).__name__)
def test_a_step_of_a_filter_is_that_of_the_textbook(motion: Motion) -> None:
    """Against the matrices written out, for one box."""
    rng = np.random.default_rng(3)
    seen, then = np.array([box(50, 60)]), np.array([box(53, 58, 66, 97)])
    belief = kalman.begin(motion, seen)
    belief = kalman.Belief(belief.mean + rng.normal(0, 0.1, belief.mean.shape), belief.covariance)
    size, take = motion.size, np.eye(4, motion.size)
    step = np.eye(size) + np.eye(size, k=4)
    x, p = step @ belief.mean[0], step @ belief.covariance[0] @ step.T + np.diag(motion.process(belief.mean)[0])
    expected = kalman.predict(motion, belief)
    assert expected.mean[0] == pytest.approx(x)
    assert expected.covariance[0] == pytest.approx(p)
    noise = np.diag(motion.measurement(expected.mean)[0])
    gain = p @ take.T @ np.linalg.inv(take @ p @ take.T + noise)
    corrected = kalman.correct(motion, expected, then)
    assert corrected.mean[0] == pytest.approx(x + gain @ (motion.measured(then)[0] - take @ x))
    assert corrected.covariance[0] == pytest.approx((np.eye(size) - gain @ take) @ p)


# --- who goes with whom -----------------------------------------------------------------------------------------------


def test_the_best_pairs_are_the_best_in_all_and_never_ones_that_are_too_unlike() -> None:
    alike = np.array([[0.9, 0.8], [0.85, 0.1]])
    pairs = assign(alike, at_least=0.3)  # 0.8 + 0.85 beats 0.9 + nothing
    assert dict(zip(pairs.tracks.tolist(), pairs.found.tolist(), strict=True)) == {0: 1, 1: 0}
    assert assign(np.array([[0.2]]), at_least=0.3).tracks.size == 0
    greedy = assign(np.array([[0.9, 0.29], [0.28, 0.0]]), at_least=0.3)
    assert (greedy.tracks.tolist(), greedy.found.tolist()) == ([0], [0])


def test_iou_of_all_pairs() -> None:
    first = np.array([[0, 0, 10, 10], [0, 0, 0, 0]], float)
    second = np.array([[0, 0, 10, 10], [5, 0, 15, 10], [20, 20, 30, 30]], float)
    assert iou(first, second) == pytest.approx(np.array([[1, 1 / 3, 0], [0, 0, 0]]))


# --- scenes that every tracker masters --------------------------------------------------------------------------------


@pytest.mark.parametrize("tracker", ALL)
def test_two_that_pass_each_other_keep_their_numbers(tracker: Callable[[Options], Tracker]) -> None:
    frames = [[(box(100 + 8 * step, 200), 0.9), (box(700 - 8 * step, 290), 0.8)] for step in range(75)]
    numbers = follow(tracker(OPTIONS), frames)
    assert [row for row in numbers if row != [1, 2]] == []


@pytest.mark.parametrize("tracker", ALL)
@pytest.mark.parametrize("hidden", [1, 8, 25])
def test_one_that_was_out_of_sight_is_the_same(tracker: Callable[[Options], Tracker], hidden: int) -> None:
    def seen(step: int) -> Rows:
        return [] if 20 <= step < 20 + hidden else [(box(100 + 4 * step, 200), 0.9)]

    numbers = follow(tracker(OPTIONS), [seen(step) for step in range(70)])
    assert {number for row in numbers for number in row} == {1}


@pytest.mark.parametrize("tracker", ALL)
def test_one_that_was_away_for_too_long_is_another(tracker: Callable[[Options], Tracker]) -> None:
    here: Rows = [(box(100, 200), 0.9)]
    made = tracker(OPTIONS)
    numbers = follow(made, [here] * 10 + [[]] * 32 + [here] * 3)
    assert {row[0] for row in numbers[:10]} == {1}
    assert 1 not in made.followed()
    assert {row[0] for row in numbers[-3:]} == {2}


@pytest.mark.parametrize("tracker", ALL)
def test_what_is_never_sure_is_no_track(tracker: Callable[[Options], Tracker]) -> None:
    numbers = follow(tracker(OPTIONS), [[(box(100, 100), 0.55), (box(400, 100), 0.2)]] * 5)
    assert {number for row in numbers for number in row} == {NOBODY}


@pytest.mark.parametrize("tracker", ALL)
def test_empty_frames_and_a_crowd(tracker: Callable[[Options], Tracker]) -> None:
    made = tracker(OPTIONS)
    crowd: Rows = [(box(100 * column, 150 * row), 0.9) for row in range(6) for column in range(10)]
    numbers = follow(made, [[], [], crowd, crowd[::-1], [], crowd])
    assert numbers[3] == numbers[2][::-1]
    assert numbers[5] == numbers[2]
    assert len(set(numbers[2])) == 60


# --- what each is better at -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("tracker", "expected"), [(ByteTrack, {1}), (BotSort, {1}), (OcSort, {1, NOBODY})])
def test_a_doubtful_sight_continues_a_track_for_those_that_use_it(
    tracker: Callable[[Options], Tracker], expected: set[int]
) -> None:
    frames = [[(box(100 + 3 * step, 200), 0.2 if 10 <= step < 30 else 0.9)] for step in range(40)]
    assert {number for row in follow(tracker(OPTIONS), frames) for number in row} == expected


@pytest.mark.parametrize(("tracker", "held"), [(ByteTrack, False), (CBIoU, True)])
def test_one_that_jumps_is_held_by_wider_boxes(tracker: Callable[[Options], Tracker], held: bool) -> None:
    frames = [[(box(200 + 45 * (step // 4), 200, 40, 40), 0.9)] for step in range(24)]
    numbers = {row[0] for row in follow(tracker(OPTIONS), frames)}
    assert (numbers == {1}) == held


def test_a_camera_that_swings_is_taken_out() -> None:
    """The picture jumps by more than a box; only who is told how the camera moved can go on."""

    def run(*, told: bool) -> set[int]:
        tracker, numbers = BotSort(OPTIONS), set()
        for step in range(30):
            swing = 90 * (step // 10)
            jump = 90 if step % 10 == 0 and step else 0
            camera = np.array([[1, 0, jump], [0, 1, 0]], float) if told else None
            found = as_detections([(box(100 + swing + 2 * step, 200), 0.9, 0)])
            numbers |= set(tracker.update(found, camera=camera).tolist())
        return numbers - {NOBODY}

    assert run(told=True) == {1}
    assert len(run(told=False)) > 1


def test_the_camera_is_seen_to_shift_turn_and_grow() -> None:
    import cv2

    rng = np.random.default_rng(0)
    world = cv2.GaussianBlur(rng.integers(0, 255, (480, 640, 3), np.uint8), (0, 0), 4)
    world = cv2.normalize(world, None, 0, 255, cv2.NORM_MINMAX)
    turn = cv2.getRotationMatrix2D((320, 240), 1.0, 1.02)
    turn[:, 2] += (7.0, -4.0)
    camera = Camera()
    assert camera.moved(world, width=1280) is None
    found = camera.moved(cv2.warpAffine(world, turn, (640, 480)), width=1280)
    assert found is not None
    expected = turn.copy()
    expected[:, 2] *= 2  # in a film twice as wide as the picture that was looked at
    corners = np.array([[0, 0, 1], [1280, 0, 1], [0, 960, 1], [1280, 960, 1]])
    assert corners @ found.T == pytest.approx(corners @ expected.T, abs=2.0)
    assert camera.moved(np.zeros((480, 640, 3), np.uint8), width=1280) is None


def test_a_filter_is_led_along_what_was_not_seen() -> None:
    """OC-SORT's re-update: after a turn behind something, the velocity is nearly that of the straight line, at once."""

    def path(step: int) -> tuple[float, float]:
        return (100 + 6 * step, 300) if step <= 20 else (220, 300 - 3 * (step - 20))

    tracker = OcSort(OPTIONS)
    for step in [*range(21), *[None] * 11, 32]:
        rows = [] if step is None else [(box(*path(step)), 0.9, 0)]
        numbers = tracker.update(as_detections(rows))
    assert numbers.tolist() == [1]
    velocity = tracker._belief.mean[0, 4:6]
    assert velocity == pytest.approx((0, -3), abs=2.2)


def test_a_widened_box_grows_by_its_own_size() -> None:
    assert widened(np.array([[10, 20, 30, 60]], float), 0.5).tolist() == [[0, 0, 40, 80]]

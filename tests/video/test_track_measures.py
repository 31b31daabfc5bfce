"""HOTA, IDF1 and MOTA: cases worked out by hand, and scenes that another implementation has scored."""

from __future__ import annotations

import random

import pytest

from labelloop.video.measures import Boxes, score

Scene = dict[int, list[tuple[int, tuple[float, float, float, float]]]]
A, B = (0.0, 0.0, 10.0, 10.0), (100.0, 0.0, 110.0, 10.0)


def scene(seed: int) -> tuple[Scene, Scene]:
    """Six things that drift, and tracks of them that tremble, miss, change ids and invent things; some frames are empty."""
    rng = random.Random(seed)
    true: Scene = {}
    found: Scene = {}

    def off() -> float:
        return rng.gauss(0, 4)

    for thing in range(6):
        x, y = rng.uniform(0, 200), rng.uniform(0, 120)
        dx, dy = rng.uniform(-3, 3), rng.uniform(-2, 2)
        first, last, name = rng.randrange(1, 20), rng.randrange(30, 60), thing + 1
        for frame in range(first, last):
            x, y = x + dx, y + dy
            true.setdefault(frame, []).append((thing + 1, (x, y, x + 40, y + 60)))
            if rng.random() < 0.05:
                name = 100 * rng.randrange(1, 9) + thing
            if rng.random() < 0.85:
                found.setdefault(frame, []).append((name, (x + off(), y + off(), x + 40 + off(), y + 60 + off())))
    for frame in range(1, 60):
        if rng.random() < 0.3:
            found.setdefault(frame, []).append(
                (5000 + frame // 7, (rng.uniform(0, 200), rng.uniform(0, 100), 300, 200))
            )
    true = {frame: rows for frame, rows in true.items() if frame % 11}
    return true, {frame: rows for frame, rows in found.items() if frame % 7}


# HOTA, DetA, AssA, LocA, IDF1, MOTA, MOTP in percent, switches, false positives, misses: what the evaluator of the
# package `trackers` 2.6.1 (Apache-2.0, itself held to the MOTChallenge's TrackEval by its authors) says of these scenes
KNOWN = {
    0: (28.95354097608143, 45.669813404212595, 18.482886483864183, 80.46545087237403, 34.234234234234234, 44.44444444444444, 77.22469708284393, 15, 29, 56),
    1: (36.486888595284883, 43.76854669360946, 30.4853982948606, 81.16942318108342, 48.293963254593175, 45.45454545454545, 77.74595330787989, 9, 34, 71),
    2: (37.99708170141281, 45.93264705907863, 31.486944580736126, 80.87664811083343, 51.93370165745856, 47.17948717948718, 77.72172736192254, 11, 32, 60),
    3: (36.645183020101085, 49.06961292609009, 27.59579527695145, 80.16952748924566, 45.45454545454545, 52.63157894736842, 76.88152624152567, 12, 25, 53),
    4: (37.41266832589388, 44.79964940694139, 31.342684935654373, 80.54607505306174, 53.91849529780565, 45.56213017751479, 77.2096321106699, 9, 32, 51),
    5: (36.622553169138283, 44.37386243289617, 30.297273427079646, 81.08866678101009, 51.204819277108435, 43.82022471910113, 78.11091779455445, 8, 34, 58),
}  # fmt: skip


@pytest.mark.parametrize("seed", KNOWN)
def test_scores_are_those_of_another_implementation(seed: int) -> None:
    found = score(*scene(seed))
    percents = (found.hota, found.deta, found.assa, found.loca, found.idf1, found.mota, found.motp)
    assert percents == pytest.approx(KNOWN[seed][:7], abs=1e-4)
    assert (found.switches, found.false_positives, found.misses) == KNOWN[seed][7:]


def test_perfect_tracks_score_everything() -> None:
    true, _ = scene(1)
    renamed = {frame: [(name + 40, box) for name, box in rows] for frame, rows in true.items()}
    found = score(true, renamed)
    assert (found.hota, found.idf1, found.mota, found.motp) == pytest.approx((100, 100, 100, 100))
    assert (found.switches, found.misses, found.false_positives, found.true_tracks) == (0, 0, 0, 6)


def boxes(*rows: tuple[int, int, tuple[float, float, float, float]]) -> Boxes:
    found: Scene = {}
    for frame, name, box in rows:
        found.setdefault(frame, []).append((name, box))
    return found


def test_an_identity_that_changes_half_way() -> None:
    """One thing on four frames, found as 1, 1, 2, 2. MOTA (4 - 1 switch) / 4. IDF1: the better of the two tracks agrees on
    2 of 4 + 4 boxes. HOTA: every box is found, each of them agrees on 2 of 4 frames: sqrt(1 · 1/2)."""
    true = boxes(*((frame, 1, A) for frame in range(1, 5)))
    found = score(true, boxes((1, 1, A), (2, 1, A), (3, 2, A), (4, 2, A)))
    assert (found.mota, found.idf1, found.hota) == pytest.approx((75, 50, 100 * 0.5**0.5))
    assert found.switches == 1


def test_a_match_is_kept_though_another_box_fits_better() -> None:
    near, nearer = (2.0, 0.0, 12.0, 10.0), (1.0, 0.0, 11.0, 10.0)
    found = score(boxes((1, 1, A), (2, 1, A)), boxes((1, 7, A), (2, 7, near), (2, 8, nearer)))
    assert (found.switches, found.false_positives) == (0, 1)


@pytest.mark.parametrize(
    ("true", "predicted", "misses", "extra"),
    [({}, {}, 0, 0), ({1: [(1, A)]}, {}, 1, 0), ({}, {1: [(1, A)]}, 0, 1), ({1: [(1, A)]}, {1: [(1, B)]}, 1, 1)],
    ids=["nothing at all", "nothing found", "nothing there", "elsewhere"],
)
def test_where_there_is_nothing_to_match(true: Boxes, predicted: Boxes, misses: int, extra: int) -> None:
    found = score(true, predicted)
    assert (found.hota, found.idf1, found.misses, found.false_positives) == (0, 0, misses, extra)


def test_an_id_that_is_twice_on_a_frame_is_refused() -> None:
    with pytest.raises(ValueError, match="frame 3 has two predicted boxes with one id"):
        score({3: [(1, A)]}, {3: [(1, A), (1, B)]})

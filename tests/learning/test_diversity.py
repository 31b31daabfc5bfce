from __future__ import annotations

import itertools

import numpy as np
import pytest

from labelloop.learning.diversity import k_center, k_means_plus_plus

LINE = np.array([[0.0], [1.0], [10.0], [4.0], [10.1]])


def radius(embeddings: np.ndarray, chosen: object) -> float:
    """The largest distance from any row to its nearest chosen one."""
    gaps = np.linalg.norm(embeddings[:, None] - embeddings[np.asarray(chosen)][None], axis=2)
    return float(gaps.min(axis=1).max())


@pytest.mark.parametrize(
    ("embeddings", "budget", "covered", "expected"),
    [
        pytest.param(LINE, 3, None, [0, 4, 3], id="the farthest each time"),
        pytest.param(LINE, 9, None, [0, 4, 3, 1, 2], id="a budget above the number of rows"),
        pytest.param(LINE, 0, None, [], id="nothing"),
        pytest.param(LINE[:0], 3, None, [], id="of nothing"),
        pytest.param(LINE, 2, [[10.0]], [0, 3], id="away from what is labelled"),
        pytest.param(LINE, 2, [[0.0], [10.0]], [3, 1], id="away from two"),
        pytest.param(LINE, 1, np.empty((0, 1)), [0], id="nothing labelled yet"),
        pytest.param(np.zeros((4, 2)), 3, None, [0, 1, 2], id="copies: each once, in their order"),
    ],
)
def test_k_center(embeddings: np.ndarray, budget: int, covered: object, expected: list[int]) -> None:
    cover = None if covered is None else np.asarray(covered, float)
    assert k_center(embeddings, budget, covered=cover).tolist() == expected


def test_k_center_is_within_twice_the_best_radius() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        points = rng.normal(size=(9, 2))
        best = min(radius(points, choice) for choice in itertools.combinations(range(9), 3))
        assert radius(points, k_center(points, 3)) <= 2 * best + 1e-12


def test_a_beginning_of_the_choice_is_the_choice_of_a_smaller_budget() -> None:
    points = np.random.default_rng(4).normal(size=(50, 3))
    for choose in (k_center, k_means_plus_plus):
        assert choose(points, 20)[:7].tolist() == choose(points, 7).tolist()


@pytest.mark.parametrize("choose", [k_center, k_means_plus_plus])
def test_rows_are_chosen_once(choose: object) -> None:
    points = np.random.default_rng(5).integers(0, 2, (30, 2)).astype(float)  # many copies
    chosen = choose(points, 30)  # type: ignore[operator]
    assert sorted(chosen.tolist()) == list(range(30))
    assert len({tuple(row) for row in points[chosen[:4]]}) == 4  # every place before any copy


def test_k_means_plus_plus_does_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(6)
    points, ids = rng.normal(size=(40, 3)), rng.permutation(1000)[:40]
    weights = rng.random(40)
    turned = np.concatenate([[0], 1 + rng.permutation(39)])  # row 0, the most uncertain, stays
    chosen = ids[k_means_plus_plus(points, 12, weights=weights, keys=ids)]
    again = ids[turned][k_means_plus_plus(points[turned], 12, weights=weights[turned], keys=ids[turned])]
    assert chosen.tolist() == again.tolist()
    assert chosen.tolist() != ids[k_means_plus_plus(points, 12, weights=weights, keys=ids, seed=1)].tolist()


def test_k_means_plus_plus_draws_in_proportion_to_weight_and_squared_distance() -> None:
    # second draw after row 0: masses 1 * 4, 3 * 4, 1 * 16 of 32
    points, weights = np.array([[0.0], [2.0], [-2.0], [4.0]]), np.array([1.0, 1.0, 3.0, 1.0])
    second = [int(k_means_plus_plus(points, 2, weights=weights, seed=seed)[1]) for seed in range(4000)]
    share = np.bincount(second, minlength=4) / len(second)
    np.testing.assert_allclose(share, [0, 1 / 8, 3 / 8, 1 / 2], atol=0.03)  # four standard errors


def test_each_draw_is_independent_of_the_one_before() -> None:
    points = np.array([0.0, 1.0, -1.5, 3.0, 3.5])
    expected = np.zeros((5, 5))  # of the second and third row, by the definition
    for second in range(1, 5):
        mass = np.minimum(points**2, (points - points[second]) ** 2)
        expected[second] = points[second] ** 2 / (points**2).sum() * mass / mass.sum()
    drawn = np.zeros((5, 5))
    for seed in range(4000):
        _, second, third = k_means_plus_plus(points[:, None], 3, seed=seed)
        drawn[second, third] += 1 / 4000
    np.testing.assert_allclose(drawn, expected, atol=0.018)  # three standard errors; one number for all draws: 0.027


def test_weights_of_zero_leave_rows_to_the_end() -> None:
    chosen = k_means_plus_plus(LINE, 5, weights=np.array([1.0, 0, 1, 0, 1]))
    assert set(chosen[:3].tolist()) == {0, 2, 4}
    assert sorted(chosen.tolist()) == [0, 1, 2, 3, 4]

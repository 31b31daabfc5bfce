from __future__ import annotations

import numpy as np
import pytest

from labelloop.core.errors import LabelloopError
from labelloop.learning.acquisition import Acquisition
from labelloop.learning.pool import Observation, Pool, pool_of
from labelloop.learning.select import (
    Diversity,
    Ranking,
    diversified,
    rank,
    shortlist,
)

ENTROPY = Acquisition("entropy", "mean")


def pool(*rows: tuple[int, tuple[float, ...], float]) -> Pool:
    return pool_of(Observation(task, scores, ("car",) * len(scores), hidden) for task, scores, hidden in rows)


def many(found: int, empty: int, *, seed: int = 0) -> Pool:
    rng = np.random.default_rng(seed)
    rows = [(task, tuple(rng.uniform(0.3, 1, rng.integers(1, 5))), 0.1) for task in range(found)]
    rows += [(found + task, (), float(rng.uniform(0, 0.3))) for task in range(empty)]
    return pool(*(rows[i] for i in rng.permutation(len(rows))))


def ranking(found: int, empty: int, quota: float) -> Ranking:
    return Ranking(np.arange(found), np.arange(found, found + empty), quota, np.zeros(found + empty))


def test_order_of_a_hand_made_pool() -> None:
    seen = pool(
        (10, (0.95,), 0.2),
        (11, (), 0.01),
        (12, (0.5,), 0.0),
        (13, (), 0.29),
        (14, (0.7, 0.9), 0.1),
    )
    ranked = rank(seen, ENTROPY, empty_quota=0.4)
    assert seen.task_ids[ranked.found].tolist() == [12, 14, 10]
    assert seen.task_ids[ranked.empty].tolist() == [13, 11]
    # dues of the found: 0.83, 2.5, 4.17; of the empty: 1.25, 3.75
    assert seen.task_ids[ranked.order()].tolist() == [12, 13, 14, 11, 10]


@pytest.mark.parametrize(
    ("found", "empty", "quota", "places"),
    [
        pytest.param(90, 10, 0.1, list(range(5, 100, 10)), id="a tenth: the middle of each ten"),
        pytest.param(5, 3, 0.0, [5, 6, 7], id="no quota: last"),
        pytest.param(3, 3, 0.5, [1, 3, 5], id="half"),
        pytest.param(2, 4, 0.1, [2, 3, 4, 5], id="the found are used up first"),
        pytest.param(40, 1, 0.1, [5], id="the empty are used up first"),
        pytest.param(0, 3, 0.1, [0, 1, 2], id="only empty ones"),
        pytest.param(3, 0, 0.1, [], id="only found ones"),
        pytest.param(0, 0, 0.1, [], id="nothing"),
    ],
)
def test_places_of_pictures_without_findings(found: int, empty: int, quota: float, places: list[int]) -> None:
    ranked = ranking(found, empty, quota)
    assert np.flatnonzero(ranked.slots()).tolist() == places
    assert np.flatnonzero(ranked.order() >= found).tolist() == places


@pytest.mark.parametrize("quota", [0.05, 0.1, 1 / 3, 0.7])
def test_any_beginning_of_the_order_holds_the_quota(quota: float) -> None:
    slots = ranking(1000, 1000, quota).slots()
    length = np.arange(1, 1001)
    assert (np.abs(np.cumsum(slots[:1000]) - quota * length) <= 1).all()


def test_the_order_is_a_permutation_that_keeps_each_stratum_in_order() -> None:
    seen = many(50, 20)
    ranked = rank(seen, ENTROPY)
    order = ranked.order()
    assert sorted(order.tolist()) == list(range(70))
    is_empty = seen.counts[order] == 0
    assert (np.diff(ranked.uncertainty[order[~is_empty]]) <= 0).all()
    assert (np.diff(seen.hidden[order[is_empty]]) <= 0).all()


@pytest.mark.parametrize("strategy", ["random", "least_confidence", "margin", "entropy"])
def test_the_order_of_import_makes_no_difference(strategy: str) -> None:
    rng = np.random.default_rng(8)
    # few different scores: many ties
    rows = [(task, tuple(rng.choice([0.4, 0.6], rng.integers(0, 3))), 0.1) for task in range(60)]
    acquisition = Acquisition(strategy, "max", seed=3)
    orders = []
    for turn in (range(60), rng.permutation(60)):
        seen = pool(*(rows[i] for i in turn))
        orders.append(seen.task_ids[rank(seen, acquisition).order()].tolist())
    assert orders[0] == orders[1]
    assert orders[0] != sorted(orders[0])


def test_ties_do_not_follow_the_order_of_import() -> None:
    seen = pool(*((task, (0.5,), 0.0) for task in range(100)))
    order = seen.task_ids[rank(seen, ENTROPY).order()]
    assert abs(np.corrcoef(order, np.arange(100))[0, 1]) < 0.3


def test_random_knows_no_strata() -> None:
    seen = many(10, 90)
    ranked = rank(seen, Acquisition("random"))
    assert len(ranked.empty) == 0
    assert (seen.counts[ranked.order()[:20]] == 0).sum() > 10  # as in the pool, not the quota


@pytest.mark.parametrize("seed", range(5))
def test_planted_pictures_come_first(seed: int) -> None:
    rng = np.random.default_rng(seed)
    planted = set(rng.choice(1000, 50, replace=False).tolist())
    rows = []
    for task in range(1000):
        scores = rng.beta(30, 2, rng.integers(1, 8))  # a model that is sure: 0.94 on average
        if task in planted:
            scores[: rng.integers(1, 3)] = rng.uniform(0.4, 0.6)
        rows.append((task, tuple(scores), 0.0))
    seen = pool(*rows)

    def hits(acquisition: Acquisition) -> int:
        return len(planted & set(seen.task_ids[rank(seen, acquisition).order()[:50]].tolist()))

    # the ranges that learning/acquisition states
    assert hits(Acquisition("entropy", "max")) == 50
    assert 38 <= hits(Acquisition("entropy", "top-k")) <= 40
    assert 16 <= hits(Acquisition("entropy", "sum")) <= 19
    assert hits(Acquisition("margin", "max")) == 50
    assert hits(Acquisition("margin", "top-k")) >= 49
    assert hits(Acquisition("margin", "sum")) == 50
    assert hits(Acquisition("random")) <= 8  # 2.5 expected


def clusters(count: int, size: int) -> tuple[Pool, np.ndarray, np.ndarray]:
    """A pool of `count` scenes of `size` pictures, its embeddings and their scenes; uncertainty differs by scene, so
    that the most uncertain pictures are all of one scene, as shots of one burst are."""
    rng = np.random.default_rng(21)
    scene = np.repeat(np.arange(count), size)
    scores = 0.5 + 0.01 * scene + rng.uniform(0, 0.005, len(scene))
    centres = rng.normal(scale=10, size=(count, 8))
    embeddings = centres[scene] + rng.normal(scale=0.3, size=(len(scene), 8))
    return pool(*((task, (float(score),), 0.0) for task, score in enumerate(scores))), embeddings, scene


@pytest.mark.parametrize(("method", "at_least"), [("k-center", 10), ("k-means++", 9)])
def test_diversity_covers_planted_scenes_where_the_top_shows_one(method: str, at_least: int) -> None:
    seen, embeddings, scene = clusters(10, 20)
    ranked = rank(seen, ENTROPY)
    assert len(set(scene[ranked.order()[:10]])) == 1
    diversity = Diversity(10, method=method, pool_factor=20)
    wide = shortlist(ranked, diversity)
    order = diversified(ranked, diversity, embeddings=embeddings[wide], keys=seen.task_ids).order()
    assert len(set(scene[order[:10]])) >= at_least
    assert order[0] == ranked.order()[0]
    assert sorted(order.tolist()) == list(range(200))


def test_a_small_pool_factor_keeps_to_the_uncertain() -> None:
    seen, embeddings, scene = clusters(10, 20)
    ranked = rank(seen, ENTROPY)
    diversity = Diversity(10, pool_factor=4)
    near = shortlist(ranked, diversity)
    assert near.tolist() == ranked.order()[:40].tolist()
    order = diversified(ranked, diversity, embeddings=embeddings[near], keys=seen.task_ids).order()
    assert set(order[:10]) <= set(near.tolist())
    assert len(set(scene[order[:10]])) == 2  # all the scenes that forty pictures show
    rest = ranked.uncertainty[order[10:]]
    assert (np.diff(rest) <= 0).all()


def test_scenes_that_people_have_labelled_come_later() -> None:
    seen, embeddings, scene = clusters(10, 20)
    ranked = rank(seen, ENTROPY)
    diversity = Diversity(5, pool_factor=40)
    covered = embeddings[scene < 5]
    wide = shortlist(ranked, diversity)
    order = diversified(ranked, diversity, embeddings=embeddings[wide], keys=seen.task_ids, covered=covered).order()
    assert sorted(scene[order[:5]].tolist()) == [5, 6, 7, 8, 9]


@pytest.mark.parametrize("method", ["k-center", "k-means++"])
@pytest.mark.parametrize(("found", "empty"), [(90, 30), (3, 60), (60, 3), (0, 9), (9, 0), (1, 1)])
def test_diversity_keeps_the_quota(method: str, found: int, empty: int) -> None:
    seen = many(found, empty)
    rng = np.random.default_rng(2)
    ranked = rank(seen, ENTROPY)
    diversity = Diversity(20, method=method, pool_factor=2)
    listed = shortlist(ranked, diversity)
    chosen = diversified(ranked, diversity, embeddings=rng.normal(size=(len(listed), 4)), keys=seen.task_ids)
    assert (chosen.slots() == ranked.slots()).all()
    first = chosen.order()[:20]
    assert set(first) <= set(listed.tolist())
    assert sorted(chosen.order().tolist()) == list(range(found + empty))


def test_k_means_plus_plus_is_given_uncertainty_and_tasks() -> None:
    def front(first_id: int) -> np.ndarray:
        scores = [0.5 if task % 2 else 1.0 for task in range(40)]  # every other picture is certain
        seen = pool(*((first_id + task, (score,), 0.0) for task, score in enumerate(scores)))
        ranked = rank(seen, Acquisition("entropy", seed=4))
        diversity = Diversity(10, method="k-means++")
        listed = shortlist(ranked, diversity)
        places = np.eye(40)[: len(listed)]  # equally far from each other
        order = diversified(ranked, diversity, embeddings=places, keys=seen.task_ids).order()
        # positions in the ranking, which are the same rows of `places` for any ids
        return np.array([listed.tolist().index(position) for position in order[:10]])

    assert (front(0) < 20).all()
    assert front(0).tolist() != front(1000).tolist()
    assert sorted(front(1000).tolist()) != list(range(10))


def test_embeddings_must_belong_to_the_shortlist() -> None:
    seen = many(20, 2)
    with pytest.raises(ValueError, match="3 embeddings for a shortlist"):
        diversified(rank(seen, ENTROPY), Diversity(4), embeddings=np.zeros((3, 2)), keys=seen.task_ids)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(lambda: Diversity(0), "at least 1", id="no budget"),
        pytest.param(lambda: Diversity(5, pool_factor=0.5), "at least 1", id="pool smaller than budget"),
        pytest.param(lambda: Diversity(5, method="kcenter"), "'k-center'", id="unknown method"),
        pytest.param(lambda: rank(many(1, 1), ENTROPY, empty_quota=1.0), "below 1", id="quota of all"),
    ],
)
def test_what_cannot_be_says_what_can(call: object, message: str) -> None:
    with pytest.raises(LabelloopError, match=message):
        call()  # type: ignore[operator]

"""Logistic regression against scikit-learn's, whose loss and way down it has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("scipy", reason="needs the extra labelloop[train]")

from scipy.sparse import csr_array

from labelloop.learning.trainers.descent import lowest
from labelloop.learning.trainers.logistic import NEVER, Strengths, fit, probabilities

ROWS, WIDTH = 60, 12


def rows_of(*, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH))


def exclusive(classes: int, rows: np.ndarray) -> np.ndarray:
    """The first class three times as often as it would be."""
    scores = rows[:, :classes] + np.array([1.5, *[0.0] * (classes - 1)])
    return np.eye(classes, dtype=bool)[scores.argmax(axis=1)]


def independent(classes: int, rows: np.ndarray) -> np.ndarray:
    return rows[:, :classes] + 0.5 * rows[:, -1:] > 0.3


def only(rows: Any, truth: np.ndarray, *, strength: float, several: bool, balanced: bool = False) -> Any:
    return fit(
        rows,
        truth,
        Strengths((strength,), enough=10**6, balanced=balanced),
        several=several,
        seed=0,
        check=lambda: None,
    )


@pytest.mark.parametrize("sparse", [False, True], ids=["array", "sparse"])
@pytest.mark.parametrize("balanced", [False, True], ids=["as they come", "balanced"])
@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("several", [False, True], ids=["exclusive", "several"])
@pytest.mark.parametrize("strength", [0.01, 1.0, 100.0])
def test_the_same_probabilities_as_scikit_learn(
    several: bool, classes: int, balanced: bool, sparse: bool, strength: float
) -> None:
    linear_model = pytest.importorskip("sklearn.linear_model", reason="needs the extra labelloop[dev]")
    rows = np.where(np.abs(rows_of()) > 0.5, rows_of(), 0.0)
    truth = (independent if several else exclusive)(classes, rows)
    found = only(csr_array(rows) if sparse else rows, truth, strength=strength, several=several, balanced=balanced)
    said = probabilities(rows, found.weights, found.intercepts, several=several)
    theirs = linear_model.LogisticRegression(
        C=strength, max_iter=2000, tol=1e-8, class_weight="balanced" if balanced else None
    )
    if several:
        expected = np.stack([theirs.fit(rows, column).predict_proba(rows)[:, 1] for column in truth.T], axis=1)
    else:
        expected = theirs.fit(rows, truth.argmax(axis=1)).predict_proba(rows)
    assert said == pytest.approx(expected, abs=1e-2), "ours stops where the slope is below 1e-4"


@pytest.mark.parametrize("several", [False, True], ids=["exclusive", "several"])
def test_labels_that_nobody_gave_are_never_said(several: bool) -> None:
    rows = rows_of()
    truth = np.concatenate([exclusive(2, rows), np.zeros((ROWS, 1), bool)], axis=1)
    found = only(rows, truth, strength=1.0, several=several)
    assert found.intercepts[2] == NEVER
    assert probabilities(rows, found.weights, found.intercepts, several=several)[:, 2].max() < 1e-9


def test_a_label_that_is_always_true_is_always_said() -> None:
    rows = rows_of()
    truth = np.concatenate([independent(1, rows), np.ones((ROWS, 1), bool)], axis=1)
    found = only(rows, truth, strength=1.0, several=True)
    assert not found.weights[1].any()
    assert probabilities(rows, found.weights, found.intercepts, several=True)[:, 1].min() > 1 - 1e-9


def test_the_strength_is_the_best_of_those_that_are_tried() -> None:
    """Weights that may not grow see nothing in small numbers."""
    rows = rows_of()
    checked: list[None] = []
    found = fit(
        0.1 * rows,
        independent(2, rows),
        Strengths((1e-4, 100.0)),
        several=True,
        seed=0,
        check=lambda: checked.append(None),
    )
    assert (found.strength, len(checked)) == (100.0, 6)
    assert found.score is not None
    assert found.score > 0.8


def test_the_way_down_ends_where_scipy_s_does() -> None:
    """A long narrow valley: Rosenbrock's function in ten numbers."""
    optimize = pytest.importorskip("scipy.optimize", reason="needs the extra labelloop[train]")
    begin = np.full(10, -1.2)

    def valley(place: np.ndarray) -> tuple[float, np.ndarray]:
        return float(optimize.rosen(place)), optimize.rosen_der(place)

    theirs = optimize.minimize(valley, begin, jac=True, method="L-BFGS-B")
    assert valley(lowest(valley, begin, most_steps=500))[0] < 1e-8
    assert lowest(valley, begin, most_steps=500) == pytest.approx(theirs.x, abs=1e-3)
    assert (lowest(valley, begin, most_steps=0) == begin).all()

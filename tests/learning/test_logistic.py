"""Logistic regression: which labels are a question, and how strong weights may be."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="needs the extra labelloop[train]")

from labelloop.learning.trainers.logistic import NEVER, Fitted, Strengths, fit, probabilities

ROWS, WIDTH = 60, 12


def rows_of(*, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(ROWS, WIDTH))


def exclusive(classes: int, rows: np.ndarray) -> np.ndarray:
    """The first class three times as often as it would be."""
    scores = rows[:, :classes] + np.array([1.5, *[0.0] * (classes - 1)])
    return np.eye(classes, dtype=bool)[scores.argmax(axis=1)]


def independent(classes: int, rows: np.ndarray) -> np.ndarray:
    return rows[:, :classes] + 0.5 * rows[:, -1:] > 0.3


def only(rows: np.ndarray, truth: np.ndarray, *, several: bool) -> Fitted:
    return fit(rows, truth, Strengths((1.0,), enough=10**6), several=several, seed=0, check=lambda: None)


@pytest.mark.parametrize("several", [False, True], ids=["exclusive", "several"])
def test_labels_that_nobody_gave_are_never_said(several: bool) -> None:
    rows = rows_of()
    truth = np.concatenate([exclusive(2, rows), np.zeros((ROWS, 1), bool)], axis=1)
    found = only(rows, truth, several=several)
    assert found.intercepts[2] == NEVER
    assert probabilities(rows, found.weights, found.intercepts, several=several)[:, 2].max() < 1e-9


def test_a_label_that_is_always_true_is_always_said() -> None:
    rows = rows_of()
    truth = np.concatenate([independent(1, rows), np.ones((ROWS, 1), bool)], axis=1)
    found = only(rows, truth, several=True)
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

"""Logistic regression over rows of features, by scikit-learn: what `text` and `classify` have in common."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.learning.choices import sampled
from labelloop.learning.detections import Flags, Floats

NEVER = -30.0
"""An intercept whose probability is 1e-13."""


class Strengths(msgspec.Struct, frozen=True):
    """`tried` are values for the inverse of the regularisation (scikit-learn's C), the best of which is found by
    `folds`-fold cross-validation when there are `enough` rows; else the middle one is taken. With `balanced` rare
    labels weigh as much as common ones."""

    tried: tuple[float, ...] = (1.0, 10.0, 100.0)
    folds: int = 3
    enough: int = 30
    balanced: bool = False


class Fitted(msgspec.Struct, frozen=True):
    """`weights` [c, w], `intercepts` [c]. `strength` was best, with `score` (macro-F1, cross-validated; None where
    there were too few rows)."""

    weights: Floats
    intercepts: Floats
    strength: float
    score: float | None


def fit(
    rows: Any,
    truth: Flags,
    strengths: Strengths,
    *,
    several: bool,
    seed: int,
    check: Callable[[], object],
    groups: NDArray[np.integer[Any]] | None = None,
) -> Fitted:
    """Fit `rows` [n, w] (an array or a sparse matrix) to `truth` [n, c]: one regression for each label where `several`
    may be true, else one over all labels. `check` is called between the fits and may raise. Rows of one of the
    `groups` [n] (numbers 0..g-1: a picture and its mirror image) are never on both sides of the cross-validation."""
    groups = np.arange(len(truth)) if groups is None else groups
    fold = (np.random.default_rng(seed).permutation(int(groups.max()) + 1) % strengths.folds)[groups]
    scores = _tried(rows, truth, strengths, several=several, fold=fold, check=check)
    strength = (
        max(scores, key=lambda one: scores[one]) if scores else sorted(strengths.tried)[len(strengths.tried) // 2]
    )
    weights, intercepts = _fit(rows, truth, strength, several=several, balanced=strengths.balanced)
    return Fitted(weights, intercepts, strength, scores.get(strength))


def probabilities(rows: Any, weights: Floats, intercepts: Floats, *, several: bool) -> Floats:
    """What a fitted regression says of `rows` [n, w]: [n, c]."""
    raw = np.asarray(rows @ weights.T) + intercepts
    if several:
        return np.asarray(0.5 * (1.0 + np.tanh(0.5 * raw)))
    powers = np.exp(raw - raw.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def _fit(rows: Any, truth: Flags, strength: float, *, several: bool, balanced: bool) -> tuple[Floats, Floats]:
    from sklearn.linear_model import LogisticRegression

    regression = LogisticRegression(C=strength, max_iter=200, class_weight="balanced" if balanced else None)
    with warnings.catch_warnings():  # not yet settled after 200 steps is good enough to choose by
        warnings.simplefilter("ignore")
        if several:
            found = [_one(regression, rows, column) for column in truth.T]
            return np.stack([one[0] for one in found]), np.array([one[1] for one in found])
        fitted = regression.fit(rows, truth.argmax(axis=1))
    weights = np.zeros((truth.shape[1], rows.shape[1]))
    intercepts = np.full(truth.shape[1], NEVER)  # of labels that are not in these rows
    known = fitted.classes_.astype(int)
    if len(known) == 2:  # scikit-learn keeps one row for two classes
        weights[known[1]], intercepts[known] = fitted.coef_[0], (0.0, fitted.intercept_[0])
    else:
        weights[known], intercepts[known] = fitted.coef_, fitted.intercept_
    return weights, intercepts


def _one(regression: Any, rows: Any, truth: NDArray[np.bool_]) -> tuple[Floats, float]:
    """Weights and intercept of one label; one that is the same for all rows is not a question."""
    if truth.all() or not truth.any():
        return np.zeros(rows.shape[1]), -NEVER if truth.all() else NEVER
    fitted = regression.fit(rows, truth)
    return fitted.coef_[0].copy(), float(fitted.intercept_[0])


def _tried(
    rows: Any,
    truth: Flags,
    strengths: Strengths,
    *,
    several: bool,
    fold: NDArray[np.integer[Any]],
    check: Callable[[], object],
) -> dict[float, float]:
    """Macro-F1 of each strength by cross-validation; nothing where there are too few rows."""
    count = len(truth)
    if count < strengths.enough or len(strengths.tried) < 2:
        return {}
    found = {}
    for strength in strengths.tried:
        said = np.zeros_like(truth)
        for number in range(strengths.folds):
            check()
            part, rest = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if len(np.unique(truth[part], axis=0)) < 2:
                continue
            weights, intercepts = _fit(rows[part], truth[part], strength, several=several, balanced=strengths.balanced)
            raw = np.asarray(rows[rest] @ weights.T) + intercepts
            said[rest] = raw > 0 if several else raw == raw.max(axis=1, keepdims=True)
        found[strength] = float(sampled(truth, said, "macro-F1", np.ones((1, count)))[0])
    return found

"""Logistic regression over rows of features: what `text` and `classify` have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.learning.choices import sampled
from labelloop.learning.detections import Flags, Floats
from labelloop.learning.trainers.descent import lowest

NEVER = -30.0
"""An intercept whose probability is 1e-13."""
MOST_STEPS = 200


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
    """Weights [c, w] and intercepts [c]. A label that is never (or always) true in these rows is not a question."""
    open_question = truth.any(axis=0) & ~truth.all(axis=0)
    weights = np.zeros((truth.shape[1], rows.shape[1]))
    intercepts = np.where(truth.all(axis=0), -NEVER, NEVER)
    asked = truth[:, open_question].astype(np.float64)
    if asked.size:
        share = _shares(asked, several=several) if balanced else np.ones_like(asked)
        exclusive = not several and asked.shape[1] > 2
        # of two labels that exclude each other one regression says both
        solved = asked[:, 1:] if not several and asked.shape[1] == 2 else asked
        found = _settled(rows, solved, share[:, -solved.shape[1] :], strength, exclusive=exclusive)
        if len(found[0]) < asked.shape[1]:
            found = np.concatenate([np.zeros_like(found[0]), found[0]]), np.concatenate([[0.0], found[1]])
        weights[open_question], intercepts[open_question] = found
    return weights, intercepts


def _shares(truth: Floats, *, several: bool) -> Floats:
    """What each row [n] counts for each label [c], so that rare labels weigh as much as common ones."""
    count = truth.sum(axis=0)
    if several:
        return np.asarray(np.where(truth > 0, len(truth) / (2 * count), len(truth) / (2 * (len(truth) - count))))
    each = (truth * (len(truth) / (truth.shape[1] * count))).sum(axis=1)
    return np.repeat(each[:, None], truth.shape[1], axis=1)


def _settled(rows: Any, truth: Floats, share: Floats, strength: float, *, exclusive: bool) -> tuple[Floats, Floats]:
    """The weights [c, w] and intercepts [c] that minimise strength * sum(share * loss) + |weights|^2 / 2.

    Loss and limits are those of scikit-learn's LogisticRegression, with which tests compare it. Importing that takes
    several times as long as all the fits of a run together.
    """
    labels, width = truth.shape[1], rows.shape[1]
    by_column = rows.T
    scale = strength * len(truth)

    def loss_and_slope(flat: Floats) -> tuple[float, Floats]:
        parameters = flat.reshape(labels, width + 1)
        weights = parameters[:, :width]
        raw = np.asarray(rows @ weights.T) + parameters[:, width]
        loss, said = _softmax(raw, truth, share) if exclusive else _logistic(raw, truth, share)
        wrong = share * (said - truth) / len(truth)
        slope = np.empty_like(parameters)
        slope[:, :width] = np.asarray(by_column @ wrong).T + weights / scale
        slope[:, width] = wrong.sum(axis=0)
        return loss / len(truth) + 0.5 * float((weights * weights).sum()) / scale, slope.ravel()

    found = lowest(loss_and_slope, np.zeros(labels * (width + 1)), most_steps=MOST_STEPS)
    parts = found.reshape(labels, width + 1)  # not yet settled after so many steps is good enough to choose by
    return parts[:, :width].copy(), parts[:, width].copy()


def _softmax(raw: Floats, truth: Floats, share: Floats) -> tuple[float, Floats]:
    """Loss of labels that exclude each other, and what is said of each [n, c]."""
    raw = raw - raw.max(axis=1, keepdims=True)
    powers = np.exp(raw)
    total = powers.sum(axis=1, keepdims=True)
    return float((share[:, :1] * (np.log(total) - (raw * truth).sum(axis=1, keepdims=True))).sum()), powers / total


def _logistic(raw: Floats, truth: Floats, share: Floats) -> tuple[float, Floats]:
    """The same of labels that are questions of their own."""
    loss = float((share * (np.logaddexp(0.0, raw) - truth * raw)).sum())
    return loss, 0.5 * (1.0 + np.tanh(0.5 * raw))


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

"""The trainer `text`: what people chose for texts -> TF-IDF and logistic regression, in under a second.

Everything is learned anew each time: there is nothing to gain by going on from an earlier model. How much a weight may
grow is found by cross-validation on the training texts, where there are enough of them.
"""

from __future__ import annotations

import time
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.engines.text_file import Reader, TextModel, features
from labelloop.learning.choices import flags_of, sampled
from labelloop.learning.detections import Flags, Floats
from labelloop.learning.manifest import Item, decode
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Trained,
    TrainerFailed,
    TrainRequest,
    read_options,
    replace_file,
)

MODEL = "model.npz"
WITNESSES = 20
"""Texts on which the written file is compared with what was trained."""
LARGEST_GAP = 1e-4


class TextOptions(msgspec.Struct, frozen=True):
    """`strengths` are tried for the inverse of the regularisation (scikit-learn's C) by `folds`-fold cross-validation
    when there are `enough` texts, else the middle one is taken. `most_features` keeps the most frequent ones. With
    `balanced` rare labels weigh as much as common ones."""

    strengths: tuple[float, ...] = (1.0, 10.0, 100.0)
    folds: int = 3
    enough: int = 30
    most_features: int = 50_000
    balanced: bool = False


class TextTrainer:
    name: ClassVar[str] = "text"

    def refuses(self, request: TrainRequest) -> str | None:
        """Also where fewer than two labels were ever chosen: then there is nothing to tell apart."""
        if find_spec("sklearn") is None:
            return "scikit-learn is not installed: pip install 'labelloop[train]'."
        manifest = decode((request.data / "manifest.json").read_bytes())
        if (manifest.learns, manifest.reads) != ("choices", "texts"):
            return "It learns what people choose for texts: <Choices> on <Text> or <HyperText>."
        seen = sorted({item.said for item in manifest.on("train")})
        if len(seen) < 2:
            only = f"always the same: {', '.join(seen[0]) or 'nothing'}" if seen else "nothing yet"
            return f"There is nothing to tell apart, people have chosen {only}. Label some others."
        return None

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Raises TrainerFailed when the file that is written does not say what was trained."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(1):  # the vectors are short: threads that wait for each other take longer than one
            return self._train(request, report)

    def _train(self, request: TrainRequest, report: Report) -> Trained:
        began = time.monotonic()
        options = read_options(request.options, TextOptions, trainer=self.name)
        manifest = decode((request.data / "manifest.json").read_bytes())
        items = manifest.on("train")
        labels = tuple(label for label in request.labels if any(label in item.said for item in items))
        report(Progress(step=0, message=f"{len(items)} texts, {len(labels)} labels"))
        texts, truth = _Counted(items, options), flags_of([item.said for item in items], labels)
        scores = _tried(texts, truth, options, several=manifest.several, report=report, seed=request.seed)
        strength = max(scores, key=lambda one: scores[one]) if scores else _middle(options.strengths)
        fitted = texts.fit(truth, strength, several=manifest.several, options=options)
        model = texts.model(labels, fitted, several=manifest.several)
        path = request.out / MODEL
        replace_file(path, model.write)
        gap = _gap(path, texts, fitted, items[:WITNESSES])
        seconds = time.monotonic() - began
        metrics = {"seconds": seconds, "strength": strength, "features": float(len(model.words)), "parity_score": gap}
        metrics |= {"cross_validated_macro_F1": scores[strength]} if scores else {}
        report(Progress(step=1, steps=1, seconds=seconds, metrics=metrics))
        card = ModelCard(
            name=request.base_card.name if request.base_card else self.name,
            engine="text",
            task="text",
            family="tf-idf",
            labels=labels,
            description="Trained by labelloop on the choices of a project.",
        )
        return Trained(path, card, metrics)


class _Fitted(msgspec.Struct, frozen=True):
    """`weights` [c, w], `intercepts` [c]; `probabilities` of rows, by scikit-learn."""

    weights: Floats
    intercepts: Floats
    probabilities: Any


class _Counted:
    """Texts as rows of TF-IDF [n, w]."""

    def __init__(self, items: tuple[Item, ...], options: TextOptions) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectoriser = TfidfVectorizer(
            analyzer=lambda text: list(features(text)),
            sublinear_tf=True,
            max_features=options.most_features,
            dtype=np.float64,
        )
        try:
            self.rows = self._vectoriser.fit_transform([item.text or "" for item in items])
        except ValueError as error:
            raise TrainerFailed(f"The texts have no words: {error}.", hint="Are they empty?") from error

    def of(self, items: tuple[Item, ...]) -> Any:
        return self._vectoriser.transform([item.text or "" for item in items])

    def fit(
        self, truth: Flags, strength: float, *, several: bool, options: TextOptions, part: NDArray[Any] | None = None
    ) -> _Fitted:
        """Logistic regression on all rows, or on `part` of them: one for each label where several may be true, else
        one over all labels."""
        from sklearn.linear_model import LogisticRegression

        rows, truth = (self.rows, truth) if part is None else (self.rows[part], truth[part])
        weight = "balanced" if options.balanced else None
        with warnings.catch_warnings():  # not yet settled after 200 steps is good enough to choose by
            warnings.simplefilter("ignore")
            if several:
                kinds = [
                    _one(LogisticRegression(C=strength, max_iter=200, class_weight=weight), rows, y) for y in truth.T
                ]
                weights = np.stack([one[0] for one in kinds])
                intercepts = np.array([one[1] for one in kinds])
                return _Fitted(weights, intercepts, lambda x: 1 / (1 + np.exp(-(x @ weights.T + intercepts))))
            fitted = LogisticRegression(C=strength, max_iter=200, class_weight=weight).fit(rows, truth.argmax(axis=1))
        weights = np.zeros((truth.shape[1], rows.shape[1]))
        intercepts = np.full(truth.shape[1], -30.0)  # a label that is not in this part never comes out
        known = fitted.classes_.astype(int)
        if len(known) == 2:  # scikit-learn keeps one row for two classes
            weights[known[1]], intercepts[known] = fitted.coef_[0], (0.0, fitted.intercept_[0])
        else:
            weights[known], intercepts[known] = fitted.coef_, fitted.intercept_
        return _Fitted(weights, intercepts, fitted.predict_proba)

    def model(self, labels: tuple[str, ...], fitted: _Fitted, *, several: bool) -> TextModel:
        words = tuple(self._vectoriser.get_feature_names_out().tolist())
        idf = np.asarray(self._vectoriser.idf_, np.float32)
        return TextModel(
            labels, several, words, idf, fitted.weights.astype(np.float32), fitted.intercepts.astype(np.float32)
        )


def _one(regression: Any, rows: Any, truth: NDArray[np.bool_]) -> tuple[NDArray[Any], float]:
    """Weights and intercept of one label; one that is the same for all texts is not a question."""
    if truth.all() or not truth.any():
        return np.zeros(rows.shape[1]), 30.0 if truth.all() else -30.0
    fitted = regression.fit(rows, truth)
    return fitted.coef_[0], float(fitted.intercept_[0])


def _tried(
    texts: _Counted, truth: Flags, options: TextOptions, *, several: bool, report: Report, seed: int
) -> dict[float, float]:
    """Macro-F1 of each strength by cross-validation; nothing where there are too few texts."""
    count = len(truth)
    if count < options.enough or len(options.strengths) < 2:
        return {}
    fold = np.random.default_rng(seed).permutation(count) % options.folds
    found = {}
    for strength in options.strengths:
        report(Progress(step=0, message=""))
        said = np.zeros_like(truth)
        for number in range(options.folds):
            part, rest = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
            if len(np.unique(truth[part], axis=0)) < 2:
                continue
            fitted = texts.fit(truth, strength, several=several, options=options, part=part)
            raw = np.asarray(texts.rows[rest] @ fitted.weights.T) + fitted.intercepts
            said[rest] = raw > 0 if several else raw == raw.max(axis=1, keepdims=True)
        found[strength] = float(sampled(truth, said, "macro-F1", np.ones((1, count)))[0])
    return found


def _middle(strengths: tuple[float, ...]) -> float:
    return sorted(strengths)[len(strengths) // 2]


def _gap(path: Path, texts: _Counted, fitted: _Fitted, items: tuple[Item, ...]) -> float:
    """The largest difference between what the file says and what scikit-learn says."""
    from labelloop.engines.text_file import read

    reader = Reader(read(path))
    said = np.array([reader.scores(item.text or "") for item in items])
    gap = float(np.abs(said - np.asarray(fitted.probabilities(texts.of(items)))).max())
    if not gap <= LARGEST_GAP:
        raise TrainerFailed(
            f"The file does not say what was trained: probabilities differ by {gap:.3g}.",
            hint="This is a fault of labelloop, or of this scikit-learn: please report it with both versions.",
        )
    return gap

"""The trainer `text`: what people chose for texts -> TF-IDF and logistic regression, in under a second.

Everything is learned anew each time: there is nothing to gain by going on from an earlier model. How much a weight may
grow is found by cross-validation on the training texts, where there are enough of them.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.core.extras import not_installed
from labelloop.engines.text_file import Reader, TextModel, features, read
from labelloop.learning.choices import flags_of
from labelloop.learning.manifest import Item, Manifest, decode
from labelloop.learning.trainers import logistic
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
    """`strengths`, `folds`, `enough` and `balanced` as in `logistic.Strengths`. `most_features` keeps the most frequent
    words and parts of words."""

    strengths: tuple[float, ...] = (1.0, 10.0, 100.0)
    folds: int = 3
    enough: int = 30
    balanced: bool = False
    most_features: int = 50_000


class TextTrainer:
    name: ClassVar[str] = "text"

    def refuses(self, request: TrainRequest) -> str | None:
        """Also where fewer than two answers were ever given: then there is nothing to tell apart."""
        if missing := not_installed("sklearn"):
            return missing
        manifest = decode((request.data / "manifest.json").read_bytes())
        if (manifest.learns, manifest.reads) != ("choices", "texts"):
            return "It learns what people choose for texts: <Choices> on <Text> or <HyperText>."
        return nothing_to_tell_apart(manifest)

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
        labels = labels_in(items, request.labels)
        report(Progress(step=0, message=f"{len(items)} texts, {len(labels)} labels"))
        vectoriser, rows = _counted(items, options)
        fitted = logistic.fit(
            rows,
            flags_of([item.said for item in items], labels),
            logistic.Strengths(options.strengths, options.folds, options.enough, options.balanced),
            several=manifest.several,
            seed=request.seed,
            check=lambda: report(Progress(step=0)),
        )
        model = _model(vectoriser, fitted, labels, several=manifest.several)
        path = request.out / MODEL
        replace_file(path, model.write)
        expected = logistic.probabilities(rows[:WITNESSES], fitted.weights, fitted.intercepts, several=manifest.several)
        metrics = metrics_of(fitted) | {
            "seconds": time.monotonic() - began,
            "features": float(len(model.words)),
            "parity_score": _gap(path, items[:WITNESSES], expected),
        }
        report(Progress(step=1, steps=1, seconds=metrics["seconds"], metrics=metrics))
        return Trained(path, _card(request, labels), metrics)


def nothing_to_tell_apart(manifest: Manifest) -> str | None:
    """Why nothing can be learned of these choices; None where something can."""
    seen = sorted({item.said for item in manifest.on("train")})
    if len(seen) > 1:
        return None
    only = f"always the same: {', '.join(seen[0]) or 'nothing'}" if seen else "nothing yet"
    return f"There is nothing to tell apart, people have chosen {only}. Label some others."


def labels_in(items: Sequence[Item], labels: Sequence[str]) -> tuple[str, ...]:
    """The labels that were ever chosen, in their order."""
    return tuple(label for label in labels if any(label in item.said for item in items))


def metrics_of(fitted: logistic.Fitted) -> dict[str, float]:
    found = {"strength": fitted.strength}
    return found if fitted.score is None else found | {"cross_validated_macro_F1": fitted.score}


def _counted(items: Sequence[Item], options: TextOptions) -> tuple[Any, Any]:
    """scikit-learn's vectoriser, and the texts as rows of TF-IDF [n, w]."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectoriser = TfidfVectorizer(
        analyzer=lambda text: list(features(text)), sublinear_tf=True, max_features=options.most_features
    )
    try:
        return vectoriser, vectoriser.fit_transform([item.text or "" for item in items])
    except ValueError as error:
        raise TrainerFailed(f"The texts have no words: {error}.", hint="Are they empty?") from error


def _model(vectoriser: Any, fitted: logistic.Fitted, labels: tuple[str, ...], *, several: bool) -> TextModel:
    words = tuple(vectoriser.get_feature_names_out().tolist())
    idf, weights, intercepts = (
        np.asarray(part, np.float32) for part in (vectoriser.idf_, fitted.weights, fitted.intercepts)
    )
    return TextModel(labels, several, words, idf, weights, intercepts)


def _card(request: TrainRequest, labels: tuple[str, ...]) -> ModelCard:
    return ModelCard(
        name=request.base_card.name if request.base_card else "text",
        engine="text",
        task="text",
        family="tf-idf",
        labels=labels,
        description="Trained by labelloop on the choices of a project.",
    )


def _gap(path: Path, items: Sequence[Item], expected: Any) -> float:
    """The largest difference between what the file says and what was trained."""
    reader = Reader(read(path))
    said = np.array([reader.scores(item.text or "") for item in items])
    gap = float(np.abs(said - expected).max())
    if not gap <= LARGEST_GAP:
        raise TrainerFailed(
            f"The file does not say what was trained: probabilities differ by {gap:.3g}.",
            hint="This is a fault of labelloop, or of this scikit-learn: please report it with both versions.",
        )
    return gap

"""The trainer `text`: what people chose for texts -> TF-IDF and logistic regression, in under a second.

Everything is learned anew each time: there is nothing to gain by going on from an earlier model. How much a weight may
grow is found by cross-validation on the training texts, where there are enough of them.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.core.extras import not_installed
from labelloop.engines.text_file import Reader, TextModel, features, read
from labelloop.learning.choices import flags_of
from labelloop.learning.detections import Floats
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
        if missing := not_installed("scipy"):
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
        known = counted(items, options)
        rows = known.rows
        fitted = logistic.fit(
            rows,
            flags_of([item.said for item in items], labels),
            logistic.Strengths(options.strengths, options.folds, options.enough, options.balanced),
            several=manifest.several,
            seed=request.seed,
            check=lambda: report(Progress(step=0)),
        )
        model = _model(known, fitted, labels, several=manifest.several)
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


class Rows(NamedTuple):
    """Texts as rows of TF-IDF [n, w], of length 1 each, and what they are made of: `words` in order, `idf` [w]."""

    rows: Any
    words: tuple[str, ...]
    idf: Floats


def counted(items: Sequence[Item], options: TextOptions) -> Rows:
    """The formulas are those of `engines/text_file`, with idf = ln((1 + n) / (1 + n_w)) + 1 of a word that n_w of n
    texts have, as scikit-learn reckons it. Of more words than `most_features` the most frequent ones are kept, in the
    order of the alphabet where they are as frequent as each other."""
    from scipy.sparse import csr_array

    counts, total = [Counter(features(item.text or "")) for item in items], Counter[str]()
    for one in counts:
        total.update(one)
    words = sorted(sorted(total, key=lambda word: (-total[word], word))[: options.most_features])
    if not words:
        raise TrainerFailed("The texts have no words.", hint="Are they empty?")
    column = {word: number for number, word in enumerate(words)}
    kept = [[(column[word], often) for word, often in one.items() if word in column] for one in counts]
    row = np.repeat(np.arange(len(items)), [len(pairs) for pairs in kept])
    at, often = np.array([pair for pairs in kept for pair in pairs], np.int64).T
    idf = np.log((1 + len(items)) / (1 + np.bincount(at, minlength=len(words)))) + 1
    values = (1 + np.log(often)) * idf[at]
    values /= np.sqrt(np.bincount(row, values * values, minlength=len(items)))[row]
    return Rows(csr_array((values, (row, at)), shape=(len(items), len(words))), tuple(words), idf)


def _model(known: Rows, fitted: logistic.Fitted, labels: tuple[str, ...], *, several: bool) -> TextModel:
    idf, weights, intercepts = (np.asarray(part, np.float32) for part in (known.idf, fitted.weights, fitted.intercepts))
    return TextModel(labels, several, known.words, idf, weights, intercepts)


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
            hint="This is a fault of labelloop: please report it with its version.",
        )
    return gap

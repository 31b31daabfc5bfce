"""Text classifiers that train in under a second: TF-IDF and logistic regression, run with NumPy alone."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.regions import Region, Size, Whole
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.text_file import Reader, features, read

DEFAULT_TOP_K = 10
FLOOR = 0.001
DIMENSIONS = 128
MAX_BATCH = 32


class TextEngine:
    """One loaded text classifier (`text_file` says what is in it). All methods may be called from several threads."""

    needs_file: ClassVar[bool] = True
    wants: Wants = "text"
    input_size: Size | None = None
    max_batch = MAX_BATCH
    parallel = 1  # a text takes a fraction of a millisecond, most of it in the interpreter

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """Complete `card` with the file's labels. Raises ModelError when the file is no text classifier, or the card
        names other classes."""
        model = read(_required(path, card))
        if card.labels and tuple(card.labels) != model.labels:
            raise ModelError(
                f"The card of {card.name} names other classes than the file, which has: {', '.join(model.labels)}.",
                hint="Leave the labels out; map names with predicted_values or a labels file.",
            )
        return msgspec.structs.replace(
            card, engine="text", task="text", family=card.family or "tf-idf", labels=model.labels
        )

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        del options
        self._reader = Reader(read(_required(path, card)))
        self.classes = self._reader.model.labels
        self._most = card.max_detections or DEFAULT_TOP_K
        self._floor = FLOOR if card.score_threshold is None else min(FLOOR, card.score_threshold)

    def prepare(self, text: str) -> str:
        return text

    def predict(self, batch: Sequence[str]) -> list[tuple[Region, ...]]:
        """The likeliest classes of each text, best first, as Whole regions."""
        return [self._regions(self._reader.scores(text)) for text in batch]

    def embed(self, batch: Sequence[str]) -> NDArray[np.float32]:
        """Vectors [n, 128] of length 1: the counted features of a text, each added to one place with a sign (Weinberger
        et al., Feature hashing for large scale multitask learning, 2009). Texts with common words are near."""
        rows = np.zeros((len(batch), DIMENSIONS), np.float32)
        for row, text in zip(rows, batch, strict=True):
            for feature in features(text):
                digest = zlib.crc32(feature.encode())
                row[digest % DIMENSIONS] += 1.0 if digest & 0x80000000 else -1.0
        return np.asarray(rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12), np.float32)

    def _regions(self, scores: NDArray[np.float64]) -> tuple[Region, ...]:
        order = np.argsort(-scores, kind="stable")[: self._most].tolist()
        kept = [(index, float(scores[index])) for index in order]
        return tuple(
            Region(Whole(), label=self.classes[index], score=score) for index, score in kept if score >= self._floor
        )


def _required(path: Path | None, card: ModelCard) -> Path:
    if path is None:
        raise ModelError(f"The model {card.name} has no file.", hint="Add one: labelloop models add FILE.npz")
    return path

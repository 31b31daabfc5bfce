"""A text classifier as one file: which words count, how much, and for which class. Data and nothing else: no pickle.

An .npz archive (a zip of .npy arrays, read with pickles forbidden):

    about       uint8, JSON: {"format": 1, "labels": [...], "several": false, "words": [...]}
    idf         float32 [w]     weight of each word (or part of one)
    weights     float32 [c, w]  of each class
    intercepts  float32 [c]
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.decoding import from_json
from labelloop.core.errors import ModelError

FORMAT = 1
MAX_UNPACKED = 2_000_000_000
"""Bytes: an archive can promise a thousand times its own size."""
LONGEST_TEXT = 100_000
"""Characters of a text that are read; what a text is about shows earlier."""
WORD_GRAMS = (1, 2)
PART_GRAMS = (3, 4)

Floats = NDArray[np.float32]
_WORD = re.compile(r"\w+")


def features(text: str) -> Iterator[str]:
    """What is counted in a text: words, pairs of words, and parts of words (three and four letters, with the border of
    the word as a space), which know misspelt and inflected words, and scripts that write no spaces. Case is ignored."""
    words = _WORD.findall(text[:LONGEST_TEXT].casefold())
    for length in WORD_GRAMS:
        yield from (" ".join(words[start : start + length]) for start in range(len(words) - length + 1))
    for word in words:
        bordered = f" {word} "
        for length in PART_GRAMS:
            yield from ("#" + bordered[start : start + length] for start in range(len(bordered) - length + 1))


class TextModel(msgspec.Struct, frozen=True):
    """TF-IDF and logistic regression (Salton and Buckley, Term-weighting approaches in automatic text retrieval, 1988):

    x_w = (1 + ln count_w) * idf_w, brought to length 1; scores = weights @ x + intercepts, as probabilities by the
    logistic function of each where `several` classes may be true at a time, else by softmax.
    """

    labels: tuple[str, ...]
    several: bool
    words: tuple[str, ...]
    idf: Floats
    weights: Floats
    intercepts: Floats

    def write(self, path: Path) -> None:
        """Write the file; the same model gives the same bytes."""
        about = {"format": FORMAT, "labels": self.labels, "several": self.several, "words": self.words}
        with path.open("wb") as file:  # numpy adds a suffix to a name, not to a file
            np.savez_compressed(
                file,
                about=np.frombuffer(msgspec.json.encode(about), np.uint8),
                idf=self.idf.astype(np.float32),
                weights=self.weights.astype(np.float32),
                intercepts=self.intercepts.astype(np.float32),
            )


class _About(msgspec.Struct, frozen=True):
    format: int
    labels: tuple[str, ...]
    several: bool
    words: tuple[str, ...]


def read(path: Path) -> TextModel:
    """The model in a file. Raises ModelError for a file that is no such model, is damaged, or contradicts itself."""
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > MAX_UNPACKED:
                raise ValueError("it would need more than 2 GB of memory")
        with np.load(path, allow_pickle=False) as arrays:
            about = from_json(arrays["about"].tobytes(), _About)
            parts = {name: np.asarray(arrays[name], np.float32) for name in ("idf", "weights", "intercepts")}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, msgspec.MsgspecError) as error:
        raise ModelError(
            f"{path.name} is no text classifier of labelloop: {error}.",
            hint="A scikit-learn pipeline in a pickle is code and is not read; see docs/engines.md for the format.",
        ) from error
    model = TextModel(about.labels, about.several, about.words, **parts)
    _check(path, about.format, model)
    return model


def _check(path: Path, number: int, model: TextModel) -> None:
    classes, words = len(model.labels), len(model.words)
    shapes: dict[str, tuple[Any, Any]] = {
        "idf": (model.idf.shape, (words,)),
        "weights": (model.weights.shape, (classes, words)),
        "intercepts": (model.intercepts.shape, (classes,)),
    }
    wrong = [
        f"{name} is {list(shape)} and not {list(right)}" for name, (shape, right) in shapes.items() if shape != right
    ]
    if number != FORMAT:
        wrong = [f"its format is {number}, and this release reads {FORMAT}"]
    elif not classes or len(set(model.labels)) < classes:
        wrong = ["its labels are missing or not different"]
    elif not wrong and not all(np.isfinite(part).all() for part in (model.idf, model.weights, model.intercepts)):
        wrong = ["some of its numbers are not finite"]
    if wrong:
        raise ModelError(f"The text classifier {path.name} cannot be used: {wrong[0]}.", hint="Train it again.")


class Reader:
    """A model ready to read texts; may be used from several threads."""

    def __init__(self, model: TextModel) -> None:
        self.model = model
        self._index = {word: index for index, word in enumerate(model.words)}
        self._by_word = np.ascontiguousarray(model.weights.T)  # a text's words are rows that lie together

    def scores(self, text: str) -> NDArray[np.float64]:
        """Probabilities [c] in [0, 1]. A text without a known word gets what the intercepts say."""
        counts = Counter(index for word in features(text) if (index := self._index.get(word)) is not None)
        at = np.fromiter(counts.keys(), np.intp, len(counts))
        tf = 1.0 + np.log(np.fromiter(counts.values(), np.float64, len(counts)))
        x = tf * self.model.idf[at]
        x /= max(float(np.linalg.norm(x)), 1e-12)
        raw = x @ self._by_word[at] + self.model.intercepts
        if self.model.several:
            return np.asarray(0.5 * (1.0 + np.tanh(0.5 * raw)), np.float64)
        powers = np.exp(raw - raw.max())
        return np.asarray(powers / powers.sum(), np.float64)

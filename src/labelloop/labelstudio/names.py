"""Finding the label that a model's class means, by any of the label's names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from labelloop.labelstudio.config import Label


def fold(name: str) -> str:
    """'Baseball_Bat' and 'baseball  bat' are one name."""
    return " ".join(name.replace("_", " ").split()).casefold()


class Names:
    """The labels of one control by each of their names, so that finding one does not read them all: with the 1,203
    classes of LVIS that is the difference between milliseconds and seconds. Of two labels with one name the first
    counts."""

    def __init__(self, labels: Sequence[Label]) -> None:
        self._own = _by_name((name, label) for label in labels for name in label.names)
        self._own_folded = _by_name((fold(name), label) for label in labels for name in label.names)
        predicted = [(name, label) for label in labels for name in label.predicted_values]
        self._predicted = _by_name(predicted)
        self._predicted_folded = _by_name((fold(name), label) for name, label in predicted)

    def __bool__(self) -> bool:
        return bool(self._own)

    def find(self, name: str, folded: str) -> Label | None:
        """The label that the class `name` means; `folded` is fold(name)."""
        return self._predicted.get(name) or self._predicted_folded.get(folded) or self.find_own(name, folded)

    def find_own(self, name: str, folded: str) -> Label | None:
        """The label that is called `name` itself."""
        return self._own.get(name) or self._own_folded.get(folded)


def _by_name(pairs: Iterable[tuple[str, Label]]) -> dict[str, Label]:
    found: dict[str, Label] = {}
    for name, label in pairs:
        found.setdefault(name, label)
    return found

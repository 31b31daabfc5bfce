"""What a model of the second generation may return instead of a list."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any


class PredictionValue:
    """What a model says about one task."""

    def __init__(
        self, result: Any = None, score: float | None = None, model_version: Any = None, **others: Any
    ) -> None:
        self.result = [] if result is None else result if isinstance(result, list) else [result]
        self.score = score
        self.model_version = model_version
        self.others = others

    def model_dump(self) -> dict[str, Any]:
        result = [item.model_dump() if hasattr(item, "model_dump") else item for item in self.result]
        version = None if self.model_version is None else str(self.model_version)
        return {**self.others, "result": result, "score": self.score, "model_version": version}

    dict = serialize = model_dump


class ModelResponse:
    """Predictions, one for each task in their order, and the version that made them. A task may have several, in a
    list."""

    def __init__(self, model_version: Any = None, predictions: Iterable[Any] = ()) -> None:
        self.model_version = None if model_version is None else str(model_version)
        self.predictions = [_value(prediction) for prediction in predictions]

    def has_model_version(self) -> bool:
        return bool(self.model_version)

    def update_predictions_version(self) -> None:
        """Give our version to the predictions that have none."""
        for prediction in _each(self.predictions):
            if not prediction.model_version:
                prediction.model_version = self.model_version

    def set_version(self, version: Any) -> None:
        """Ours from now on, and that of the predictions that have none."""
        self.model_version = str(version)
        self.update_predictions_version()

    def model_dump(self) -> dict[str, Any]:
        return {"model_version": self.model_version, "predictions": [_dumped(one) for one in self.predictions]}

    dict = serialize = model_dump


def _value(prediction: Any) -> Any:
    if isinstance(prediction, (list, tuple)):
        return [_value(one) for one in prediction]
    if prediction is None:
        return PredictionValue()
    return PredictionValue(**prediction) if isinstance(prediction, dict) else prediction


def _each(predictions: Iterable[Any]) -> Iterator[Any]:
    for prediction in predictions:
        yield from prediction if isinstance(prediction, list) else [prediction]


def _dumped(prediction: Any) -> Any:
    return [one.model_dump() for one in prediction] if isinstance(prediction, list) else prediction.model_dump()

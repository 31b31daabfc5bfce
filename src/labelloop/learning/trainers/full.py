"""Fine-tune every weight of a detector from its ONNX file: `head`, from the picture on, for longer budgets and GPUs."""

from __future__ import annotations

from typing import ClassVar

from labelloop.learning.trainers.base import Report, Trained, TrainRequest, read_options
from labelloop.learning.trainers.head import HeadOptions, fine_tune, refusal


class FullOptions(HeadOptions, frozen=True):
    """The options of `head`, at the rates that suit all weights."""

    rate: float = 5e-4
    class_rate: float = 4e-3


class FullTrainer:
    """Trainer `full`: all weights."""

    name: ClassVar[str] = "full"

    def refuses(self, request: TrainRequest) -> str | None:
        return refusal(request)

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Raises what `HeadTrainer.train` raises."""
        options = read_options(request.options, FullOptions, trainer=self.name)
        return fine_tune(request, report, part="all", options=options)

"""A model that finds nothing and needs nothing: what the path itself costs, without pictures and without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from labelloop.core.cards import ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size
from labelloop.engines.base import EngineOptions, Wants


class EmptyEngine:
    """Every answer is empty. Used by benchmarks, and to try a connection before there is a model."""

    needs_file = False
    wants: Wants = "nothing"
    input_size: Size | None = None
    max_batch = 64
    parallel = 1

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        del path, options
        self.classes = card.labels

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        del path
        return card

    def prepare(self, picture: Picture) -> Picture:
        return picture

    def predict(self, batch: Sequence[Picture]) -> list[tuple[Region, ...]]:
        return [()] * len(batch)

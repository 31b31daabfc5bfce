"""Which families can be fine-tuned from their ONNX file, and what is said about those that cannot."""

from __future__ import annotations

from collections.abc import Mapping

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.learning.trainers.finetune.detr import Detr, DetrRaw
from labelloop.learning.trainers.finetune.families import Family, LastLayers, MMDeploy, NanoDet, UltralyticsV8, Yolox
from labelloop.learning.trainers.finetune.onnx_graph import OnnxGraph

FAMILIES: dict[str, Family] = {
    name: family
    for family in (Yolox(), NanoDet(), UltralyticsV8(), MMDeploy(), Detr(), DetrRaw())
    for name in family.names
}
ELSEWHERE: Mapping[str, str] = {
    "detr-softmax": "Its folder of transformers can be trained: labelloop models add FOLDER",
}
"""What a family without a recipe is trained from."""


def located(family: Family, graph: OnnxGraph, card: ModelCard) -> LastLayers:
    """The last layers of the file, of a grid one of each kind per stride. Raises ModelError."""
    layers = family.locate(graph, card)
    if family.strides and len(layers.classes) != len(family.strides):
        raise ModelError(
            f"This file has {len(layers.classes)} class layers, not one for each of the strides {family.strides}.",
            hint="Train with another trainer (command, openmmlab).",
        )
    return layers


def why_not(card: ModelCard | None) -> str:
    """Why a family is refused, and what can be done instead."""
    name = (card.family if card else None) or ""
    family = f"models of the family {name}" if name else "this file"
    instead = ELSEWHERE.get(name, "Use the trainer scratch, command or openmmlab")
    return f"There is no recipe for {family} (there is for {', '.join(FAMILIES)}). {instead}."

"""Models of Hugging Face's `transformers` from a local folder: detectors, zero-shot detectors, classifiers, named
entities. Nothing is ever downloaded, and code that comes with a model is not run.

| architecture ends in | task | answers |
| --- | --- | --- |
| ForObjectDetection | detect | boxes |
| the same of OWL-ViT and Grounding DINO | detect | boxes of the labels in the card, which are words to look for |
| ForImageClassification | classify | the likeliest classes |
| ForTokenClassification | ner | places in a text |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, ModelFailed, ModelUnrecognised
from labelloop.core.extras import not_installed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Region, Size, Span, Whole
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.huggingface_words import words_finder
from labelloop.engines.model_folder import read_config, unpacked

if TYPE_CHECKING:
    from PIL.Image import Image

FLOOR = 0.01
ENTITY_FLOOR = 0.05
DEFAULT_MAX_DETECTIONS = 300
DEFAULT_TOP_K = 10
WORDS = ("OwlViT", "Owlv2", "GroundingDino", "MMGroundingDino")
"""Architectures that look for words."""
PIPELINES = {"ImageClassification": "image-classification", "TokenClassification": "token-classification"}


class Prepared(msgspec.Struct, frozen=True):
    """A picture (`content` is a PIL picture of maybe reduced size) whose original has `size`; or a text."""

    content: Any
    size: Size


class TransformersEngine:
    """One loaded model. Answers one item at a time."""

    needs_file: ClassVar[bool] = True
    max_batch = 1
    input_size: Size | None = None

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """Complete `card` from the configuration, without importing torch. Raises ModelUnrecognised for an architecture
        of another kind, ModelError when the classes have no names."""
        config = read_config(_required(path, card))
        architecture, kind = _kind(config, card)
        labels = card.labels or (() if kind == "words" else _labels(config, kind))
        if not labels:
            raise ModelError(
                f"{card.name} finds whatever it is told to look for.",
                hint="Say what: --labels names.txt, a word a line.",
            )
        task = {"words": "detect", "ObjectDetection": "detect", "ImageClassification": "classify"}.get(kind, "ner")
        return msgspec.structs.replace(card, engine="transformers", task=task, family=architecture, labels=labels)

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        """Raises ModelError when transformers or torch is missing, or the model does not load."""
        _installed()
        self._card = self.describe(path, card)
        self._config = read_config(_required(path, card))
        _, self._kind = _kind(self._config, card)
        self.wants: Wants = "text" if self._kind == "TokenClassification" else "picture"
        self.classes = self._card.labels
        self.parallel = 1  # torch uses several cores for one picture
        self._most = card.max_detections or (
            DEFAULT_TOP_K if self._kind == "ImageClassification" else DEFAULT_MAX_DETECTIONS
        )
        floor = ENTITY_FLOOR if self._kind == "TokenClassification" else FLOOR
        self._floor = floor if card.score_threshold is None else min(floor, card.score_threshold)
        with unpacked(_required(path, card)) as folder:
            try:
                self._run = _load(folder, self._kind, _device(options.device), self._card)
            except Exception as error:  # whatever a configuration or the weights make transformers raise
                raise ModelError(f"transformers cannot load {card.name}: {error}") from error

    def prepare(self, item: Picture | str) -> Prepared:
        if isinstance(item, str):
            return Prepared(item, Size(0, 0))
        from PIL import Image

        return Prepared(Image.fromarray(item.rgb), item.size)

    def predict(self, batch: Sequence[Prepared]) -> list[tuple[Region, ...]]:
        """Regions of each item, best first (named entities in the order of the text)."""
        return [self._answer(item) for item in batch]

    def _answer(self, item: Prepared) -> tuple[Region, ...]:
        found = self._run(item.content, self._floor, self._most)
        if self._kind == "TokenClassification":
            return tuple(_entities(found, item.content, self.classes, self._floor))
        if self._kind == "ImageClassification":
            return tuple(Region(Whole(), label=one["label"], score=float(one["score"])) for one in found)
        scale = (item.size.width / item.content.width, item.size.height / item.content.height)
        return tuple(_boxes(found, scale, item.size))[: self._most]


def _load(folder: Path, kind: str, device: str, card: ModelCard) -> Any:
    """A function of an item, the lowest score and the most answers; what it gives depends on `kind`."""
    from huggingface_hub import constants

    constants.HF_HUB_OFFLINE = True  # what the variable of this name does, which others read once, as they are imported
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    told: dict[str, Any] = {"device": device, "trust_remote_code": False}
    if kind == "ObjectDetection":
        return _detector(folder, device, card.labels)
    if kind == "words":
        return words_finder(folder, device, card.labels)
    if kind == "TokenClassification":
        reads = transformers.pipeline(PIPELINES[kind], model=str(folder), aggregation_strategy="simple", **told)
        return lambda text, _floor, _most: reads(text) if text.strip() else []
    looks = transformers.pipeline(PIPELINES[kind], model=str(folder), **told)
    return lambda image, floor, most: [one for one in looks(image, top_k=most) if one["score"] >= floor]


def _detector(folder: Path, device: str, labels: Sequence[str]) -> Any:
    """Without the pipeline, which rounds boxes to whole pixels."""
    import torch
    from transformers import AutoImageProcessor, AutoModelForObjectDetection

    told: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = AutoImageProcessor.from_pretrained(folder, **told)
    model = AutoModelForObjectDetection.from_pretrained(folder, **told).to(device).eval()

    def detect(image: Image, floor: float, _most: int) -> list[dict[str, Any]]:
        with torch.inference_mode():
            inputs = processor(images=image, return_tensors="pt").to(device)
            sizes = torch.tensor([[image.height, image.width]])
            (found,) = processor.post_process_object_detection(model(**inputs), threshold=floor, target_sizes=sizes)
        rows = zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True)
        known = [(score, labels[label], xyxy) for score, label, xyxy in rows if label < len(labels)]
        return [{"score": score, "label": label, "xyxy": xyxy} for score, label, xyxy in known]

    return detect


def _boxes(found: Sequence[Mapping[str, Any]], scale: tuple[float, float], size: Size) -> list[Region]:
    """Boxes of a picture that was maybe reduced, in pixels of its original, best first."""
    regions = []
    for one in sorted(found, key=lambda row: -row["score"]):
        xyxy = np.asarray(one["xyxy"], np.float64) * (*scale, *scale)
        xyxy = np.clip(xyxy, 0, (*size, *size))
        if np.isfinite(xyxy).all() and xyxy[0] < xyxy[2] and xyxy[1] < xyxy[3]:
            left, top, right, bottom = xyxy.tolist()
            regions.append(Region(Box((left, top, right, bottom)), label=one["label"], score=float(one["score"])))
    return regions


def _entities(found: Sequence[Mapping[str, Any]], text: str, labels: Sequence[str], floor: float) -> list[Region]:
    """Named entities as places, without the blanks that some tokenizers count in."""
    regions = []
    for one in found:
        start, end = one["start"], one["end"]
        if start is None or end is None:
            raise ModelFailed(
                "The tokenizer of this model does not know where its words stand.",
                hint="Save a fast tokenizer beside the model (tokenizer.json).",
            )
        while start < end and text[start].isspace():
            start += 1
        while end > start and text[end - 1].isspace():
            end -= 1
        label, score = one["entity_group"], float(one["score"])
        if start < end and label in labels and score >= floor:
            regions.append(Region(Span(int(start), int(end)), label=label, score=score, text=text[start:end]))
    return regions


def _kind(config: Mapping[str, Any], card: ModelCard) -> tuple[str, str]:
    """Architecture and what kind it is: "words", or what stands behind its "For"."""
    names = config.get("architectures") or []
    architecture = str(names[0]) if isinstance(names, list) and names else ""
    base, found, kind = architecture.partition("For")
    if found and kind in ("ObjectDetection", *PIPELINES):
        return architecture, "words" if kind == "ObjectDetection" and base in WORDS else kind
    raise ModelUnrecognised(
        f"The model {card.name} is {architecture or 'of no known architecture'}, which is not served.",
        hint="Served are …ForObjectDetection, …ForImageClassification and …ForTokenClassification.",
    )


def _labels(config: Mapping[str, Any], kind: str) -> tuple[str, ...]:
    """Class names in order; of named entities without B-, I- and the like, each once, and without "outside"."""
    by_index = config.get("id2label") or {0: "LABEL_0", 1: "LABEL_1"}  # what transformers assumes
    names = [str(by_index[index]) for index in sorted(by_index, key=int)]
    if kind != "TokenClassification":
        return tuple(names)
    plain = [name[2:] if name[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") else name for name in names]
    return tuple(dict.fromkeys(name for name in plain if name != "O"))


def _device(wanted: str) -> str:
    import torch

    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted if torch.cuda.is_available() and wanted.startswith("cuda") else "cpu"


def _installed() -> None:
    if missing := not_installed("transformers", "torch"):
        raise ModelError(missing)


def _required(path: Path | None, card: ModelCard) -> Path:
    if path is None:
        raise ModelError(f"The model {card.name} has no folder.", hint="labelloop models add FOLDER")
    return path

"""Detectors of transformers that look for words: OWL-ViT and Grounding DINO.

All words are looked for in one pass. The pipeline of transformers runs the whole network once for each of them, and
rounds boxes to whole pixels. A place is called by the word that fits it best, once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

Row = dict[str, Any]
"""`score`, `label` and `xyxy`, in pixels of the picture."""
Finder = Callable[["Image", float, int], list[Row]]
"""Of a picture, the lowest score and the most answers, which is not used, what was found."""

SPECIAL_TOKENS = 2
"""[CLS] and [SEP] around a prompt."""


def words_finder(folder: Path, device: str, labels: Sequence[str]) -> Finder:
    """The detector in this folder, told what to look for. Raises whatever transformers raises."""
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    told: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    processor = AutoProcessor.from_pretrained(folder, **told)
    model = AutoModelForZeroShotObjectDetection.from_pretrained(folder, **told).to(device).eval()
    kind = _OwlViT if hasattr(model, "owlvit") or hasattr(model, "owlv2") else _GroundingDino
    return kind(processor, model, tuple(labels))


class _OwlViT:
    """Every patch of the picture is compared with every word: logits [1, patches, words]."""

    def __init__(self, processor: Any, model: Any, labels: tuple[str, ...]) -> None:
        self._processor, self._model, self._labels = processor, model, labels

    def __call__(self, image: Image, floor: float, _most: int) -> list[Row]:
        import torch

        inputs = self._processor(text=[list(self._labels)], images=image, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            outputs = self._model(**inputs.to(self._model.device))
        (found,) = self._processor.post_process_grounded_object_detection(
            outputs, threshold=floor, target_sizes=torch.tensor([[image.height, image.width]])
        )
        rows = zip(found["scores"].tolist(), found["labels"].tolist(), found["boxes"].tolist(), strict=True)
        return [{"score": score, "label": self._labels[word], "xyxy": xyxy} for score, word, xyxy in rows]


class _GroundingDino:
    """The words become one text, "helmet. safety vest.", and every box is compared with every token of it: logits
    [1, boxes, tokens]. The score of a word is the mean over its tokens, as in the evaluation on closed sets of Liu et
    al., Grounding DINO, https://arxiv.org/abs/2303.05499 (`PostProcessCocoGrounding` of their code)."""

    def __init__(self, processor: Any, model: Any, labels: tuple[str, ...]) -> None:
        if not processor.tokenizer.is_fast:
            raise ValueError("its tokenizer does not know where words stand: save a fast one (tokenizer.json)")
        self._processor, self._model = processor, model
        self._prompts = list(self._gathered(labels, most=model.config.max_text_len))

    def _gathered(self, labels: Sequence[str], *, most: int) -> Iterator[tuple[str, ...]]:
        """Labels that fit into one text, in turn."""
        gathered: list[str] = []
        room = most - SPECIAL_TOKENS
        for label in labels:
            needed = len(self._processor.tokenizer(f"{_plain(label)}.", add_special_tokens=False)["input_ids"])
            if gathered and needed > room:
                yield tuple(gathered)
                gathered, room = [], most - SPECIAL_TOKENS
            gathered.append(label)
            room -= needed
        yield tuple(gathered)

    def __call__(self, image: Image, floor: float, _most: int) -> list[Row]:
        pixels = self._processor.image_processor(images=image, return_tensors="pt").to(self._model.device)
        return [row for labels in self._prompts for row in self._look(image, pixels, labels, floor)]

    def _look(self, image: Image, pixels: Mapping[str, Tensor], labels: Sequence[str], floor: float) -> Iterator[Row]:
        import torch

        text = " ".join(f"{_plain(label)}." for label in labels)
        told = {"truncation": True, "max_length": self._model.config.max_text_len, "return_tensors": "pt"}
        words = self._processor.tokenizer(text, return_offsets_mapping=True, return_token_type_ids=True, **told)
        places = words.pop("offset_mapping")[0].tolist()
        with torch.inference_mode():
            outputs = self._model(**pixels, **words.to(self._model.device))
            tokens = outputs.logits[0].sigmoid()
            scores = torch.stack(
                [tokens[:, one].mean(-1) if one else tokens[:, 0] * 0 for one in _tokens(labels, places)]
            )
            best, word = scores.max(0)
            centre, size = outputs.pred_boxes[0].split(2, dim=-1)
            xyxy = torch.cat([centre - size / 2, centre + size / 2], dim=-1)
            xyxy = xyxy * torch.tensor([image.width, image.height] * 2, device=xyxy.device)
        for number in (best > floor).nonzero().flatten().tolist():
            yield {"score": float(best[number]), "label": labels[int(word[number])], "xyxy": xyxy[number].tolist()}


def _plain(label: str) -> str:
    """As the network has seen words: in small letters. A full stop would end the word."""
    return " ".join(label.lower().replace(".", " ").split())


def _tokens(labels: Sequence[str], places: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """Of each label the positions of its tokens, whose characters are at `places` in the text."""
    start = 0
    for label in labels:
        end = start + len(_plain(label))
        yield [number for number, (first, last) in enumerate(places) if start <= first < last <= end]
        start = end + len(". ")

"""What a demo shows: a label config, pictures, a model, and, where we drew them ourselves, the text on each picture."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import quoteattr

import msgspec

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError, SettingsError
from labelloop.core.settings import Settings
from labelloop.engines.labels import named, read_labels
from labelloop.serving.models import add_model, model_name, read_card
from labelloop.store.registry import ModelVersion, Registry

MOST_PICTURES = 200
"""Enough to look at; everything is copied into Label Studio."""

_PICTURE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
_LONGEST_TITLE = 50  # Label Studio's limit

OCR_CONFIG = """\
<View>
  <Image name="image" value="$image" zoom="true" zoomControl="true"/>
  <Labels name="label" toName="image">
    <Label value="Text" background="#0f8a5f"/>
  </Labels>
  <Rectangle name="bbox" toName="image" strokeWidth="2"/>
  <Polygon name="poly" toName="image" strokeWidth="2"/>
  <TextArea name="transcription" toName="image" editable="true" perRegion="true" required="true"
            maxSubmissions="1" rows="2" placeholder="What is written here" displayMode="region-list"/>
</View>
"""


class Show(msgspec.Struct, frozen=True):
    """What a project of the demo is made of. `fields` are Label Studio's own, for a project that is made."""

    title: str
    label_config: str
    pictures: tuple[Path, ...]
    fields: Mapping[str, str] = {}


class Scenario(Show, frozen=True, kw_only=True):
    """Pictures and what predicts on them. `texts` gives, by file name, the lines on each picture; empty when we do not
    know them."""

    model: ModelVersion
    texts: Mapping[str, tuple[str, ...]] = {}
    left_out: int = 0
    """Pictures of the folder above the limit."""

    @property
    def reads_text(self) -> bool:
        return self.model.card.task == "ocr"


def plan(
    registry: Registry,
    settings: Settings,
    *,
    folder: Path,
    model: Path | None = None,
    images: Path | None = None,
    labels: str | None = None,
) -> Scenario:
    """The scenario for what was asked, its model added to `registry`.

    Without `model` text is read; without `images` the demo draws its own pictures into `folder`. `labels` names the
    classes of a file that does not (see engines/labels). Raises SettingsError or ModelError with what is missing.
    """
    if model is not None and images is None:
        raise SettingsError("A model was given and no pictures.", hint="Add --images DIR with pictures it knows.")
    if labels is not None and model is None:
        raise SettingsError("Labels were given and no model.", hint="Add --model FILE.onnx.")
    version = _register(registry, settings, model=model, labels=labels)
    texts = {} if images else _draw_into(folder)
    found = _find_pictures(images) if images else tuple(folder / name for name in texts)
    pictures, left_out = found[:MOST_PICTURES], max(0, len(found) - MOST_PICTURES)
    if version.card.task == "ocr":
        title = f"Text in {images.resolve().name}" if images else "Receipts and signs"
        return Scenario(_fit(title), OCR_CONFIG, pictures, model=version, texts=texts, left_out=left_out)
    if not version.card.labels:
        raise ModelError(f"{model} does not name its classes.", hint="Add --labels FILE (or coco).")
    return Scenario(
        _fit(f"{version.name}: {_folder_name(pictures)}"),
        boxes_config(named(version.card.labels)),
        pictures,
        model=version,
        left_out=left_out,
    )


def boxes_config(labels: tuple[str, ...]) -> str:
    """A label config with a rectangle for each class, in colours as far apart as they can be."""
    rows = "".join(
        f"    <Label value={quoteattr(label)} background={quoteattr(_color(index, len(labels)))}/>\n"
        for index, label in enumerate(dict.fromkeys(labels))
    )
    return (
        '<View>\n  <Image name="image" value="$image" zoom="true" zoomControl="true"/>\n'
        f'  <RectangleLabels name="label" toName="image" strokeWidth="2">\n{rows}  </RectangleLabels>\n</View>\n'
    )


def _register(registry: Registry, settings: Settings, *, model: Path | None, labels: str | None) -> ModelVersion:
    if model is None:
        return add_model(registry, None, ModelCard(name="ocr", engine="ocr", task="ocr"), settings)
    card = read_card(model.with_suffix(".yaml"), name=model_name(model.stem))
    if labels is not None:
        card = msgspec.structs.replace(card, labels=read_labels(labels))
    return add_model(registry, model, card, settings)


def _draw_into(folder: Path) -> dict[str, tuple[str, ...]]:
    from labelloop.demo.pictures import draw_pictures  # here: needs Pillow, which comes with the OCR engine

    folder.mkdir(parents=True, exist_ok=True)
    drawn = draw_pictures()
    for picture in drawn:
        (folder / picture.name).write_bytes(picture.jpeg)
    return {picture.name: picture.lines for picture in drawn}


def _find_pictures(folder: Path) -> tuple[Path, ...]:
    if not folder.is_dir():
        raise SettingsError(f"There is no folder {folder}.", hint="Check --images.")
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURE_SUFFIXES)
    if not found:
        kinds = ", ".join(suffix[1:] for suffix in _PICTURE_SUFFIXES)
        raise SettingsError(f"There are no pictures in {folder}.", hint=f"Browsers show {kinds}.")
    return tuple(found)


def _folder_name(pictures: tuple[Path, ...]) -> str:
    return pictures[0].resolve().parent.name


def _fit(title: str) -> str:
    return title if len(title) <= _LONGEST_TITLE else title[: _LONGEST_TITLE - 1] + "…"


def _color(index: int, count: int) -> str:
    red, green, blue = colorsys.hls_to_rgb(index / count, 0.42, 0.75)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"

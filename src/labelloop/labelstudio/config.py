"""Label config XML -> the controls a model can fill and the data fields they look at.

Nothing is called "label" or "image" by assumption: names, fields and labels are discovered.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property, lru_cache
from xml.etree import ElementTree as ET

import msgspec
import structlog

from labelloop.core.errors import LabelConfigError

log = structlog.get_logger(__name__)

MAX_CONFIG_CHARS = 5_000_000
MAX_REMEMBERED_CHARS = 32_000
"""A parsed config takes about ten times its text: 256 remembered ones of this length are some 80 MB at worst. The
label map of a longer one is remembered by `serving/projects`, so that it is parsed once all the same."""


class Label(msgspec.Struct, frozen=True):
    """One `<Label>` or `<Choice>`. `value` is what goes into a result (the alias where there is one);
    `names` are all names it is known by; `predicted_values` are the model classes that mean this label."""

    value: str
    names: tuple[str, ...]
    predicted_values: tuple[str, ...] = ()
    threshold: float | None = None


class ObjectTag(msgspec.Struct, frozen=True):
    """What is shown: `<Image>`, `<Text>`, `<Video>`... `field` is the key in the task's data; with `is_list` the
    field holds a list of pages (`valueList`). With `by_url` it holds the address of a text, not the text. `frame_rate`
    is what a `<Video>` says about it: a number, or `$field`."""

    name: str
    tag: str
    field: str
    is_list: bool = False
    by_url: bool = False
    frame_rate: str = ""

    @property
    def shows_pictures(self) -> bool:
        return self.tag.lower() == "image"

    @property
    def shows_films(self) -> bool:
        return self.tag.lower() == "video"

    @property
    def shows_texts(self) -> bool:
        return self.tag.lower() in ("text", "hypertext")


class Control(msgspec.Struct, frozen=True, dict=True):
    """What is filled: `<RectangleLabels>`, `<Choices>`, `<TextArea>`... `threshold` is the score threshold it names.
    With `dynamic` its labels come from each task's data (`value="$labels"`) or from a server (`apiUrl`). `several`
    choices can be true at a time (`choice="multiple"`)."""

    name: str
    tag: str
    to_names: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    threshold: float | None = None
    per_region: bool = False
    dynamic: bool = False
    several: bool = False

    @cached_property
    def type(self) -> str:
        """The `type` of its regions in Label Studio's JSON."""
        return self.tag.lower()

    @cached_property
    def labels_key(self) -> str | None:
        """Where in a `value` its labels stand; None for a control that has none."""
        return self.type if self.type == "choices" or self.type.endswith("labels") else None

    @cached_property
    def values(self) -> frozenset[str]:
        """What a result may say. Empty for a control whose labels are all dynamic."""
        return frozenset(label.value for label in self.labels)


class LabelConfig(msgspec.Struct, frozen=True, dict=True):
    """The controls and objects of a labeling interface, in its order. Where two share a name the last one counts, as
    in Label Studio's own check. `shown` names all that results may be about: objects, and tags with fixed text."""

    controls: tuple[Control, ...]
    objects: tuple[ObjectTag, ...]
    shown: frozenset[str] = frozenset()

    @cached_property
    def controls_by_name(self) -> Mapping[str, Control]:
        return {control.name: control for control in self.controls}

    @cached_property
    def fillable(self) -> Mapping[tuple[str, str, str], Control]:
        """By `from_name`, `to_name` and `type`: what a result may fill, and about what."""
        return {
            (control.name, shown, control.type): control
            for control in self.controls_by_name.values()
            for shown in control.to_names
            if shown in self.shown
        }

    @cached_property
    def objects_by_name(self) -> Mapping[str, ObjectTag]:
        return {tag.name: tag for tag in self.objects}


def parse_config(xml: str) -> LabelConfig:
    """Parse a label config, or remember it. An empty or whitespace config is a project that was never set up: no
    controls.

    Raises LabelConfigError when the text is not XML, is longer than MAX_CONFIG_CHARS, or uses a DTD (entities are a
    denial-of-service vector and Label Studio has no use for them). What is wrong with one attribute is logged and
    ignored, because the project's other controls can be filled all the same.
    """
    return _remembered(xml) if len(xml) <= MAX_REMEMBERED_CHARS else _parse(xml)


def _parse(xml: str) -> LabelConfig:
    if not xml.strip():
        return LabelConfig((), ())
    if len(xml) > MAX_CONFIG_CHARS or "<!DOCTYPE" in xml or "<!ENTITY" in xml:
        raise LabelConfigError(
            "The label config is too large or has a DTD.", hint="Remove the DOCTYPE from the labeling interface."
        )
    try:
        root = ET.fromstring(xml)  # noqa: S314 - entities are refused above
    except (ET.ParseError, ValueError) as error:
        raise LabelConfigError(
            f"The label config is not valid XML: {error}.", hint="Open Settings > Labeling Interface and save it again."
        ) from error
    elements = list(root.iter())
    return LabelConfig(
        controls=tuple(_control(element) for element in elements if element.get("name") and element.get("toName")),
        objects=tuple(tag for element in elements if (tag := _object(element)) is not None),
        shown=frozenset(element.get("name", "") for element in elements if _shows(element)),
    )


_remembered = lru_cache(maxsize=256)(_parse)


def _shows(element: ET.Element) -> bool:
    return bool(
        element.get("name") and not element.get("toName") and (element.get("value") or element.get("valueList"))
    )


def _object(element: ET.Element) -> ObjectTag | None:
    if not _shows(element):
        return None
    is_list = element.get("valueList") is not None
    value = element.get("valueList") or element.get("value") or ""
    if not value.startswith("$"):
        return None
    by_url = element.get("valueType", "").lower() == "url"
    # the editor does not look at the case of attributes, and templates write frameRate and framerate
    rate = next((text for name, text in element.items() if name.lower() == "framerate"), "")
    return ObjectTag(element.get("name", ""), element.tag, value[1:], is_list, by_url, rate)


def _control(element: ET.Element) -> Control:
    return Control(
        name=element.get("name", ""),
        tag=element.tag,
        to_names=tuple(element.get("toName", "").split(",")),  # blanks count: Label Studio does not strip them either
        labels=tuple(_labels(element)),
        threshold=_threshold(element),
        per_region=element.get("perRegion", "").lower() == "true",
        dynamic=element.get("value", "").startswith("$") or bool(element.get("apiUrl")),
        several=element.get("choice") == "multiple",
    )


def _labels(element: ET.Element) -> Iterator[Label]:
    for child in element.iter():
        names = tuple(name for name in (child.get("value"), child.get("alias")) if name)
        if child.tag in ("Label", "Choice") and names:
            values = tuple(name.strip() for name in child.get("predicted_values", "").split(",") if name.strip())
            yield Label(names[-1], names, values, _threshold(child))


def _threshold(element: ET.Element) -> float | None:
    """The first usable threshold of a tag. One that is not usable must not cost the project its predictions: it may
    stand on a control that no model fills."""
    for name in ("model_score_threshold", "score_threshold"):
        text = element.get(name)
        if text is None:
            continue
        threshold = _fraction(text)
        if threshold is not None:
            return threshold
        log.warning(
            "a score threshold in the label config is ignored",
            tag=element.tag,
            name=element.get("name") or element.get("value"),
            attribute=name,
            value=text[:100],
            fix="write a number between 0 and 1 in Settings > Labeling Interface",
        )
    return None


def _fraction(text: str) -> float | None:
    """`"0.5"` and `"50%"` are a half; None for what is no number in [0, 1]."""
    number, percent, rest = text.strip().partition("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 and not rest else None

"""Label config XML -> the controls a model can fill and the data fields they look at.

Nothing is called "label" or "image" by assumption: names, fields and labels are discovered.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from xml.etree import ElementTree as ET

import msgspec

from labelloop.core.errors import LabelConfigError

MAX_CONFIG_CHARS = 5_000_000


class Label(msgspec.Struct, frozen=True):
    """One `<Label>` or `<Choice>`. `value` is what goes into a result (the alias where there is one);
    `names` are all names it is known by; `predicted_values` are the model classes that mean this label."""

    value: str
    names: tuple[str, ...]
    predicted_values: tuple[str, ...] = ()
    threshold: float | None = None


class ObjectTag(msgspec.Struct, frozen=True):
    """What is shown: `<Image>`, `<Text>`, `<Video>`... `field` is the key in the task's data; with `is_list` the
    field holds a list of pages (`valueList`)."""

    name: str
    tag: str
    field: str
    is_list: bool = False


class Control(msgspec.Struct, frozen=True):
    """What is filled: `<RectangleLabels>`, `<Choices>`, `<TextArea>`... `threshold` is the score threshold it names."""

    name: str
    tag: str
    to_names: tuple[str, ...]
    labels: tuple[Label, ...] = ()
    threshold: float | None = None
    per_region: bool = False
    smart: bool = False

    @property
    def type(self) -> str:
        """The `type` of its regions in Label Studio's JSON."""
        return self.tag.lower()


class LabelConfig(msgspec.Struct, frozen=True):
    controls: tuple[Control, ...]
    objects: tuple[ObjectTag, ...]

    def object_named(self, name: str) -> ObjectTag | None:
        return next((tag for tag in self.objects if tag.name == name), None)

    def control_named(self, name: str) -> Control | None:
        return next((control for control in self.controls if control.name == name), None)


@lru_cache(maxsize=256)
def parse_config(xml: str) -> LabelConfig:
    """Parse a label config. An empty or whitespace config is a project that was never set up: no controls.

    Raises LabelConfigError when the text is not XML, or uses a DTD (entities are a denial-of-service vector
    and Label Studio has no use for them).
    """
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
    )


def _object(element: ET.Element) -> ObjectTag | None:
    if not element.get("name") or element.get("toName"):
        return None
    is_list = element.get("valueList") is not None
    value = element.get("valueList") or element.get("value") or ""
    return ObjectTag(element.get("name", ""), element.tag, value[1:], is_list) if value.startswith("$") else None


def _control(element: ET.Element) -> Control:
    return Control(
        name=element.get("name", ""),
        tag=element.tag,
        to_names=tuple(name.strip() for name in element.get("toName", "").split(",") if name.strip()),
        labels=tuple(_labels(element)),
        threshold=_threshold(element),
        per_region=element.get("perRegion", "").lower() == "true",
        smart=element.get("smart", "").lower() == "true",
    )


def _labels(element: ET.Element) -> Iterator[Label]:
    for child in element.iter():
        value, alias = child.get("value"), child.get("alias")
        if child.tag in ("Label", "Choice") and value:
            values = tuple(name.strip() for name in child.get("predicted_values", "").split(",") if name.strip())
            yield Label(alias or value, (value, alias) if alias else (value,), values, _threshold(child))


def _threshold(element: ET.Element) -> float | None:
    for name in ("model_score_threshold", "score_threshold"):
        text = element.get(name)
        if text is None:
            continue
        try:
            threshold = float(text)
        except ValueError:
            threshold = -1.0
        if not 0.0 <= threshold <= 1.0:
            raise LabelConfigError(
                f"{name}={text!r} on <{element.tag}> is not a number between 0 and 1.",
                hint="Correct it in Settings > Labeling Interface.",
            )
        return threshold
    return None

"""What people can draw in a project: the labels of its boxes and outlines, and the pictures that they are drawn on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from labelloop.core.errors import LabelConfigError
from labelloop.labelstudio.config import Control, LabelConfig, ObjectTag

_NAMES_ITSELF = ("RectangleLabels", "PolygonLabels")
_BARE = ("Rectangle", "Polygon")


class Vocabulary(msgspec.Struct, frozen=True):
    """`labels` in the order of the config, each once. `known` leads from every name that a label has, or had as its
    value before it got an alias, to the label. `fields` are the pictures, in the order of the config."""

    labels: tuple[str, ...]
    known: Mapping[str, str]
    fields: tuple[ObjectTag, ...]


def vocabulary(config: LabelConfig) -> Vocabulary:
    """Labels of boxes and polygons on pictures. Raises LabelConfigError where there is nothing that a detector could
    learn: no such control, or one without labels."""
    pictures = [tag for tag in config.objects if tag.shows_pictures]
    drawn = {tag.name: {control.name for control in _naming(config, tag)} for tag in pictures}
    naming = set[str]().union(*drawn.values())
    labels = [label for control in config.controls if control.name in naming for label in control.labels]
    if not labels:
        raise LabelConfigError(
            "The label config has no labels for boxes or polygons on a picture.",
            hint="Add <RectangleLabels> with <Label> tags in Settings > Labeling Interface.",
        )
    known = {name: label.value for label in reversed(labels) for name in label.names}
    return Vocabulary(
        labels=tuple(dict.fromkeys(label.value for label in labels)),
        known=known | {label.value: label.value for label in labels},
        fields=tuple(tag for tag in pictures if drawn[tag.name]),
    )


def _naming(config: LabelConfig, tag: ObjectTag) -> Iterator[Control]:
    """The controls that give boxes and polygons on this picture their labels. <Labels> does so only beside a bare
    geometry tag."""
    there = [control for control in config.controls if tag.name in control.to_names]
    bare = any(control.tag in _BARE for control in there)
    yield from (control for control in there if control.tag in _NAMES_ITSELF or (bare and control.tag == "Labels"))

"""What a model can learn from a project: its labels, and the pictures or texts that people give them to.

Boxes, outlines and masks come first; where there are none, the choices that people make about a whole picture or text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from labelloop.core.errors import LabelConfigError
from labelloop.core.tasks import Learns
from labelloop.labelstudio.config import Control, Label, LabelConfig, ObjectTag

_NAMES_ITSELF = ("RectangleLabels", "PolygonLabels", "BrushLabels")
_BARE = ("Rectangle", "Polygon", "Brush")
_PAINTS = ("BrushLabels", "Brush")


class Vocabulary(msgspec.Struct, frozen=True):
    """`labels` in the order of the config, each once. `known` leads from every name that a label has, or had as its
    value before it got an alias, to the label. `fields` are the pictures, in the order of the config; of `choices` the
    one picture or text that they are about. `control` is the <Choices> that is learned, else ""; `several` of its
    choices may be true at a time.
    """

    labels: tuple[str, ...]
    known: Mapping[str, str]
    fields: tuple[ObjectTag, ...]
    learns: Learns = "boxes"
    control: str = ""
    several: bool = False


def vocabulary(config: LabelConfig) -> Vocabulary:
    """What is learned of a project: what is drawn on pictures, else choices. Raises LabelConfigError where there
    is nothing that a model could learn: no such control, or one without labels."""
    drawn = _boxes(config)
    chosen = None if drawn else _choices(config)
    if drawn is None and chosen is None:
        raise LabelConfigError(
            "The label config has no labels for boxes, polygons or masks on a picture, and no choices.",
            hint="Add <RectangleLabels> with <Label> tags in Settings > Labeling Interface, or <Choices>.",
        )
    return drawn or chosen  # type: ignore[return-value]


def _boxes(config: LabelConfig) -> Vocabulary | None:
    pictures = [tag for tag in config.objects if tag.shows_pictures]
    drawn = {tag.name: {control.name for control in _naming(config, tag)} for tag in pictures}
    naming = set[str]().union(*drawn.values())
    labels = [label for control in config.controls if control.name in naming for label in control.labels]
    if not labels:
        return None
    fields = tuple(tag for tag in pictures if drawn[tag.name])
    tools = {control.tag for tag in fields for control in config.controls if tag.name in control.to_names}
    painted = not tools & {*_NAMES_ITSELF, *_BARE} - {*_PAINTS}
    return Vocabulary(_values(labels), _known(labels), fields, learns="masks" if painted else "boxes")


def _choices(config: LabelConfig) -> Vocabulary | None:
    """The first <Choices> about a whole picture or text that has choices."""
    for control in config.controls:
        if control.tag != "Choices" or control.per_region or not control.labels:
            continue
        tags = [config.objects_by_name[name] for name in control.to_names if name in config.objects_by_name]
        shown = [tag for tag in tags if tag.shows_pictures or tag.shows_texts]
        if shown:
            return Vocabulary(
                labels=_values(control.labels),
                known=_known(control.labels),
                fields=(shown[0],),
                learns="choices",
                control=control.name,
                several=control.several,
            )
    return None


def _values(labels: Sequence[Label]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label.value for label in labels))


def _known(labels: Sequence[Label]) -> dict[str, str]:
    names = {name: label.value for label in reversed(labels) for name in label.names}
    return names | {label.value: label.value for label in labels}


def _naming(config: LabelConfig, tag: ObjectTag) -> Iterator[Control]:
    """The controls that give what is drawn on this picture its labels. <Labels> does so only beside a bare
    geometry tag."""
    there = [control for control in config.controls if tag.name in control.to_names]
    bare = any(control.tag in _BARE for control in there)
    yield from (control for control in there if control.tag in _NAMES_ITSELF or (bare and control.tag == "Labels"))

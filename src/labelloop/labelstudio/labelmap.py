"""Model classes -> the project's labels: which control draws a region, under which label, above which score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec

from labelloop.core.errors import LabelConfigError
from labelloop.core.regions import Box, Point, Polygon, Region, Shape, Whole
from labelloop.labelstudio.config import Control, Label, LabelConfig, ObjectTag

DEFAULT_THRESHOLD = 0.3
"""Below it a detector's box costs the annotator more (look, delete) than it saves."""

Kind = Literal["box", "polygon", "point", "whole"]

# For each kind of shape the controls that can draw it, best first. The bare geometry tags (Rectangle, Polygon) take
# their label from a <Labels> control on the same object. A box on a polygon control becomes its four corners.
DRAWN_BY: Mapping[Kind, tuple[str, ...]] = {
    "box": ("RectangleLabels", "Rectangle", "PolygonLabels", "Polygon"),
    "polygon": ("PolygonLabels", "Polygon", "RectangleLabels", "Rectangle"),
    "point": ("KeyPointLabels", "KeyPoint"),
    "whole": ("Choices",),
}
BARE = ("Rectangle", "Polygon", "KeyPoint")

KINDS_OF_TASK: Mapping[str, tuple[Kind, ...]] = {
    "detect": ("box",),
    "ocr": ("box", "polygon"),
    "classify": ("whole",),
    "pose": ("point", "box"),
}


class Target(msgspec.Struct, frozen=True):
    """Where one class goes: drawn by `control` on `object`; a bare geometry control takes its label from
    `label_control`; a text goes into `text_control`. `label` is None where the config has no labels to choose from."""

    control: Control
    object: ObjectTag
    label: str | None
    threshold: float
    label_control: Control | None = None
    text_control: Control | None = None


class LabelMap(msgspec.Struct, frozen=True):
    """The map of one model onto one label config. `unmapped` are classes that go nowhere, `unfilled` are labels that
    no class of the model fills; `fingerprint` changes exactly when the map could draw something else."""

    targets: Mapping[tuple[str, Kind], tuple[Target, ...]]
    unmapped: tuple[str, ...]
    unfilled: tuple[str, ...]
    fields: tuple[ObjectTag, ...]
    fingerprint: str

    def targets_of(self, region: Region) -> tuple[Target, ...]:
        """Targets of a region that its score does not rule out; a region without a score always passes."""
        found = self.targets.get((region.label or "", kind_of(region.shape)), ())
        score = region.score
        return found if score is None else tuple(target for target in found if score >= target.threshold)


def kind_of(shape: Shape) -> Kind:
    match shape:
        case Box():
            return "box"
        case Polygon():
            return "polygon"
        case Point():
            return "point"
        case Whole():
            return "whole"
    raise TypeError(f"{type(shape).__name__} is not drawn through the label map")


def build_label_map(
    config: LabelConfig,
    classes: Iterable[str],
    *,
    task: str = "detect",
    threshold: float | None = None,
    aliases: Mapping[str, str] | None = None,
) -> LabelMap:
    """Map `classes` onto `config`.

    A class finds its label by, in this order: `aliases` (the labels file), `predicted_values`, the exact name, the
    name without regard to case and `_`/space. `threshold` holds where the config names none.
    """
    default = DEFAULT_THRESHOLD if threshold is None else threshold
    classes = tuple(dict.fromkeys(classes))
    kinds = KINDS_OF_TASK.get(task, ("box",))
    targets = {
        (name, kind): found
        for name in classes
        for kind in kinds
        if (found := tuple(_targets(config, name, kind, default, aliases or {})))
    }
    mapped = {name for name, _ in targets}
    drawn = [target for found in targets.values() for target in found]
    filled = {target.label for target in drawn}
    candidates = dict.fromkeys(tag for kind in kinds for tag in DRAWN_BY[kind])
    known = [
        label.value
        for control in config.controls
        if control.tag in candidates or control.tag == "Labels"
        for label in control.labels
    ]
    return LabelMap(
        targets=targets,
        unmapped=tuple(name for name in classes if name not in mapped),
        unfilled=tuple(dict.fromkeys(label for label in known if label not in filled)),
        fields=tuple(dict.fromkeys(target.object for target in drawn)),
        fingerprint=_fingerprint(targets),
    )


def _targets(
    config: LabelConfig, name: str, kind: Kind, default: float, aliases: Mapping[str, str]
) -> Iterable[Target]:
    """At most one target per object: the first control, in order of preference, that knows the class."""
    for tag in config.objects:
        on_object = [control for control in config.controls if tag.name in control.to_names]
        for control in sorted(
            (c for c in on_object if c.tag in DRAWN_BY[kind]), key=lambda c: DRAWN_BY[kind].index(c.tag)
        ):
            target = _target(control, tag, on_object, name, default, aliases)
            if target is not None:
                yield target
                break


def _target(
    control: Control, tag: ObjectTag, on_object: list[Control], name: str, default: float, aliases: Mapping[str, str]
) -> Target | None:
    text_control = next((c for c in on_object if c.tag == "TextArea" and c.per_region), None)
    holders = [c for c in on_object if c.tag == "Labels" and c.labels] if control.tag in BARE else [control]
    if not holders:  # a bare geometry control on an object without labels: drawn, without a label
        return Target(control, tag, None, _first(control.threshold, default), None, text_control)
    for holder in holders:
        label = find_label(holder.labels, name, aliases)
        if label is not None:
            threshold = _first(label.threshold, holder.threshold, control.threshold, default)
            return Target(control, tag, label.value, threshold, holder if holder is not control else None, text_control)
    return None


def find_label(labels: Iterable[Label], name: str, aliases: Mapping[str, str] | None = None) -> Label | None:
    """The label that the class `name` means, or None."""
    labels = tuple(labels)
    wanted = (aliases or {}).get(name)
    if wanted is not None:
        return next((label for label in labels if wanted in label.names), None)
    folded = fold(name)
    matches: dict[int, Label] = {}
    for label in labels:
        ways = (
            name in label.predicted_values,
            folded in map(fold, label.predicted_values),
            name in label.names,
            folded in map(fold, label.names),
        )
        if any(ways):
            matches.setdefault(ways.index(True), label)
    return matches[min(matches)] if matches else None


def fold(name: str) -> str:
    """'Baseball_Bat' and 'baseball  bat' are one name."""
    return " ".join(name.replace("_", " ").split()).casefold()


def read_labels_file(path: Path) -> dict[str, str]:
    """Read {"model class": "project label"}. Raises LabelConfigError with what is wrong and where."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LabelConfigError(f"The labels file {path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise LabelConfigError(f"The labels file {path} is not JSON: {error}.") from error
    if not isinstance(content, dict) or not all(isinstance(value, str) for value in content.values()):
        raise LabelConfigError(
            f"The labels file {path} must be one JSON object.", hint='Write {"model class": "project label", …}.'
        )
    return content


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _fingerprint(targets: Mapping[tuple[str, Kind], tuple[Target, ...]]) -> str:
    rows: list[Any] = [
        [*key, *((t.control.name, t.control.tag, t.object.name, t.object.field, t.label, t.threshold,
                  t.label_control and t.label_control.name, t.text_control and t.text_control.name) for t in found)]
        for key, found in sorted(targets.items())
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]

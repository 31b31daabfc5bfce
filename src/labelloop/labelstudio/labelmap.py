"""Model classes -> the project's labels: which control draws a region, under which label, above which score."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from labelloop.core.errors import LabelConfigError
from labelloop.core.regions import Box, Interval, Mask, MediaKey, Point, Polygon, Region, Span, Track, Whole
from labelloop.labelstudio.config import Control, Label, LabelConfig, ObjectTag
from labelloop.labelstudio.names import Names, fold

DEFAULT_THRESHOLD = 0.3
"""Below it a detector's box costs the annotator more (look, delete) than it saves."""

LIKELY = 0.5
"""Below it a choice, or a stretch of a film, of several that may be true at a time is more likely wrong than right."""

Kind = Literal["box", "polygon", "mask", "point", "whole", "span", "track", "interval"]

KIND_OF: Mapping[type, Kind] = {
    Box: "box",
    Polygon: "polygon",
    Mask: "mask",
    Point: "point",
    Whole: "whole",
    Span: "span",
    Track: "track",
    Interval: "interval",
}

# For each kind of shape the controls that can draw it, best first. The bare geometry tags (Rectangle, Polygon) take
# their label from a <Labels> control on the same object. A box on a polygon control becomes its four corners,
# a mask an outline for each of its parts: people move points more easily than they paint.
# Tracks and intervals are drawn on <Video>, what is drawn on pictures only on <Image>: a film must not be fetched as
# one.
DRAWN_BY: Mapping[Kind, tuple[str, ...]] = {
    "box": ("RectangleLabels", "Rectangle", "PolygonLabels", "Polygon"),
    "polygon": ("PolygonLabels", "Polygon", "RectangleLabels", "Rectangle"),
    "mask": ("PolygonLabels", "Polygon", "BrushLabels", "Brush", "RectangleLabels", "Rectangle"),
    "point": ("KeyPointLabels", "KeyPoint"),
    "whole": ("Choices",),
    "span": ("Labels",),
    "track": ("VideoRectangle",),
    "interval": ("TimelineLabels",),
}
BARE = ("Rectangle", "Polygon", "Brush", "KeyPoint", "VideoRectangle")

KINDS_OF_TASK: Mapping[str, tuple[Kind, ...]] = {
    "detect": ("box", "track"),
    "ocr": ("box", "polygon"),
    "classify": ("whole", "interval"),
    "pose": ("point", "box"),
    "segment": ("mask", "polygon"),
    "raw": (),  # it writes results itself
    "text": ("whole",),
    "ner": ("span",),
}
READS_TEXTS = ("text", "ner")
"""Tasks of models that read <Text> and <HyperText>; the others look at pictures."""


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
    """The map of one model onto one label config.

    `unmapped` are classes that go nowhere, `unfilled` are labels that no class of the model fills, `fields` the
    pictures to look at. `fingerprint` changes exactly when the map could draw something else. `lowest_threshold` is
    the smallest of all targets, 1.0 where there are none: no region with a lower score is drawn. `notes` are sentences
    for people about controls that cannot be filled, and why.
    """

    targets: Mapping[tuple[str, Kind], tuple[Target, ...]]
    unmapped: tuple[str, ...]
    unfilled: tuple[str, ...]
    fields: tuple[ObjectTag, ...]
    fingerprint: str
    config: LabelConfig = LabelConfig((), ())
    lowest_threshold: float = 1.0
    notes: tuple[str, ...] = ()

    def best_choices(self, regions: Sequence[Region]) -> list[Region]:
        """`regions` without those that say of an item what excludes what a better one of them says: of one <Choices>
        that takes a single answer only the best is left."""
        best: dict[tuple[str, str, MediaKey], float] = {}
        for region in (region for region in regions if type(region.shape) is Whole):
            for key in self._exclusive(region):
                best[key] = max(best.get(key, 0.0), _certainty(region))
        return (
            [r for r in regions if all(_certainty(r) >= best[key] for key in self._exclusive(r))]
            if best
            else [*regions]
        )

    def _exclusive(self, region: Region) -> Iterator[tuple[str, str, MediaKey]]:
        """The single answers that a region would give."""
        if type(region.shape) is Whole:
            for target in self.targets_of(region):
                if not target.control.several:
                    yield target.control.name, target.object.name, region.media

    def targets_of(self, region: Region) -> tuple[Target, ...]:
        """Targets of a region that its score does not rule out; a region without a score always passes."""
        score, found = region.score, self.targets_for(region.label, type(region.shape))
        if score is None or not found:
            return found
        if len(found) == 1:  # nearly always, and this runs for every region
            return found if score >= found[0].threshold else ()
        return tuple(target for target in found if score >= target.threshold)

    def targets_for(self, label: str | None, shape: type) -> tuple[Target, ...]:
        """Targets of a class whose regions have this shape, whatever their score; none for a `Raw` shape."""
        kind = KIND_OF.get(shape)
        return () if kind is None else self.targets.get((label or "", kind), ())


def build_label_map(
    config: LabelConfig,
    classes: Iterable[str],
    *,
    task: str = "detect",
    threshold: float | None = None,
    aliases: Mapping[str, str] | None = None,
) -> LabelMap:
    """Map `classes` onto `config`.

    A class finds its label on each picture by, in this order: `aliases` (the labels file), `predicted_values`, the
    name; each first exactly, then without regard to case and `_`/space. An alias that the picture's controls do not
    have counts as none: one labels file serves many projects. `threshold` holds where the config names none.
    """
    classes = tuple(dict.fromkeys(classes))
    kinds = KINDS_OF_TASK.get(task, ("box",))
    names = {id(control): Names(control.labels) for control in config.controls}  # a control's own hash reads its labels
    targets: dict[tuple[str, Kind], tuple[Target, ...]] = {}
    for kind in kinds:
        shown = [tag for tag in config.objects if _is_seen(tag, kind, task)]
        pictures = list(_pictures(config, kind, names, shown))
        for name in classes:
            wanted = _Wanted.of(name, (aliases or {}).get(name))
            found = tuple(target for places in pictures if (target := _target(places, wanted, threshold)) is not None)
            if found:
                targets[name, kind] = found
    mapped = {name for name, _ in targets}
    drawn = [target for found in targets.values() for target in found]
    filled = {target.label for target in drawn}
    return LabelMap(
        targets=targets,
        unmapped=tuple(name for name in classes if name not in mapped),
        unfilled=tuple(dict.fromkeys(label for label in _labels_for(config, kinds) if label not in filled)),
        fields=tuple(dict.fromkeys(target.object for target in drawn)),
        fingerprint=_fingerprint(targets),
        config=config,
        lowest_threshold=min((target.threshold for target in drawn), default=1.0),
        notes=tuple(_notes(config, kinds, task)),
    )


class _Wanted(msgspec.Struct, frozen=True):
    """One class of the model on its way to a label."""

    name: str
    folded: str
    alias: str | None
    alias_folded: str

    @classmethod
    def of(cls, name: str, alias: str | None) -> _Wanted:
        return cls(name, fold(name), alias, fold(alias or ""))


class _Place(msgspec.Struct, frozen=True):
    """One control on one picture, with the controls that could name what it draws: itself, or for a bare geometry tag
    each <Labels> there."""

    control: Control
    object: ObjectTag
    holders: tuple[tuple[Control, Names], ...]
    text_control: Control | None

    def target(self, holder: Control, label: Label, default: float | None) -> Target:
        usual = _usual_threshold(self.control)
        threshold = _first(label.threshold, holder.threshold, self.control.threshold, default, usual)
        label_control = holder if holder is not self.control else None
        return Target(self.control, self.object, label.value, threshold, label_control, self.text_control)


def _usual_threshold(control: Control) -> float:
    """The best of choices that exclude each other is always shown: a wrong one costs the click that none would cost."""
    if control.tag == "Choices":
        return LIKELY if control.several else 0.0
    if control.tag == "TimelineLabels":
        return LIKELY
    return DEFAULT_THRESHOLD


def _is_seen(tag: ObjectTag, kind: Kind, task: str) -> bool:
    """Whether a model for this task finds things of this kind in what `tag` shows. A <HyperText> is read without its
    markup, so places in it are not those that Label Studio counts."""
    if task in READS_TEXTS:
        return tag.shows_texts and (task == "text" or tag.tag.lower() == "text")
    if kind in ("track", "interval"):
        return tag.shows_films
    return tag.shows_pictures or (task == "classify" and tag.shows_films)


def _pictures(
    config: LabelConfig, kind: Kind, names: Mapping[int, Names], shown: Sequence[ObjectTag]
) -> Iterator[list[_Place]]:
    """Per picture (or text) the places that could draw this kind, best first."""
    order = DRAWN_BY[kind]
    for tag in shown:
        there = [control for control in config.controls if tag.name in control.to_names]
        if kind == "whole":
            there = [control for control in there if not control.per_region]
        texts = next((control for control in there if control.tag == "TextArea" and control.per_region), None)
        labels = tuple((c, names[id(c)]) for c in there if c.tag == "Labels" and names[id(c)])
        drawing = sorted((control for control in there if control.tag in order), key=lambda c: order.index(c.tag))
        yield [_Place(c, tag, labels if c.tag in BARE else ((c, names[id(c)]),), texts) for c in drawing]


def _target(places: list[_Place], wanted: _Wanted, default: float | None) -> Target | None:
    """At most one target per picture: the first control, in order of preference, that knows the class."""
    if wanted.alias is not None:
        for place in places:
            for holder, names in place.holders:
                label = names.find_own(wanted.alias, wanted.alias_folded)
                if label is not None:
                    return place.target(holder, label, default)
    for place in places:
        if not place.holders:  # a bare geometry control on a picture without labels: drawn, without a label
            threshold = _first(place.control.threshold, default, DEFAULT_THRESHOLD)
            return Target(place.control, place.object, None, threshold, None, place.text_control)
        for holder, names in place.holders:
            label = names.find(wanted.name, wanted.folded)
            if label is not None:
                return place.target(holder, label, default)
    return None


def _labels_for(config: LabelConfig, kinds: Sequence[Kind]) -> Iterator[str]:
    """The labels that a model drawing these kinds is expected to fill."""
    for control in _expected(config, kinds):
        yield from (label.value for label in control.labels)


def _expected(config: LabelConfig, kinds: Sequence[Kind]) -> list[Control]:
    if not kinds:
        return []
    tags = {tag for kind in kinds for tag in DRAWN_BY[kind]}
    tags |= {"Labels"} if tags & set(BARE) else set()
    return [control for control in config.controls if control.tag in tags]


def _notes(config: LabelConfig, kinds: Sequence[Kind], task: str) -> Iterator[str]:
    """Why a control that this model would fill is left alone."""
    seen = "reads texts (<Text>) only" if task in READS_TEXTS else "looks at pictures (<Image>) only"
    for control in _expected(config, kinds):
        name = f'<{control.tag} name="{control.name}">'
        tags = [config.objects_by_name[to] for to in control.to_names if to in config.objects_by_name]
        fits = [kind for kind in kinds if control.tag in ("Labels", *DRAWN_BY[kind])]
        here = [tag for tag in tags if any(_is_seen(tag, kind, task) for kind in fits)]
        others = [f'<{tag.tag} name="{tag.name}">' for tag in tags if tag not in here]
        if control.dynamic and not control.labels:
            yield (
                f"{name} takes its labels from each task's data, so no class of the model can be mapped to them. "
                f'Write <Label value="…"/> tags into it for those that the model should fill.'
            )
        if others:
            looks = "looks at films (<Video>) only" if fits in (["track"], ["interval"]) else seen
            films = " On a <Video> it fills <VideoRectangle> with <Labels>." if "track" in kinds else ""
            yield f"{name} is not filled on {', '.join(others)}: this model {looks}.{films}"
        if not tags:
            yield f"{name} is not filled: {','.join(control.to_names)!r} in its toName shows nothing of a task's data."


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


def _certainty(region: Region) -> float:
    return 1.0 if region.score is None else region.score


def _first(*values: float | None) -> float:
    return next(value for value in values if value is not None)


def _fingerprint(targets: Mapping[tuple[str, Kind], tuple[Target, ...]]) -> str:
    """Over all that `media_refs` and `wire` read of a target, in the order in which they draw."""
    rows: list[Any] = [[*key, *map(_traits, found)] for key, found in sorted(targets.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:8]


def _traits(target: Target) -> list[Any]:
    control, shown, labels, texts = target.control, target.object, target.label_control, target.text_control
    return [
        control.name, control.tag, shown.name, shown.field, shown.is_list, target.label, target.threshold,
        labels and labels.name, texts and texts.name, *(["several"] if control.several else []),
        *(["url"] if shown.by_url else []), *([shown.frame_rate] if shown.shows_films else []),
    ]  # fmt: skip

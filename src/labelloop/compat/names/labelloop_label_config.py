"""A label config as objects, and as the dictionary that older models read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any
from xml.etree import ElementTree

logger = logging.getLogger(__name__)

LABEL_TAGS = ("Label", "Choice", "Relation")


class Label:
    """One `<Label>` or `<Choice>`. `value` is what goes into a result."""

    def __init__(self, element: ElementTree.Element, parent_name: str) -> None:
        self.attr = dict(element.attrib)
        self.tag = element.tag
        self.value = self.attr.get("alias") or self.attr.get("value") or ""
        self.parent_name = parent_name


class ObjectTag:
    """What is shown: `<Image>`, `<Text>`... `value` is as written ("$image"), `value_name` the key in the task."""

    def __init__(self, element: ElementTree.Element) -> None:
        self.attr = dict(element.attrib)
        self.tag = element.tag
        self.name = self.attr["name"]
        self.value = self.attr.get("value") or self.attr.get("valueList") or ""

    @property
    def value_name(self) -> str:
        return self.value[1:] if self.value.startswith("$") else self.value

    @property
    def value_is_variable(self) -> bool:
        return self.value.startswith("$")

    @property
    def value_type(self) -> str | None:
        return self.attr.get("valueType")


class ControlTag:
    """What is filled: `<RectangleLabels>`, `<Choices>`..."""

    def __init__(self, element: ElementTree.Element, objects: dict[str, ObjectTag]) -> None:
        self.attr = dict(element.attrib)
        self.tag = element.tag
        self.name = self.attr["name"]
        self.to_name = self.attr.get("toName", "").split(",")
        self.objects = [objects[name] for name in self.to_name if name in objects]
        found = [Label(child, self.name) for child in element.iter() if child.tag in LABEL_TAGS]
        self.labels_attrs = {label.value: label for label in found if label.value}
        self.labels = list(self.labels_attrs)

    @property
    def dynamic_labels(self) -> bool:
        return self.attr.get("value", "").startswith("$")


class LabelInterface:
    """The controls and objects of a label config. Raises ValueError for what is no XML."""

    def __init__(self, config: str, *_: Any, **__: Any) -> None:
        self.config = self._config = config
        try:
            root = ElementTree.fromstring(config)
        except ElementTree.ParseError as error:
            raise ValueError(f"The label config is not valid XML: {error}") from error
        elements = list(root.iter())
        named = [element for element in elements if element.get("name")]
        shown = [e for e in named if not e.get("toName") and (e.get("value") or e.get("valueList"))]
        self._objects = {tag.name: tag for tag in map(ObjectTag, shown)}
        filled = [element for element in named if element.get("toName")]
        self._controls = {element.attrib["name"]: ControlTag(element, self._objects) for element in filled}

    @property
    def controls(self) -> list[ControlTag]:
        return list(self._controls.values())

    @property
    def objects(self) -> list[ObjectTag]:
        return list(self._objects.values())

    @property
    def labels(self) -> list[dict[str, Label]]:
        return [control.labels_attrs for control in self.controls if control.labels]

    def get_control(self, name: str | None = None) -> Any:
        """The control of this name; without one, the only control there is."""
        return _pick(self._controls, name, "control")

    def get_object(self, name: str | None = None) -> Any:
        return _pick(self._objects, name, "object")

    def get_tag(self, name: str) -> Any:
        return self._controls[name] if name in self._controls else _pick(self._objects, name, "tag")

    def find_tags_by_class(self, tag: str | Iterable[str]) -> list[Any]:
        wanted = _names(tag)
        tags: list[Any] = [*self.controls, *self.objects]
        return [found for found in tags if found.tag in wanted]

    def get_first_tag_occurence(
        self,
        control_type: str | Iterable[str],
        object_type: str | Iterable[str],
        name_filter: Callable[[str], bool] | None = None,
        to_name_filter: Callable[[str], bool] | None = None,
    ) -> tuple[str, str, str]:
        """Name of the first control of a type that is about an object of a type, that object's name, and its key in
        the task. Raises ValueError when there is none."""
        controls, objects = _names(control_type), _names(object_type)
        for control in self.controls:
            if control.tag not in controls or (name_filter is not None and not name_filter(control.name)):
                continue
            for shown in control.objects:
                if shown.tag in objects and (to_name_filter is None or to_name_filter(shown.name)):
                    return control.name, shown.name, shown.value_name
        raise ValueError(f"The label config has no {' or '.join(controls)} on {' or '.join(objects)}")


def parse_config(config: str) -> dict[str, dict[str, Any]]:
    """By the control's name: its type, what it is about, and its labels with their attributes."""
    parsed: dict[str, dict[str, Any]] = {}
    for control in LabelInterface(config).controls:
        inputs = [
            {"type": shown.tag, "value": shown.value_name, "valueType": shown.value_type} for shown in control.objects
        ]
        parsed[control.name] = {
            "type": control.tag,
            "to_name": control.to_name,
            "inputs": inputs,
            "labels": control.labels,
            "labels_attrs": {name: label.attr for name, label in control.labels_attrs.items()},
        }
        if control.dynamic_labels:
            parsed[control.name]["dynamic_labels"] = True
    return parsed


def label_map(control: Any, names: Iterable[str]) -> dict[str, str]:
    """The control's label for each of a model's class names that has one: by `predicted_values`, else by the name
    itself, exactly or without regard to case."""
    names = list(names)
    by_lower = {name.lower(): name for name in reversed(names)}
    found: dict[str, str] = {}
    for label, tag in (control.labels_attrs or {}).items():
        wanted = [one.strip() for one in tag.attr.get("predicted_values", "").split(",") if one.strip()]
        known = [one for one in wanted if one in names]
        if wanted and not known:
            logger.warning("predicted_values of %r name no class of the model: %s", label, ", ".join(wanted))
        if not known and (own := by_lower.get(label.lower())) is not None:
            known = [label if label in names else own]
        found.update(dict.fromkeys(known, label))
    return found


def tag_class(name: str, base: type, module: str) -> Any:
    """A class whose instances are the tags of one kind, "ImageTag" for every `<Image>`. Raises AttributeError for what
    is no name of such a class."""
    if not name.endswith("Tag"):
        raise AttributeError(f"module {module!r} has no attribute {name!r}")

    class Kind(type):
        def __instancecheck__(cls, tag: object) -> bool:
            return isinstance(tag, base) and getattr(tag, "tag", "") + "Tag" == name

    return Kind(name, (base,), {})


def _names(types: str | Iterable[str]) -> tuple[str, ...]:
    return (types,) if isinstance(types, str) else tuple(types)


def _pick(tags: dict[str, Any], name: str | None, kind: str) -> Any:
    if name is None and len(tags) == 1:
        return next(iter(tags.values()))
    if name not in tags:
        raise ValueError(f"The label config has no {kind} {name!r}; it has {', '.join(tags) or 'none'}")
    return tags[name]

"""Which version serves a project now, and how its classes land in the project's label config."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import NamedTuple, Self

import msgspec
import structlog

from labelloop.core.cards import ModelCard
from labelloop.core.errors import LabelConfigError, LabelloopError, ModelNotFound, ModelUnassigned
from labelloop.core.settings import Settings
from labelloop.engines.labels import NAMELESS, are_placeholders, named
from labelloop.labelstudio.config import LabelConfig, parse_config
from labelloop.labelstudio.labelmap import LabelMap, build_label_map, read_labels_file
from labelloop.serving.slots import Slots
from labelloop.store.registry import Catalogue, ModelVersion, Registry

log = structlog.get_logger(__name__)

MAX_PROJECTS = 10_000
"""Projects whose label config is remembered; the one that was configured longest ago goes first."""

NO_MODEL = "no-model"
"""What `/setup` answers as version for a project without a model; Label Studio wants a string that is not empty."""


FOLLOWING = "bytetrack/1"
"""What `Settings.following` says where nothing is set."""


class View(msgspec.Struct, frozen=True):
    """One model version as one project sees it. `name` is the version string in Label Studio: it changes exactly
    when the model, its card, the label map or a threshold changes."""

    version: ModelVersion
    config: LabelConfig
    label_map: LabelMap
    name: str
    config_xml: str = ""

    @property
    def raw(self) -> bool:
        """The model is given whole tasks, and writes results itself."""
        return self.version.card.task == "raw"


class Lens(msgspec.Struct, frozen=True):
    """The settings through which every version sees every project: `threshold` None takes the model card's, `aliases`
    is what the labels file says, `following` the setting of that name."""

    threshold: float | None = None
    aliases: Mapping[str, str] = {}
    following: str = FOLLOWING

    @classmethod
    def shared(cls, settings: Settings, catalogue: Catalogue) -> Self:
        """For every process but the server: where the settings say nothing, what the server was told counts, so that
        `labelloop serve --score-threshold 0.6` means the same to a command in another terminal. Raises
        LabelConfigError."""
        own, told = cls.of(settings), catalogue.lens
        threshold = told.get("threshold") if own.threshold is None else own.threshold
        aliases = told.get("aliases", {}) if settings.labels_file is None else own.aliases
        return cls(threshold, aliases, own.following)

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Reads the labels file, if there is one. Raises LabelConfigError."""
        aliases = read_labels_file(settings.labels_file) if settings.labels_file else {}
        return cls(settings.score_threshold, aliases, settings.following)

    def label_map(self, card: ModelCard, config: LabelConfig) -> LabelMap:
        """What a model's classes are called in a label config, and from which score they are drawn."""
        return build_label_map(
            config,
            named(card.labels),
            task=card.task,
            threshold=self.threshold if self.threshold is not None else card.score_threshold,
            aliases=self.aliases,
        )

    def view(self, version: ModelVersion, config_xml: str, *, said: str = "") -> View:
        """One version seen through a label config; `said` is what a hosted model calls itself (Catalogue.called), which
        Label Studio then knows it by. Raises LabelConfigError."""
        config = parse_config(config_xml)
        label_map = self.label_map(version.card, config)
        if label_map.unmapped:
            log.warning(
                "classes of the model map to nothing in the label config",
                model=version.id,
                classes=list(label_map.unmapped[:20]),
                more=max(0, len(label_map.unmapped) - 20),
                fix='add <Label value="…" predicted_values="CLASS"/> or a labels file',
            )
        for note in label_map.notes:
            log.warning("label config", model=version.id, note=note)
        films = f"/{self.following}" if any(tag.shows_films for tag in label_map.fields) else ""
        mark = hashlib.sha256(f"{version.digest}/{label_map.fingerprint}{films}".encode()).hexdigest()[:8]
        return View(version, config, label_map, said or f"{version.id}.{mark}", config_xml)


class _Seen(NamedTuple):
    """What a project asked with last, and how it was seen then."""

    config_xml: str
    view: View | None
    said: str = ""


class Projects:
    """Answers "who serves project N?" from memory; `refresh` reads the store, about once a second.

    While a newly assigned version is still loading, the one before goes on serving, in `/setup` and `/predict` alike.
    """

    def __init__(self, settings: Settings, registry: Registry, slots: Slots, *, default: str | None = None) -> None:
        self.lens = Lens.of(settings)
        self._registry = registry
        self._slots = slots
        self._default = default
        self._live: dict[int | None, ModelVersion] = {}
        self._seen: OrderedDict[int | None, _Seen] = OrderedDict()
        self._lock = threading.Lock()
        self.catalogue = Catalogue()
        self.refresh()

    def refresh(self) -> None:
        """Read the store again and begin to load what projects need."""
        self.catalogue = self._registry.catalogue()
        wanted = self.wanted()
        for version in wanted:
            self._slots.ensure(version)
        self._slots.trim([*wanted, *self._live.values()])

    def wanted(self) -> list[ModelVersion]:
        """The versions that projects are assigned to, and the default."""
        found: dict[str, ModelVersion] = {}
        for project in self._known():
            try:
                version = self._desired(project)
            except ModelNotFound:
                continue  # removed by hand under a project that uses it: told to that project, the others go on
            if version is not None:
                found[version.id] = version
        return list(found.values())

    def version_of(self, project_id: int | None) -> ModelVersion | None:
        """The version that answers now, None when the project has no model."""
        desired, live = self._desired(project_id), self._live.get(project_id)
        if desired is None:
            return None
        if live is None or live.id == desired.id or self._is_ready(desired) or not self._is_ready(live):
            live = self._live[project_id] = desired
        return live

    def by_default(self, project_id: int) -> str:
        """The id of the version that answers a project because this process was told so, not because it is assigned; ""
        where that is not so."""
        assigned = project_id in self.catalogue.bindings
        return "" if assigned or self._default is None else self.catalogue.meaning(self._default)

    def serving(self, project_id: int | None) -> tuple[ModelVersion | None, str]:
        """`version_of`, and what that version calls itself for the project if it is hosted, else ""."""
        version = self.version_of(project_id)
        return version, "" if version is None else self.catalogue.called(version, project_id)

    def view(self, project_id: int | None, config_xml: str) -> View | None:
        """The serving version seen through a label config; None without a model. Raises LabelConfigError."""
        version, said = self.serving(project_id)
        seen = self._seen.get(project_id)
        if seen is not None and seen.config_xml == config_xml and seen.said == said and _shows(seen.view, version):
            return seen.view
        view = None if version is None else self.lens.view(version, config_xml, said=said)
        with self._lock:
            self._seen[project_id] = _Seen(config_xml, view, said)
            self._seen.move_to_end(project_id)
            while len(self._seen) > MAX_PROJECTS:
                self._seen.popitem(last=False)
        return view

    def views(self) -> Mapping[int, View | None]:
        """Every project that asked or is assigned, as it is served now; None without a model or a readable config."""
        return {project: self._view_or_none(project) for project in self._known() if project is not None}

    def copy_binding(self, source: int, target: int) -> None:
        """The project `target` is a copy of `source`: serve it with the same model."""
        binding = self.catalogue.bindings.get(source)
        if binding is not None:
            spec = binding.name if binding.number is None else f"{binding.name}@{binding.number}"
            self._registry.bind(target, spec, reason=f"copy of project {source}")

    def forget(self, project_id: int) -> None:
        """The project was deleted or disconnected."""
        self._seen.pop(project_id, None)
        self._live.pop(project_id, None)

    def _view_or_none(self, project_id: int) -> View | None:
        try:
            seen = self._seen.get(project_id)
            return self.view(project_id, seen.config_xml) if seen is not None else None
        except LabelloopError:
            return None  # the reason was answered and logged where the config came in

    def _known(self) -> list[int | None]:
        asked = {project for project in list(self._seen) if project is not None}
        return [None, *sorted(asked | self.catalogue.bindings.keys())]

    def _desired(self, project_id: int | None) -> ModelVersion | None:
        return self.catalogue.of_project(project_id, default=self._default, served=False)

    def _is_ready(self, version: ModelVersion) -> bool:
        slot = self._slots.state_of(version)
        return slot is not None and slot.state == "ready"


def _shows(view: View | None, version: ModelVersion | None) -> bool:
    """Whether `view` is one of `version`."""
    if view is None or version is None:
        return view is None and version is None
    return view.version.id == version.id and view.version.digest == version.digest


def nothing_fits(view: View) -> LabelConfigError:
    """Why a version finds nothing for a project, and what to do about it."""
    hint = 'Add predicted_values="CLASS" to a <Label>, or give a labels file; see labelloop doctor.'
    if view.label_map.unmapped and are_placeholders(view.label_map.unmapped):
        hint = f"{NAMELESS}."
    return LabelConfigError(f"No class of {view.version.id} maps to a label of this project.", hint=hint)


def unassigned(project_id: int | None) -> LabelloopError:
    """Why a project is not served, and what to do about it."""
    name = "this project" if project_id is None else f"project {project_id}"
    return ModelUnassigned(
        f"No model is assigned to {name}.",
        hint=f"Run: labelloop models use {'PROJECT' if project_id is None else project_id} NAME",
    )

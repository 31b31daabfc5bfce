"""Model files into the registry, and versions into engines. Servers and command line tools begin here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import msgspec
import sqlalchemy as sa
import structlog

from labelloop.core import plugins
from labelloop.core.cards import ModelCard
from labelloop.core.decoding import convert
from labelloop.core.errors import LabelloopError, ModelError, ModelUnrecognised
from labelloop.core.settings import Settings
from labelloop.engines.base import Desk, Engine, EngineFactory, EngineOptions, cpu_threads
from labelloop.engines.classify import FAMILIES as CLASSIFIERS
from labelloop.engines.model_folder import is_model_folder, pack
from labelloop.store.annotations import Annotations
from labelloop.store.artifacts import Artifacts
from labelloop.store.db import open_database
from labelloop.store.events import Events
from labelloop.store.fits import Fits
from labelloop.store.jobs import Jobs
from labelloop.store.registry import ModelVersion, Registry, parse_number
from labelloop.store.scores import Scores
from labelloop.store.values import Values
from labelloop.store.watches import Watches
from labelloop.store.workers import Workers

log = structlog.get_logger(__name__)


SUFFIXES = {".npz": "text", ".zip": "transformers"}
"""Kinds of file that only one engine reads; a zip is a packed folder of transformers."""

ENGINE_OF_TASK = ("classify", "text")
"""Tasks whose engine is called as they are."""


class Store(NamedTuple):
    registry: Registry
    events: Events
    workers: Workers
    jobs: Jobs
    engine: sa.Engine
    annotations: Annotations
    watches: Watches
    scores: Scores
    values: Values
    fits: Fits


def open_store(settings: Settings) -> Store:
    """Open (create, migrate) the store that `settings` name."""
    engine = open_database(settings)
    url = settings.artifacts_url or str(settings.home / "models")
    own = bool(settings.database_url) and not settings.artifacts_url
    artifacts = Artifacts(url, cache=settings.home / "cache" / "models", own=own)
    artifacts.sweep()
    registry, workers = Registry(engine, artifacts), Workers(engine)
    jobs = Jobs(engine, workers)
    return Store(
        registry,
        Events(engine),
        workers,
        jobs,
        engine,
        Annotations(engine),
        Watches(engine),
        Scores(engine),
        Values(engine),
        Fits(engine),
    )


def open_registry(settings: Settings) -> Registry:
    """The registry alone, for command line tools."""
    return open_store(settings).registry


def add_model(
    registry: Registry, path: Path | None, card: ModelCard, settings: Settings, *, trained: bool = False
) -> ModelVersion:
    """Complete `card` from the file and store both; `trained` as in `Registry.add`. Raises ModelError when the file is
    not one we can serve."""
    if not card.labels and settings.labels:
        card = msgspec.structs.replace(card, labels=tuple(settings.labels))
    if path is not None and is_model_folder(path):
        with TemporaryDirectory(prefix="labelloop-add-") as folder:
            packed = Path(folder) / f"{model_name(path.name)}.zip"
            pack(path, packed)
            return registry.add(packed, _described(packed, card), trained=trained)
    if path is not None and not path.is_file():
        raise ModelError(f"There is no file {path}.")
    return registry.add(path, _described(path, card), trained=trained)


def _described(path: Path | None, card: ModelCard) -> ModelCard:
    """The card, completed by its engine. One that names none (`detect` is the default) gets the engine that its task or
    the kind of file asks for; an ONNX file that is no detector may be a classifier."""
    engines = ["classify" if card.engine == "detect" and card.family in CLASSIFIERS else card.engine]
    if card.engine == "detect" and card.family is None:
        told = SUFFIXES.get(path.suffix.lower()) if path is not None else None
        engines = [told or (card.task if card.task in ENGINE_OF_TASK else card.engine)]
        engines += ["classify"] if engines == ["detect"] and card.task == "detect" else []
    first: ModelUnrecognised | None = None
    for engine in engines:
        factory: EngineFactory = plugins.load("labelloop.engines", engine)
        if path is None and factory.needs_file:
            raise ModelError(f"The engine {engine} needs a model file.")
        try:
            return factory.describe(path, msgspec.structs.replace(card, engine=engine))
        except ModelUnrecognised as error:  # what the first engine says is what people need to read
            first = first or error
    raise first or ModelError(f"No engine is named for {card.name}.")


def add_models_dir(registry: Registry, folder: Path, settings: Settings) -> list[ModelVersion]:
    """Add every model file (ONNX, .npz) of a folder. `7.onnx` serves project 7, unless a person assigned another model.

    A file that cannot be served is logged and left out; the others are added. Files whose names become one model name
    stay two models: the second gets a suffix that depends on nothing but its file name.
    """
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.", hint="Check --models or LABELLOOP_MODELS_DIR.")
    added: dict[str, ModelVersion] = {}
    for path in sorted(path for path in folder.iterdir() if path.suffix in (".onnx", *SUFFIXES)):
        project = project_of(path)
        name = model_name(path.stem) if project is None else f"project-{project}"
        if name in added:
            name = _with_suffix(name, path.stem)
        try:
            added[name] = add_model(registry, path, read_card(path.with_suffix(".yaml"), name=name), settings)
            if project is not None and registry.catalogue().bindings.get(project) is None:
                # the card beside the file may give another name
                registry.bind(project, added[name].name, reason=f"{path.name} in the models folder", by="serve")
        except LabelloopError as error:
            log.error("model left out", file=str(path), error=str(error))
    return list(added.values())


def project_of(path: Path) -> int | None:
    """The project that a file in a models folder is for: 7 for `7.onnx`, None for one with a name."""
    return parse_number(path.stem)


def model_name(stem: str) -> str:
    """A name for the registry from the name of a file: "my model (1)" becomes "my-model--1"."""
    name = re.sub(r"[^0-9A-Za-z._-]", "-", stem).strip("-_.")[:80]
    return name or _with_suffix("model", stem)


def _with_suffix(name: str, stem: str) -> str:
    return f"{name[:71]}-{hashlib.sha256(stem.encode(errors='surrogateescape')).hexdigest()[:8]}"


def read_card(path: Path, *, name: str) -> ModelCard:
    """The model card in a YAML file; a bare card called `name` when there is none. Raises ModelError."""
    if not path.is_file():
        return ModelCard(name=name)
    try:
        fields = msgspec.yaml.decode(path.read_bytes())
        return convert({"name": name} | (fields or {}), ModelCard)
    except (msgspec.MsgspecError, OSError, TypeError) as error:
        raise ModelError(f"The model card {path} cannot be used: {error}.", hint="See docs/engines.md.") from error


def default_model(registry: Registry, model: str, settings: Settings) -> str:
    """The spec that `--model` means: a file (added to the registry under its own name), an engine that needs no file
    (`ocr`), or a model that is in the registry already."""
    path = Path(model)
    if path.is_file():
        card = read_card(path.with_suffix(".yaml"), name=model_name(path.stem))
        return add_model(registry, path, card, settings).id
    if model in plugins.names("labelloop.engines") and not plugins.load("labelloop.engines", model).needs_file:
        return add_model(registry, None, ModelCard(name=model, engine=model, task=model), settings).id
    if path.suffix or "/" in model:
        raise ModelError(f"There is no file {model}.", hint="Give an ONNX file or the name of a model you added.")
    return registry.catalogue().find(model).id


def load_engine(registry: Registry, settings: Settings, version: ModelVersion, desk: Desk | None = None) -> Engine:
    """Load one version onto the device of the settings. May take long. `desk` serves models that are other people's
    code."""
    factory: EngineFactory = plugins.load("labelloop.engines", version.card.engine)
    options = EngineOptions(
        device=settings.device, threads=settings.threads or cpu_threads(), max_batch=settings.max_batch, desk=desk
    )
    return factory(registry.path(version), version.card, options)

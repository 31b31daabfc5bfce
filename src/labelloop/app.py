"""The only place where parts are put together."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import structlog
from starlette.routing import Router
from starlette.types import ASGIApp

from labelloop.core import plugins
from labelloop.core.cards import ModelCard
from labelloop.core.errors import LabelloopError, ModelError
from labelloop.core.metrics import Metrics
from labelloop.core.settings import Settings
from labelloop.engines.base import Engine, EngineFactory, EngineOptions, cpu_threads
from labelloop.http.api import Api
from labelloop.http.auth import BasicAuth
from labelloop.http.edge import Edge
from labelloop.http.ops import Ops
from labelloop.http.pages import Pages
from labelloop.http.protocol import Protocol
from labelloop.media.load import MediaLoader
from labelloop.serving.origins import Origins
from labelloop.serving.predict import Predictor
from labelloop.serving.projects import Projects
from labelloop.serving.slots import Load, Slots
from labelloop.store.artifacts import Artifacts
from labelloop.store.db import open_database
from labelloop.store.events import Events
from labelloop.store.registry import ModelVersion, Registry

log = structlog.get_logger(__name__)

REFRESH_S = 1.0
"""How often a server looks whether another process assigned or added a model."""


class Store(NamedTuple):
    registry: Registry
    events: Events


def open_store(settings: Settings) -> Store:
    """Open (create, migrate) the store that `settings` name."""
    engine = open_database(settings)
    url = settings.artifacts_url or str(settings.home / "models")
    return Store(Registry(engine, Artifacts(url, cache=settings.home / "cache" / "models")), Events(engine))


def open_registry(settings: Settings) -> Registry:
    """The registry alone, for command line tools."""
    return open_store(settings).registry


def add_model(registry: Registry, path: Path | None, card: ModelCard, settings: Settings) -> ModelVersion:
    """Complete `card` from the file and store both. Raises ModelError when the file is not one we can serve."""
    if path is not None and not path.is_file():
        raise ModelError(f"There is no file {path}.")
    if not card.labels and settings.labels:
        card = msgspec.structs.replace(card, labels=tuple(settings.labels))
    factory: EngineFactory = plugins.load("labelloop.engines", card.engine)
    if path is None and factory.needs_file:
        raise ModelError(f"The engine {card.engine} needs a model file.")
    return registry.add(path, factory.describe(path, card))


def add_models_dir(registry: Registry, folder: Path, settings: Settings) -> list[ModelVersion]:
    """Add every ONNX file of a folder. `7.onnx` serves project 7, unless a person assigned another model.

    A file that cannot be served is logged and left out; the others are added.
    """
    if not folder.is_dir():
        raise ModelError(f"There is no folder {folder}.", hint="Check --models or LABELLOOP_MODELS_DIR.")
    added = []
    for path in sorted(folder.glob("*.onnx")):
        project = int(path.stem) if path.stem.isdigit() else None
        name = path.stem if project is None else f"project-{project}"
        try:
            version = add_model(registry, path, read_card(path.with_suffix(".yaml"), name=name), settings)
        except LabelloopError as error:
            log.error("model left out", file=str(path), error=str(error))
            continue
        added.append(version)
        if project is not None and registry.catalogue().bindings.get(project) is None:
            registry.bind(project, name, reason=f"{path.name} in the models folder")
    return added


def read_card(path: Path, *, name: str) -> ModelCard:
    """The model card in a YAML file; a bare card called `name` when there is none. Raises ModelError."""
    if not path.is_file():
        return ModelCard(name=name)
    try:
        fields = msgspec.yaml.decode(path.read_bytes())
        return msgspec.convert({"name": name} | (fields or {}), ModelCard)
    except (msgspec.MsgspecError, OSError, TypeError) as error:
        raise ModelError(f"The model card {path} cannot be used: {error}.", hint="See docs/engines.md.") from error


def default_model(registry: Registry, model: str, settings: Settings) -> str:
    """The spec that `--model` means: a file (added to the registry under its own name), an engine that needs no file
    (`ocr`), or a model that is in the registry already."""
    path = Path(model)
    if path.is_file():
        name = "".join(char if char.isalnum() or char in "-_." else "-" for char in path.stem).strip("-_.") or "model"
        return add_model(registry, path, read_card(path.with_suffix(".yaml"), name=name), settings).id
    if model in plugins.names("labelloop.engines") and not plugins.load("labelloop.engines", model).needs_file:
        return add_model(registry, None, ModelCard(name=model, engine=model, task=model), settings).id
    if path.suffix or "/" in model:
        raise ModelError(f"There is no file {model}.", hint="Give an ONNX file or the name of a model you added.")
    return registry.catalogue().find(model).id


def load_engine(registry: Registry, settings: Settings, version: ModelVersion) -> Engine:
    """Load one version onto the device of the settings. May take long."""
    factory: EngineFactory = plugins.load("labelloop.engines", version.card.engine)
    options = EngineOptions(
        device=settings.device, threads=settings.threads or cpu_threads(), max_batch=settings.max_batch
    )
    return factory(registry.path(version), version.card, options)


class Parts(NamedTuple):
    """The running parts of one server."""

    store: Store
    metrics: Metrics
    slots: Slots
    projects: Projects
    origins: Origins
    media: MediaLoader
    predictor: Predictor


def assemble(settings: Settings, *, model: str | None = None, load: Load | None = None) -> Parts:
    """Make the parts; models begin to load in the background. `load` replaces how a version becomes an Engine."""
    store = open_store(settings)
    if settings.models_dir is not None:
        add_models_dir(store.registry, settings.models_dir, settings)
    default = default_model(store.registry, model, settings) if model else None
    metrics = Metrics()
    slots = Slots(
        load or (lambda version: load_engine(store.registry, settings, version)),
        limit=settings.max_loaded,
        metrics=metrics,
    )
    projects = Projects(settings, store.registry, slots, default=default)
    origins = Origins(settings, store.registry.connections, trust_setup=is_private(settings))
    media = MediaLoader(settings, origins.of, observe=_media_observer(metrics))
    predictor = Predictor(
        media,
        slots,
        store.events,
        metrics=metrics,
        media_workers=settings.media_workers,
        queue_limit=settings.queue_limit,
    )
    return Parts(store, metrics, slots, projects, origins, media, predictor)


def create_app(settings: Settings, parts: Parts) -> ASGIApp:
    """The web application around `parts`."""
    registry = parts.store.registry
    auth = BasicAuth(settings.basic_auth_user, settings.basic_auth_pass.get_secret_value())
    protocol = Protocol(settings, parts.projects, parts.predictor, parts.origins, parts.store.events, parts.metrics)
    api = Api(
        parts.projects,
        parts.slots,
        parts.store.events,
        add_model=lambda path, card: add_model(registry, path, card, settings),
        assign=registry.bind,
    )
    warnings = exposure_warnings(settings)
    for warning in warnings:
        log.warning(warning)
    routes = [
        *protocol.routes(),
        *api.routes(),
        *Ops(parts.projects, parts.slots, parts.metrics).routes(),
        *Pages(settings, api, parts.store.events, warnings=warnings).routes(),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        following = asyncio.create_task(follow_store(parts))
        try:
            yield
        finally:
            following.cancel()
            await asyncio.to_thread(close, parts)

    paths = frozenset(route.path for route in routes)
    # a bare router: Starlette's own error layer would answer before ours could, and again after it
    return Edge(Router(routes, lifespan=lifespan), auth=auth, metrics=parts.metrics, paths=paths)


async def follow_store(parts: Parts) -> None:
    """Take over what other processes changed: new versions, moved pointers, new connections."""
    while True:
        await asyncio.sleep(REFRESH_S)
        try:
            await asyncio.to_thread(parts.projects.refresh)
            await asyncio.to_thread(parts.origins.reload)
        except Exception as error:  # a database that is away for a moment must not stop the server
            log.error("the store cannot be read; going on with what is known", error=str(error))


def close(parts: Parts) -> None:
    """End the threads; what was begun is finished."""
    parts.predictor.close()
    parts.slots.close()
    parts.media.close()


def is_private(settings: Settings) -> bool:
    """Whether strangers are kept out: a password is demanded, or only this machine can connect."""
    if settings.basic_auth_user or settings.basic_auth_pass.get_secret_value():
        return True
    host, _ = settings.listen
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def exposure_warnings(settings: Settings) -> list[str]:
    """What an operator should know about who can reach this server."""
    if is_private(settings):
        return []
    return [
        f"Listening on {settings.listen[0]} without a password: anybody who reaches this port can use the models. "
        "Set --basic-auth-user and --basic-auth-pass, and run labelloop connect again."
    ]


def _media_observer(metrics: Metrics) -> Any:
    counters = {
        "fetch": metrics.fetch_seconds,
        "decode": metrics.decode_seconds,
        "cache_hit": metrics.cache_hits,
        "cache_miss": metrics.cache_misses,
    }
    return lambda name, value: counters[name].inc(value)

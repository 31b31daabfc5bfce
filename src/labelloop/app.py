"""The only place where parts are put together."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import structlog
from starlette.routing import Router

from labelloop.core import collector
from labelloop.core.errors import ModelNotFound
from labelloop.core.metrics import Metrics
from labelloop.core.settings import Settings
from labelloop.http.api import Api
from labelloop.http.auth import BasicAuth, Callers
from labelloop.http.edge import Edge
from labelloop.http.feed import Feed
from labelloop.http.hosted import HostedCalls
from labelloop.http.jobs import JobsApi
from labelloop.http.loop import LoopApi
from labelloop.http.ops import Ops
from labelloop.http.order import OrderApi
from labelloop.http.pages import Pages
from labelloop.http.pointers import PointersApi
from labelloop.http.protocol import Protocol
from labelloop.http.quality import QualityApi
from labelloop.http.watches import WatchesApi
from labelloop.jobs.fit import KIND as FIT
from labelloop.jobs.fit import FitOpener, FitTriggers
from labelloop.jobs.kinds import Kinds, OpenKind
from labelloop.jobs.looks import Looks
from labelloop.jobs.open import Loop, Opener
from labelloop.jobs.open_retrain import RetrainOpener
from labelloop.jobs.resident import Resident
from labelloop.jobs.run_folder import sweep
from labelloop.jobs.training import KIND, Training
from labelloop.jobs.triggers import Triggers
from labelloop.jobs.watchers import Watchers
from labelloop.jobs.worker import Engine, Worker
from labelloop.learning.acquisition import Acquisition, scorer
from labelloop.learning.memory import Recorder
from labelloop.media.load import MediaLoader
from labelloop.serving.desk import HouseDesk
from labelloop.serving.films import Films
from labelloop.serving.media_metrics import MediaMetrics
from labelloop.serving.models import Store, add_model, add_models_dir, default_model, load_engine, open_store
from labelloop.serving.origins import Origins
from labelloop.serving.predict import Predictor
from labelloop.serving.projects import Projects, View
from labelloop.serving.slots import Load, Slots
from labelloop.store.registry import ModelVersion, Registry

log = structlog.get_logger(__name__)

WATCHING_ENDS_S = 2.0

REFRESH_S = 1.0
"""How often a server looks whether another process assigned or added a model."""


class Parts(NamedTuple):
    """The running parts of one server."""

    store: Store
    training: Training
    metrics: Metrics
    slots: Slots
    projects: Projects
    origins: Origins
    media: MediaLoader
    predictor: Predictor
    loop: Loop
    jobs: Resident
    """Runs background jobs with the parts above, once it is started."""
    watchers: Watchers
    recorder: Recorder


def assemble(settings: Settings, *, model: str | None = None, load: Load | None = None) -> Parts:
    """Make the parts; models begin to load in the background. `load` replaces how a version becomes an Engine."""
    store = open_store(settings)
    if settings.models_dir is not None:
        add_models_dir(store.registry, settings.models_dir, settings)
    default = default_model(store.registry, model, settings) if model else None
    metrics = Metrics()
    origins = Origins(settings, store.registry.connections, trust_setup=is_private(settings))
    desk = HouseDesk(settings.home, store.values, origins, lambda: media)
    slots = _slots(settings, store, metrics, load, desk)
    projects = Projects(settings, store.registry, slots, default=default)
    store.registry.save_lens(threshold=projects.lens.threshold, aliases=projects.lens.aliases)
    desk.on_version = projects.refresh
    media, predictor = _path(settings, store, metrics, slots, origins)
    loop = Loop()
    training = training_of(store, default=default, address=settings.label_studio_url)
    needed = projects.wanted
    jobs = Resident(
        lambda: _worker(settings, store, training, slots, predictor, media, origins, loop, desk, needed=needed)
    )
    watchers = Watchers(settings, store, projects.serving, named=settings.watch, kept=True)
    recorder = Recorder(store.scores)
    return Parts(store, training, metrics, slots, projects, origins, media, predictor, loop, jobs, watchers, recorder)


@contextlib.contextmanager
def open_worker(settings: Settings, *, load: Load | None = None) -> Iterator[Worker]:
    """A worker with a prediction path of its own and no server. `load` as in `assemble`."""
    with _workshop(settings, load) as (_, make):
        yield make()


@contextlib.contextmanager
def open_watch(settings: Settings, projects: Sequence[str], *, load: Load | None = None) -> Iterator[Watchers]:
    """Watches `projects` without a server; runs jobs too, unless another process does. `load` as in `assemble`."""
    with _workshop(settings, load) as (store, make):
        resident = Resident(make)

        def ensure_worker() -> None:
            if not store.workers.any_alive():
                resident.start()

        def serving(project: int) -> tuple[ModelVersion | None, str]:
            return store.registry.catalogue().serving(project)

        try:
            yield Watchers(settings, store, serving, named=projects, kept=False, ensure_worker=ensure_worker)
        finally:
            resident.stop()


@contextlib.contextmanager
def _workshop(settings: Settings, load: Load | None) -> Iterator[tuple[Store, Callable[[], Worker]]]:
    """A store, and how to make a worker with a prediction path of its own."""
    store = open_store(settings)
    metrics = Metrics()
    origins = Origins(settings, store.registry.connections, trust_setup=True)
    desk = HouseDesk(settings.home, store.values, origins, lambda: media)
    slots = _slots(settings, store, metrics, load, desk)
    media, predictor = _path(settings, store, metrics, slots, origins)
    with Loop() as loop:
        try:
            yield (
                store,
                partial(
                    _worker,
                    settings,
                    store,
                    training_of(store, address=settings.label_studio_url),
                    slots,
                    predictor,
                    media,
                    origins,
                    loop,
                    desk,
                    needed=tuple,
                ),
            )
        finally:
            predictor.close()
            slots.close()
            media.close()


@contextlib.contextmanager
def open_looks(
    settings: Settings, store: Store, view: View, *, project_id: int, label_studio: tuple[str, str]
) -> Iterator[Looks]:
    """Looks at a project's pictures, with a prediction path of its own; `label_studio` is its address and a token.
    Raises LabelloopError when the model does not load."""
    metrics = Metrics()
    slots = _slots(settings, store, metrics, None, None)
    origins = Origins(settings, store.registry.connections, trust_setup=True)
    origins.remember(project_id, *label_studio)
    media, predictor = _path(settings, store, metrics, slots, origins)
    with Loop() as loop:
        try:
            slots.ensure(view.version).loaded.result()
            yield Looks(predictor, loop, view, check=lambda: None)
        finally:
            predictor.close()
            slots.close()
            media.close()


def _worker(
    settings: Settings,
    store: Store,
    training: Training,
    slots: Slots,
    predictor: Predictor,
    media: MediaLoader,
    origins: Origins,
    loop: Loop,
    desk: HouseDesk,
    *,
    needed: Callable[[], Sequence[ModelVersion]],
) -> Worker:
    """A worker for every kind of job. `needed` are the versions that others need in memory."""

    def engine(name: str, step: Callable[[str], bool]) -> Engine:
        from labelloop.jobs.durable import Durable, url_of  # a second, which only those with jobs pay

        made = Durable(url_of(settings.database_url, settings.home), worker=name, step=step)
        collector.has_grown()
        return made

    prelabel = Opener(
        settings, store.engine, store.jobs, store.registry, slots, predictor, origins, loop, needed=needed
    )
    retrain = RetrainOpener(settings, training, prelabel, media, store.scores, store.fits)
    fit = FitOpener(store.registry, slots, store.fits, folder=desk.folder, annotated=desk.annotated)
    openers: dict[str, OpenKind] = {"prelabel": prelabel.open, KIND: retrain.open, FIT: fit.open}
    kinds = Kinds(store.jobs, openers, shared=["prelabel"])
    sweep(settings, training)
    triggers, learners = Triggers(training), FitTriggers(store.fits, store.jobs, store.registry)
    return Worker(store.jobs, store.workers, kinds, engine, look=lambda: triggers.look() + learners.look())


def training_of(store: Store, *, default: str | None = None, address: str = "") -> Training:
    """The rows that training is about; `default` is the model that `serve` was given, `address` the Label Studio of the
    settings."""
    return Training.over(store.engine, store.registry, store.jobs, default=default, address=address)


@contextlib.contextmanager
def open_desk(settings: Settings, store: Store) -> Iterator[HouseDesk]:
    """What hosted models need, without a server."""
    origins = Origins(settings, store.registry.connections, trust_setup=True)
    media = MediaLoader(settings, origins.of)
    try:
        yield HouseDesk(settings.home, store.values, origins, lambda: media)
    finally:
        media.close()


@contextlib.contextmanager
def open_media(settings: Settings, registry: Registry) -> Iterator[MediaLoader]:
    """A media loader alone, for commands: it knows what `labelloop connect` saved."""
    media = MediaLoader(settings, Origins(settings, registry.connections, trust_setup=True).of)
    try:
        yield media
    finally:
        media.close()


def _slots(settings: Settings, store: Store, metrics: Metrics, load: Load | None, desk: HouseDesk | None) -> Slots:
    return Slots(
        load or (lambda version: load_engine(store.registry, settings, version, desk)),
        limit=settings.max_loaded,
        metrics=metrics,
    )


def _path(
    settings: Settings, store: Store, metrics: Metrics, slots: Slots, origins: Origins
) -> tuple[MediaLoader, Predictor]:
    media_metrics = MediaMetrics(metrics)
    media = MediaLoader(settings, origins.of, observe=media_metrics.observe)
    predictor = Predictor(
        media,
        Films(media, settings, media_metrics),
        slots,
        store.events,
        score=scorer(Acquisition(strategy=settings.acquisition, aggregation=settings.aggregation)),
        metrics=metrics,
        media_metrics=media_metrics,
        media_workers=settings.media_workers,
        queue_limit=settings.queue_limit,
    )
    return media, predictor


def create_app(settings: Settings, parts: Parts) -> Edge:
    """The web application around `parts`. Call its `end_streams` before waiting for callers to go."""
    registry = parts.store.registry
    auth = BasicAuth(settings.basic_auth_user, settings.basic_auth_pass.get_secret_value())
    training = parts.training
    protocol = Protocol(
        settings,
        parts.projects,
        parts.predictor,
        parts.origins,
        parts.store.events,
        training,
        parts.metrics,
        note=parts.recorder.note,
        homes=registry.homes,
        hosted=HostedCalls(
            parts.store.values, parts.store.fits, parts.store.annotations, parts.projects, parts.predictor
        ),
    )
    api = Api(
        parts.projects,
        parts.slots,
        parts.store.events,
        add_model=lambda path, card: add_model(registry, path, card, settings),
        assign=lambda project, spec: registry.bind(project, spec, reason="assigned", by="JSON API"),
    )
    quality = QualityApi(parts.origins.connection, lambda project: _live(parts.projects, project))
    orders = OrderApi(settings, parts.store, parts.origins.connection, partial(_looks, parts))
    feed = Feed(parts.store.jobs, parts.store.engine)
    jobs = JobsApi(settings, parts.store, feed)
    warnings = exposure_warnings(settings)
    for warning in warnings:
        log.warning(warning)
    routes = [
        *protocol.routes(),
        *api.routes(),
        *LoopApi(training).routes(),
        *quality.routes(),
        *orders.routes(),
        *WatchesApi(settings, parts.store).routes(),
        *PointersApi(settings, parts.projects, registry, training.loops).routes(),
        *jobs.routes(),
        *Ops(parts.projects, parts.slots, parts.metrics).routes(),
        *Pages(settings, api, jobs, parts.store.events, warnings=warnings).routes(),
    ]

    @contextlib.asynccontextmanager
    async def lifespan(_app: Any) -> AsyncIterator[None]:
        following = asyncio.create_task(follow_store(parts))
        if settings.jobs:
            parts.jobs.start()
        watching = threading.Thread(target=parts.watchers.run, name="watch", daemon=True)
        if settings.jobs or settings.watch:
            watching.start()
        try:
            yield
        finally:
            following.cancel()
            quality.close()
            orders.close()
            parts.watchers.stop()
            await asyncio.to_thread(close, parts)
            if watching.ident is not None:  # the next server watches at once when this one has let go
                await asyncio.to_thread(watching.join, WATCHING_ENDS_S)

    paths = frozenset(route.path for route in routes)
    # a bare router: Starlette's own error layer would answer before ours could, and again after it
    return Edge(
        Router(routes, lifespan=lifespan),
        auth=auth,
        callers=Callers(local_only=is_private(settings) and not auth.enabled),
        metrics=parts.metrics,
        paths=paths,
        end_streams=feed.close,
    )


def _looks(
    parts: Parts, view: View, project_id: int, label_studio: tuple[str, str], check: Callable[[], None]
) -> Looks:
    """Second looks with the model that the server has in memory, or loads now."""
    parts.origins.remember(project_id, *label_studio)
    parts.slots.ensure(view.version).loaded.result()
    return Looks(parts.predictor, parts.loop, view, check=check)


def _live(projects: Projects, project: int) -> str | None:
    """The version that serves a project; None without one, also where it was removed by hand."""
    try:
        version = projects.version_of(project)
    except ModelNotFound:
        return None
    return version.id if version is not None else None


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
    """End the threads; what was begun is finished, jobs go on where they are at the next start."""
    parts.jobs.stop()
    parts.predictor.close()
    parts.recorder.close()
    parts.slots.close()
    parts.media.close()
    parts.loop.close()


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

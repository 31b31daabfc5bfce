"""All watched projects, one after the other, from one thread: `labelloop watch`, and every server."""

from __future__ import annotations

import os
import secrets
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import structlog

from labelloop.core.errors import LabelloopError, LabelStudioError
from labelloop.core.settings import Settings
from labelloop.jobs.patience import is_passing
from labelloop.jobs.submit import address_of, known_project
from labelloop.jobs.watch import ProjectWatch
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.records import Project
from labelloop.serving.models import Store
from labelloop.serving.projects import Lens, View, unassigned
from labelloop.store.registry import Catalogue, ModelVersion
from labelloop.store.watches import Key, Watch

log = structlog.get_logger(__name__)

LONGEST_S = 60.0
"""The longest pause while Label Studio is away."""
_TIMEOUT_S = 30.0
_HELD_S = 15.0
"""How long a watch belongs to who looked last: so long nobody watches after a SIGKILL."""

ServingOf = Callable[[int], tuple[ModelVersion | None, str]]
"""Which version serves a project, and what it calls itself if it is hosted (Catalogue.called)."""


class _Place(msgspec.Struct):
    """One project in our hands; `pause_s` is 0 while all goes well."""

    watch: ProjectWatch
    due: float = 0.0
    pause_s: float = 0.0


class Watchers:
    """`named` are ids or titles that a person gave: they are remembered, and with `kept` so is that servers go on with
    them after a restart; then everything that is kept is watched as well. `serving_of` says which version serves a
    project; `ensure_worker` is called while jobs wait for a worker."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        serving_of: ServingOf,
        *,
        named: Sequence[str],
        kept: bool,
        ensure_worker: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings = settings
        self._store = store
        self._interval_s = settings.watch_interval_s
        self._views = Views(settings, serving_of, store.registry.catalogue)
        self._unresolved = list(named)
        self._resolve_at = 0.0
        self._named: set[Key] = set()
        self._kept = kept
        self._ensure_worker = ensure_worker
        self._places: dict[Key, _Place] = {}
        self._clients: dict[str, tuple[str, Client]] = {}
        self._stopping = threading.Event()
        self._holder = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"[-100:]

    def run(self) -> None:
        """Watch until `stop` is called."""
        try:
            while not self._stopping.is_set():
                pause_s = self._interval_s
                try:
                    pause_s = self.look()
                except Exception as error:  # a database that is away for a moment must not end the watching
                    log.error("watching pauses", error=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
                self._stopping.wait(pause_s)
        finally:
            self.close()

    def stop(self) -> None:
        """Ask `run` to return; from any thread or a signal handler."""
        self._stopping.set()

    def look(self) -> float:
        """Look at each project that is due; returns seconds until the next one is."""
        self._resolve()
        rows = [row for row in self._store.watches.all() if row.key in self._named or (self._kept and row.kept)]
        self._places = {row.key: self._places[row.key] for row in rows if row.key in self._places}
        for row in rows:
            if not self._stopping.is_set():
                self._look_at(row)
        if self._store.jobs.waiting():
            self._ensure_worker()
        due = min((place.due for place in self._places.values()), default=time.monotonic() + self._interval_s)
        return min(max(due - time.monotonic(), 0.05), self._interval_s)

    def close(self) -> None:
        """Let others watch what was watched here."""
        for _, client in self._clients.values():
            client.close()
        self._clients.clear()
        try:
            self._store.watches.release(self._holder)
        except Exception as error:  # it ends by itself soon
            log.warning("the watches could not be given back", error=str(error).partition("\n")[0])

    def _look_at(self, row: Watch) -> None:
        place = self._places.get(row.key)
        if place is not None and time.monotonic() < place.due:
            return
        if not self._store.watches.hold(row.key, self._holder, seconds=self._interval_s + _HELD_S):
            self._places.pop(row.key, None)  # another watches it, and knows more than we when it stops
            return
        try:
            if place is None:
                watch = ProjectWatch(row.key, self._client(row.label_studio), self._store, self._views.of)
                place = self._places[row.key] = _Place(watch)
            place.watch.look()
        except Exception as error:  # of one project, whatever it is: the others are looked at
            self._trouble(row, place, error)
            return
        self._well(row, place)

    def _well(self, row: Watch, place: _Place) -> None:
        if place.pause_s or row.error:
            log.info("watching goes on", project=row.project_id)
            self._store.watches.save(row.key, error="")
        place.pause_s = 0.0
        place.due = time.monotonic() + self._interval_s

    def _trouble(self, row: Watch, place: _Place | None, error: Exception) -> None:
        """Longer pauses each time; one line per outage."""
        if place is not None:
            passing = isinstance(error, LabelStudioError) and is_passing(error)
            place.pause_s = min(max(place.pause_s * 2, self._interval_s), LONGEST_S) if passing else LONGEST_S
            place.due = time.monotonic() + place.pause_s
        reason = str(error) if isinstance(error, LabelloopError) else f"{type(error).__name__}: {error}"
        if row.error != reason:
            log.warning("a project cannot be watched; trying again", project=row.project_id, reason=reason)
            self._store.watches.save(row.key, error=reason)

    def _resolve(self) -> None:
        """Titles and ids that a person gave become rows. Label Studio may be away: they are tried again."""
        if not self._unresolved or time.monotonic() < self._resolve_at:
            return
        for name in list(self._unresolved):
            try:
                url, _ = address_of(self._settings, self._store.registry)
                key = Key(url, known_project(self._client(url), self._store.registry, name).id)
            except LabelloopError as error:
                log.warning("a project cannot be watched yet; trying again", project=name, reason=str(error))
                self._resolve_at = time.monotonic() + LONGEST_S / 2
                continue
            self._store.watches.add(key, kept=self._kept)
            self._named.add(key)
            self._unresolved.remove(name)
            log.info("watching", project=key.project_id, label_studio=key.label_studio)

    def _client(self, url: str) -> Client:
        """One per Label Studio; a new one when the token is another."""
        _, token = address_of(self._settings, self._store.registry, url=url)
        known = self._clients.get(url)
        if known is None or known[0] != token:
            if known is not None:
                known[1].close()
            self._clients[url] = token, Client(url, token, timeout_s=_TIMEOUT_S, attempts=1)
        return self._clients[url][1]


class Views:
    """How versions see projects; built anew only when the version, the label config or the lens changes."""

    def __init__(self, settings: Settings, serving_of: ServingOf, catalogue: Callable[[], Catalogue]) -> None:
        self._settings = settings
        self._serving_of = serving_of
        self._catalogue = catalogue
        self._built: dict[int, tuple[tuple[Any, ...], View]] = {}

    def of(self, project: Project) -> View:
        """Raises LabelloopError."""
        version, said = self._serving_of(project.id)
        if version is None:
            raise unassigned(project.id)
        lens = Lens.shared(self._settings, self._catalogue())
        key, known = (version.digest, version.id, said, project.label_config, lens), self._built.get(project.id)
        if known is None or known[0] != key:
            known = self._built[project.id] = key, lens.view(version, project.label_config, said=said)
        return known[1]

"""The one door: a reference becomes bytes, then an upright picture."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from labelloop.core.errors import MediaUndecodable
from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.core.settings import Settings
from labelloop.core.tasks import MediaRef
from labelloop.media.cache import Cache, Entry
from labelloop.media.disk import SharedFolder
from labelloop.media.fetch import Fetched, Fetcher, decode_data_uri
from labelloop.media.film_cache import FilmCache
from labelloop.media.flights import Flights
from labelloop.media.guard import Guard, Resolve, system_resolve
from labelloop.media.image import decode
from labelloop.media.references import Origin, OriginFor, Source, locate, no_address
from labelloop.media.transport import Transport
from labelloop.media.urls import Url, shorten

Observe = Callable[[str, float], None]
"""Called with "fetch" and "decode" (seconds) and "cache_hit" and "cache_miss" (1.0), from the loading thread."""

RETRIES_S = (0.2, 0.8)


def _ignore(name: str, value: float) -> None:
    pass


class MediaLoader:
    """Gets the media of tasks. One for the whole process; its methods are called from several threads.

    `origin_for` finds the Label Studio of a project. `resolve` looks host names up. All methods raise MediaError.
    """

    def __init__(
        self,
        settings: Settings,
        origin_for: OriginFor,
        *,
        observe: Observe = _ignore,
        resolve: Resolve = system_resolve,
        retries_s: Sequence[float] = RETRIES_S,
    ) -> None:
        self._origin_for = origin_for
        # Fetching waits for the network in many threads; decoding works, and more of it at a time than there are
        # cores only makes all of it later.
        self._cores = threading.Semaphore(os.cpu_count() or 1)
        self._observe = observe
        self._max_bytes = settings.media_max_size
        self._max_pixels = settings.media_max_pixels
        self._ttl_s = settings.media_cache_ttl_s
        allow = settings.media_allow_hosts
        guard = Guard((allow,) if isinstance(allow, str) else allow, resolve=resolve)
        self._transport = Transport(guard)
        self._fetcher = Fetcher(
            self._transport, max_bytes=self._max_bytes, timeout_s=settings.media_timeout_s, retries_s=retries_s
        )
        self._film_fetcher = Fetcher(
            self._transport, max_bytes=settings.film_max_size, timeout_s=settings.film_timeout_s, retries_s=retries_s
        )
        self._films = FilmCache(settings.home / "cache" / "films", max_bytes=settings.film_cache_size)
        self._film_max_bytes = settings.film_max_size
        self._cache = Cache(settings.home / "cache" / "media", max_bytes=settings.media_cache_size)
        self._uploads = self._folder(settings.image_dir)
        self._local_files = self._folder(settings.local_files_root)
        self._flights: Flights[bytes] = Flights()

    def _folder(self, root: Path | None) -> SharedFolder | None:
        return SharedFolder(root, max_bytes=self._max_bytes) if root else None

    def fetch(self, ref: MediaRef) -> bytes:
        """The bytes as they are stored; whether they are a picture is not looked at."""
        return self._timed_fetch(ref)[0]

    def load(self, ref: MediaRef, *, min_size: Size | None = None) -> Picture:
        """The upright picture. `min_size` allows a reduced one, see `image.decode`."""
        data, source = self._timed_fetch(ref)
        started = time.perf_counter()
        try:
            with self._cores:
                return decode(data, min_size=min_size, max_pixels=self._max_pixels)
        except MediaUndecodable:
            if source is not None:  # a log-in page, or half a file: the next try may bring the picture
                self._cache.discard(source.identity)
            raise
        finally:
            self._observe("decode", time.perf_counter() - started)

    @contextmanager
    def film(self, ref: MediaRef) -> Iterator[Path]:
        """A film as a file, which stays while the block runs; it is never held in memory. A film that the block finds
        to be none (MediaUndecodable) is fetched anew the next time."""
        origin = self._origin_for(ref.project_id)
        is_data = ref.uri[:5].lower() == "data:"
        source = None if is_data else locate(ref, origin)
        if source is not None and (path := self._find_shared(source)) is not None:
            with _named(path, ref):
                yield path
            return
        identity = source.identity if source is not None else f"data {ref.uri}"
        fresh_s = math.inf if source is None or source.forever else self._ttl_s

        def download(file: BinaryIO) -> None:
            started = time.perf_counter()
            try:
                self._write_film(ref, source, origin, file)
            finally:
                self._observe("fetch", time.perf_counter() - started)
                self._observe("cache_miss", 1.0)

        with self._films.film(identity, download, fresh_s=fresh_s) as path:
            try:
                with _named(path, ref):
                    yield path
            except MediaUndecodable:
                self._films.discard(identity)
                raise

    def _write_film(self, ref: MediaRef, source: Source | None, origin: Origin | None, file: BinaryIO) -> None:
        if source is None:
            file.write(decode_data_uri(ref.uri, max_bytes=self._film_max_bytes))
        elif source.url is None:
            raise no_address(ref.uri)
        else:
            self._film_fetcher.get(source.url, source, origin, sink=file)

    def _find_shared(self, source: Source) -> Path | None:
        if source.upload and self._uploads:
            return self._uploads.find_upload(source.upload)
        if source.local_file and self._local_files:
            return self._local_files.find(source.local_file)
        return None

    def close(self) -> None:
        """Close idle connections."""
        self._transport.close()

    def _timed_fetch(self, ref: MediaRef) -> tuple[bytes, Source | None]:
        started = time.perf_counter()
        try:
            return self._fetch(ref)
        finally:
            self._observe("fetch", time.perf_counter() - started)

    def _fetch(self, ref: MediaRef) -> tuple[bytes, Source | None]:
        """The bytes, and where they came from unless that is the reference itself or a shared disk."""
        if ref.uri[:5].lower() == "data:":
            return decode_data_uri(ref.uri, max_bytes=self._max_bytes), None
        origin = self._origin_for(ref.project_id)
        source = locate(ref, origin)
        if (found := self._read_shared(source)) is not None:
            return found, None
        if source.url is None:
            raise no_address(ref.uri)
        return self._remote(source.url, source, origin), source

    def _read_shared(self, source: Source) -> bytes | None:
        if source.upload and self._uploads:
            return self._uploads.read_upload(source.upload)
        if source.local_file and self._local_files:
            return self._local_files.read(source.local_file)
        return None

    def _remote(self, url: Url, source: Source, origin: Origin | None) -> bytes:
        entry = self._cache.get(source.identity)
        if entry is not None and self._is_fresh(entry, source):
            self._observe("cache_hit", 1.0)
            return entry.body
        return self._flights.run(source.identity, lambda: self._download(url, source, origin))

    def _is_fresh(self, entry: Entry, source: Source) -> bool:
        # an age below zero: the clock was set back
        return source.forever or 0 <= time.time() - entry.fetched_at < self._ttl_s

    def _download(self, url: Url, source: Source, origin: Origin | None) -> bytes:
        # look again: another thread may have come back with it since this one looked
        entry = self._cache.get(source.identity)
        if entry is not None and self._is_fresh(entry, source):
            self._observe("cache_hit", 1.0)
            return entry.body
        known = Fetched(entry.body, entry.etag) if entry is not None else None
        fetched = self._fetcher.get(url, source, origin, known=known)
        self._observe("cache_hit" if fetched.is_known else "cache_miss", 1.0)
        self._cache.put(source.identity, fetched.body, etag=fetched.etag)
        return fetched.body


@contextmanager
def _named(path: Path, ref: MediaRef) -> Iterator[None]:
    """Errors about the film call it as its task does: our own paths say nothing to whoever reads them there."""
    try:
        yield
    except MediaUndecodable as error:
        message = error.message.replace(str(path), shorten(ref.uri))
        raise MediaUndecodable(message, hint=error.hint) from error

"""A film -> tracks: frames are decoded, looked at and linked side by side, and none of them is kept.

One thread of its own per film decodes, hands frames to the model's stage and links what comes back, in order. Only a
window of frames is on its way, so the model's threads always have work and the memory does not grow with the film.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import msgspec
import structlog

from labelloop.core.errors import FilmTooLong, ShuttingDown
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size, Track
from labelloop.core.settings import Settings
from labelloop.core.tasks import MediaRef
from labelloop.engines.base import Engine, Resizer, cpu_threads
from labelloop.labelstudio.percent import Canvas
from labelloop.labelstudio.video import ExportError, decode_track, draw_track
from labelloop.media.film import Film, Frame, describe, read_frames
from labelloop.media.load import MediaLoader
from labelloop.serving.film_parts import Looked, Spool, detections_of, packed, unpacked
from labelloop.serving.follow import follow
from labelloop.serving.media_metrics import MediaMetrics
from labelloop.serving.slots import Lease
from labelloop.serving.stage import Priority
from labelloop.video.camera import Camera
from labelloop.video.link import Clock, Linker, LinkOptions
from labelloop.video.overlap import Floats
from labelloop.video.timeline import Sayings

log = structlog.get_logger(__name__)

WINDOW, LARGEST_WINDOW = 16, 64
"""Frames between "decoded" and "linked": twice what the model takes at a time, within these bounds. Half of them are
linked and as many decoded in one go: the film's thread wakes up once for so many, and the model has the other half."""

AT_A_TIME = 4
"""Films in work; further ones wait."""

DECODERS = max(1, cpu_threads() // 4)
"""Threads that decode one film. The model has work for all processors; one thread decodes 400 frames of 1280 x 720 a
second, and each further one costs more processor time for the same frames."""

EXTEND_S = 30.0
"""How long a drawn box is followed: whoever drew it waits."""
MARGIN_S = 5.0
"""What is left of a request's time to answer it."""

PART_S = 5.0
"""How much work a kill costs at most."""


class Wanted(NamedTuple):
    """Which film is asked for, and how. `frame_rate` is what the template counts; `spool` keeps what was detected, and
    allows a film of any length; None: somebody waits for the answer. `sure` are the scores from which a classifier is
    sure of the classes whose stretches are asked for."""

    ref: MediaRef
    frame_rate: float
    priority: Priority
    deadline: float
    spool: Spool | None
    sure: Mapping[str, float] = {}


class Films:
    """Follows things through the films of tasks."""

    def __init__(self, media: MediaLoader, settings: Settings, media_metrics: MediaMetrics) -> None:
        self._media = media
        self._media_metrics = media_metrics
        self._options = LinkOptions(tracker=settings.tracker)
        self._every = settings.film_every
        self._live_s = settings.film_live_s
        self._threads = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="film")
        self._ended = threading.Event()

    async def follow(self, wanted: Wanted, lease: Lease) -> tuple[Size, tuple[Region, ...]]:
        """The film's upright size, and a Region with a Track for each thing in it; from a classifier, one of the whole
        film for each class, and one with an Interval for each stretch that shows one.

        Raises MediaError: no film, one that is cut off, or (FilmTooLong) one that takes longer than a request may; and
        what the model's stage raises. Cancelling it ends the work within a frame or two.
        """
        stop = threading.Event()
        work = partial(self._follow, wanted, lease, stop)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            stop.set()

    async def extend(
        self, ref: MediaRef, items: Sequence[Mapping[str, Any]], *, frame_rate: float, deadline: float
    ) -> tuple[Size, tuple[dict[str, Any], ...]]:
        """The film's upright size, and for each VideoRectangle result that a person drew one with what is in its box
        followed forwards and backwards. Raises MediaError, and ExportError for what is no such result."""
        stop = threading.Event()

        def work() -> tuple[Size, tuple[dict[str, Any], ...]]:
            with self._media.film(ref) as path:
                film = describe(path)
                until_s = min(time.monotonic() + EXTEND_S, deadline - MARGIN_S)
                found = [_extended(item, film, frame_rate, until_s, lambda: self._check(stop)) for item in items]
                return film.size, tuple(found)

        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            stop.set()

    def close(self) -> None:
        """End the threads; what is being followed fails with ShuttingDown."""
        self._ended.set()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _follow(self, wanted: Wanted, lease: Lease, stop: threading.Event) -> tuple[Size, tuple[Region, ...]]:
        with self._media_metrics.counted_for(lease.version), self._media.film(wanted.ref) as path:
            self._check(stop)
            film = describe(path)
            if wanted.spool is None and film.duration_s > self._live_s:
                raise _too_long(film, self._live_s)
            if film.variable_rate:
                log.info("the frames of a film are not evenly spaced; boxes are placed by time", film=str(path))
            begun = time.perf_counter()
            looking = _Looking(film, self._options, self._every, lease, wanted)
            regions = looking.run(lambda: self._check(stop))
            seconds = time.perf_counter() - begun
            log.info("film followed", task=wanted.ref.task_id, frames=film.frames_count, seconds=round(seconds, 1))
            return film.size, regions

    def _check(self, stop: threading.Event) -> None:
        if stop.is_set() or self._ended.is_set():
            raise ShuttingDown("Nobody waits for this film any more.")


def _extended(
    item: Mapping[str, Any], film: Film, frame_rate: float, until_s: float, go_on: Callable[[], None]
) -> dict[str, Any]:
    (region, *_) = decode_track(item, size=film.size)
    drawn = region.shape
    if not isinstance(drawn, Track) or not drawn.keyframes:
        raise ExportError("The box that was drawn is on no frame.")
    track = follow(film, drawn, frame_rate=frame_rate, until_s=until_s, go_on=go_on)
    value = draw_track(track, Canvas.of(film.size)) or {}
    labels = {"labels": item["value"]["labels"]} if item["value"].get("labels") else {}
    kept = {name: item[name] for name in ("id", "from_name", "to_name", "type") if name in item}
    return {**kept, "origin": "prediction", "value": value | labels}


class _Looking:
    """One film on its way through the model."""

    def __init__(
        self,
        film: Film,
        options: LinkOptions,
        every: int,
        lease: Lease,
        wanted: Wanted,
    ) -> None:
        clock = Clock(film.fps, film.duration_s, wanted.frame_rate)
        self._film = film
        self._options = options
        self._every = every
        self._lease = lease
        self._wanted = wanted
        self._places = {label: place for place, label in enumerate(lease.engine.classes)}
        classes, steps_per_s = lease.engine.classes, film.fps / every
        self._linker: Linker | Sayings = (
            Sayings(classes, sure=wanted.sure, clock=clock, steps_per_s=steps_per_s)
            if lease.version.card.task == "classify"
            else Linker(options, classes=classes, clock=clock, steps_per_s=steps_per_s)
        )
        self._lowest = options.low if isinstance(self._linker, Linker) else 0.0
        self._camera = Camera() if self._linker.wants_camera else None
        at_a_time = lease.engine.max_batch * lease.engine.parallel
        self._window = min(max(WINDOW, 2 * at_a_time), LARGEST_WINDOW)
        self._waiting: deque[tuple[int, float, Floats | None, Future[tuple[Region, ...]]]] = deque()
        self._part: list[Looked] = []
        self._part_since = time.monotonic()
        self._name = msgspec.json.encode((film.size, film.frames_count, film.fps, every)).decode()

    def run(self, go_on: Callable[[], None]) -> tuple[Region, ...]:
        """`go_on` is called for each frame, and raises when the work is to end."""
        try:
            for frame in self._frames(first=self._recall()):
                go_on()
                self._submit(frame)
                if len(self._waiting) >= self._window:
                    for _ in range(self._window // 2):
                        go_on()
                        self._take()
            while self._waiting:
                go_on()
                self._take()
        finally:
            for *_, future in self._waiting:
                future.cancel()
        self._keep()
        return self._linker.finish()

    def _recall(self) -> int:
        """Link again what was detected before; the next frame to look at."""
        spool, first = self._wanted.spool, 1
        for content in spool.parts() if spool is not None else ():
            part = unpacked(content, film=self._name)
            if part is None:  # the film was replaced meanwhile
                assert spool is not None
                spool.clear()
                return 1
            for looked in part:
                self._link(looked)
            first = part[-1].number + self._every
        return first

    def _frames(self, *, first: int) -> Iterator[Frame]:
        """Frames from `first` on. The camera's motion needs the one before as well."""
        size, needed = self._film.size, smaller(self._film.size, self._lease.engine)
        start = first - self._every if self._camera is not None and first > self._every else first
        for frame in read_frames(self._film.path, first=start, every=self._every, size=needed, threads=DECODERS):
            if frame.number >= first:
                yield frame
            elif self._camera is not None:
                self._camera.moved(frame.rgb, width=size.width)

    def _submit(self, frame: Frame) -> None:
        prepared = self._lease.engine.prepare(Picture(frame.rgb, self._film.size))
        moved = self._camera.moved(frame.rgb, width=self._film.size.width) if self._camera is not None else None
        future = self._lease.put(prepared, priority=self._wanted.priority, deadline=self._wanted.deadline)
        self._waiting.append((frame.number, frame.time_s, moved, future))

    def _take(self) -> None:
        """The oldest frame on its way."""
        number, time_s, moved, future = self._waiting.popleft()
        found = detections_of(future.result(), self._places, at_least=self._lowest)
        looked = Looked(number, time_s, found, moved)
        self._link(looked)
        if self._wanted.spool is not None:
            self._part.append(looked)
            if time.monotonic() - self._part_since > PART_S:
                self._keep()

    def _link(self, looked: Looked) -> None:
        self._linker.add(looked.time_s, looked.found, camera=looked.camera)

    def _keep(self) -> None:
        spool, part = self._wanted.spool, self._part
        if spool is not None and part:
            content = packed(part, film=self._name)
            spool.add(content, frame=part[-1].number, frames_count=self._film.frames_count)
        self._part, self._part_since = [], time.monotonic()


def smaller(size: Size, engine: Engine) -> Size | None:
    """What frames of this size may be reduced to before `engine` prepares them; None: they are as small as they may be.
    Where it does not say what it makes of them, they are halved as long as they stay larger than its input."""
    if isinstance(engine, Resizer):
        exact = engine.resized(size)
        return exact if exact.width < size.width and exact.height < size.height else None
    wanted = engine.input_size
    if wanted is None:
        return None
    halvings = int(math.log2(max(min(size.width / wanted.width, size.height / wanted.height), 1.0)))
    return Size(size.width >> halvings, size.height >> halvings) if halvings else None


def _too_long(film: Film, limit_s: float) -> FilmTooLong:
    return FilmTooLong(
        f"The film lasts {film.duration_s:.0f} s, and /predict follows things through films of up to {limit_s:.0f} s.",
        hint="Run: labelloop prelabel PROJECT; the limit is LABELLOOP_FILM_LIVE_S.",
    )

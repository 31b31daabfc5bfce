"""A film on disk -> what it is, and its frames one by one, upright, with bounded memory.

Frames count from 1 in the order in which they are shown, as Label Studio counts them. The number of a frame comes from
counting packets and never from `time x fps`: files in the wild have gaps, uneven rates and headers that lie.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import MediaError, MediaNotFound, MediaUndecodable
from labelloop.core.regions import Size
from labelloop.media.film_pixels import Pixels, rotation_deg

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

UNEVEN = 0.01
"""Frame intervals that differ by more than this share of the usual one make a variable rate; containers that count in
milliseconds (Matroska) write 33, 33, 34, so a difference of one tick is none either."""


FORMATS = "mov,matroska,webm,avi,ogg,mpegts,mpeg,flv,asf,ivf,h264,hevc,m4v,gif"
"""Containers that are opened, by FFmpeg's names. Its others include play lists and scripts, which name further files
and addresses to read: a film from a task must not choose those."""


class Film(msgspec.Struct, frozen=True):
    """What a film is. `size` is upright (rotation metadata applied); `fps` the mean rate over its length;
    `variable_rate` is true where frames are not evenly spaced, so that `frame / fps` is not its time."""

    path: Path
    size: Size
    frames_count: int
    fps: float
    duration_s: float
    codec: str
    variable_rate: bool = False
    rotation_deg: int = 0


class Frame(msgspec.Struct, frozen=True):
    """One frame: `number` from 1, `time_s` since the first frame, `rgb` uint8 [height, width, 3], upright, not
    always in one piece of memory."""

    number: int
    time_s: float
    rgb: NDArray[np.uint8]


class _Clock(msgspec.Struct, frozen=True):
    """When each frame is shown, in ticks, ascending; empty where the container does not say."""

    ticks: NDArray[np.int64]
    frames_count: int
    tick_s: float
    last_ticks: int

    @property
    def duration_s(self) -> float:
        return float(self.ticks[-1] - self.ticks[0] + self.last_ticks) * self.tick_s if len(self.ticks) else 0.0

    @property
    def is_variable(self) -> bool:
        steps = np.diff(self.ticks)
        if len(steps) < 2:
            return False
        usual = float(np.median(steps))
        return bool(np.abs(steps - usual).max() > max(1.0, usual * UNEVEN))


def describe(path: Path) -> Film:
    """Read a film's header and all packets, and decode its first frame; memory does not grow with its length.

    Raises MediaNotFound, and MediaUndecodable for what is no film, has no picture, a codec that cannot be read here, no
    frames, or fewer than its header promises (it was cut off).
    """
    return _look_at(path).film


def read_frames(
    path: Path, *, first: int = 1, last: int | None = None, every: int = 1, size: Size | None = None, threads: int = 0
) -> Iterator[Frame]:
    """Frames `first`, `first + every`, … up to `last`, one in memory at a time (the decoder keeps a few more).

    `size` is the smaller upright size that frames are brought to, None: as they are. `threads` decode, 0: as many as
    there are processors.

    Going in at `first` seeks to the key frame before it and decodes from there. Raises what `describe` raises, and
    MediaUndecodable, with the number of the last good frame, where the film breaks off.
    """
    if first < 1 or every < 1:
        raise ValueError("frames count from 1, and every frame is a step of 1")
    clock = _look_at(path).clock
    end = clock.frames_count if last is None else min(last, clock.frames_count)
    with _opened(path) as (container, stream):
        stream.thread_count = threads
        if _hides_blocks(stream, size):
            stream.codec_context.options = {"skip_loop_filter": "noref"}
        number, pixels = 0, Pixels()
        for number, frame in _from(path, container, stream, clock, first):
            if number > end:
                return
            if (number - first) % every == 0:
                yield Frame(number, _seconds(frame, clock, number), pixels.upright(frame, size))
    if number < end and first <= end:
        raise _cut_off(path, number, clock.frames_count)


def frame_at(film: Film, seconds: float) -> int:
    """The number of the frame that is shown at a moment, in seconds since the first frame; the first and the last one
    for moments before and after the film."""
    clock = _look_at(film.path).clock
    if not len(clock.ticks):
        return min(max(int(seconds * film.fps) + 1, 1), film.frames_count)
    ticks = clock.ticks[0] + seconds / clock.tick_s
    return min(max(int(np.searchsorted(clock.ticks, ticks, side="right")), 1), film.frames_count)


def _from(
    path: Path, container: InputContainer, stream: VideoStream, clock: _Clock, first: int
) -> Iterator[tuple[int, VideoFrame]]:
    """Decoded frames from number `first` on, with their numbers: those of their times where the container tells times,
    because a decoder may drop what it cannot use."""
    if first > clock.frames_count:
        return
    if first > 1 and len(clock.ticks):
        container.seek(int(clock.ticks[first - 1]), stream=stream, backward=True)
    for index, frame in enumerate(_decoded(path, container, stream), start=1):
        number = index
        if frame.pts is not None and len(clock.ticks):
            number = int(np.searchsorted(clock.ticks, frame.pts)) + 1
        if number >= first:
            yield number, frame


def _seconds(frame: VideoFrame, clock: _Clock, number: int) -> float:
    if frame.pts is not None and len(clock.ticks):
        return float(frame.pts - clock.ticks[0]) * clock.tick_s
    return (number - 1) * clock.duration_s / max(clock.frames_count, 1)


def _hides_blocks(stream: VideoStream, size: Size | None) -> bool:
    """Whether frames become so small that nobody sees the edges of blocks which the decoder would smooth: a tenth of
    its work. Only frames that no other is made from are left rough, so nothing adds up."""
    return size is not None and stream.width >= 2 * max(size) and stream.height >= 2 * min(size)


# --- PyAV, and what can go wrong in it --------------------------------------------------------------------------------


@contextmanager
def _opened(path: Path) -> Iterator[tuple[InputContainer, VideoStream]]:
    av = import_av()
    try:
        container = av.open(str(path), options={"format_whitelist": FORMATS, "protocol_whitelist": "file"})
    except FileNotFoundError as error:
        raise MediaNotFound(f"There is no film {path}.") from error
    except OSError as error:  # a folder, no permission
        raise MediaError(f"{path} cannot be read: {error.strerror}.") from error
    except av.error.FFmpegError as error:
        raise MediaUndecodable(
            f"{path} is no film, or one that was cut off before its index.",
            hint="Does it open in a browser? A recording that was interrupted can often be mended by copying it with "
            "a video tool.",
        ) from error
    with container:
        if not container.streams.video:
            hint = "It holds sound only, or was cut off before its first frame."
            raise MediaUndecodable(f"{path} has no picture.", hint=hint)
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise MediaUndecodable(
                f"The pictures in {path} are stored in a way that cannot be read here.",
                hint="Convert it to H.264: browsers play that, and labelloop reads it.",
            )
        stream.thread_type = "AUTO"
        yield container, stream


def import_av() -> Any:
    """PyAV, or a MediaError that says how to get it."""
    try:
        import av
    except ImportError as error:
        raise MediaError("Films need PyAV.", hint='Install it with: pip install "labelloop[video]"') from error
    return av


class _Look(NamedTuple):
    film: Film
    clock: _Clock


def _look_at(path: Path) -> _Look:
    """All packets are read for it, so it is remembered as long as the file is the same."""
    try:
        state = path.stat()
    except OSError:  # what is wrong with it is told when it is opened
        return _look(path)
    return _remembered(path, state.st_mtime_ns, state.st_size)


@lru_cache(maxsize=8)
def _remembered(path: Path, _mtime_ns: int, _size: int) -> _Look:
    return _look(path)


def _look(path: Path) -> _Look:
    """A film is opened once for both: opening takes 20 ms, as long as reading 300 packets."""
    with _opened(path) as (container, stream):
        stream.thread_count = 1  # several begin with as many frames before they give the first one
        clock, first = _read_packets(path, container, stream)
        if first is None:
            raise _nothing(path)
        rotation = rotation_deg(first)
        turned = rotation % 180 != 0
        fps = clock.frames_count / clock.duration_s if clock.duration_s else float(stream.average_rate or 0)
        film = Film(
            path=path,
            size=Size(first.height, first.width) if turned else Size(first.width, first.height),
            frames_count=clock.frames_count,
            fps=fps,
            duration_s=clock.duration_s or (clock.frames_count / fps if fps else 0.0),
            codec=stream.codec_context.name,
            variable_rate=clock.is_variable,
            rotation_deg=rotation,
        )
        return _Look(film, clock)


def _read_packets(path: Path, container: InputContainer, stream: VideoStream) -> tuple[_Clock, VideoFrame | None]:
    """When each frame is shown, and the first one; the others are not decoded."""
    av = import_av()
    ticks: list[int] = []
    packets, shown, last_ticks, first = 0, 0, 0, None
    try:
        for packet in container.demux(stream):
            if first is None:
                first = next(iter(packet.decode()), None)
            if not packet.size:
                continue  # the flushing packet at the end
            packets += 1
            if packet.is_discard:
                continue  # before the start that an edit list sets
            shown += 1
            last_ticks = packet.duration or last_ticks
            if packet.pts is not None:
                ticks.append(packet.pts)
    except av.error.FFmpegError as error:
        raise _cut_off(path, shown if first else 0, stream.frames) from error
    if not shown:
        raise _nothing(path) if not stream.frames else _cut_off(path, 0, stream.frames)
    if packets < stream.frames:
        raise _cut_off(path, packets, stream.frames)
    complete = np.sort(np.array(ticks if len(ticks) == shown else [], np.int64))
    return _Clock(complete, shown, float(stream.time_base or 0), last_ticks), first


def _decoded(path: Path, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
    av = import_av()
    number = 0
    try:
        for frame in container.decode(stream):
            number += 1
            yield frame
    except av.error.FFmpegError as error:
        raise _cut_off(path, number, stream.frames) from error


def _nothing(path: Path) -> MediaUndecodable:
    return MediaUndecodable(f"{path} is a film without frames.", hint="Was it cut off while it was recorded?")


def _cut_off(path: Path, there: int, promised: int) -> MediaUndecodable:
    of = f" of {promised}" if promised else ""
    return MediaUndecodable(
        f"{path} is damaged or cut off: {there}{of} frames can be read.", hint="Copy the film again from its source."
    )

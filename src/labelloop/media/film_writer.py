"""Pictures -> an H.264 film that every browser plays and seeks in exactly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.core.errors import FilmError
from labelloop.core.regions import Size
from labelloop.media.film import import_av

QUALITY = "18"
"""libx264's constant rate factor; at 18 a person sees no difference from the pictures. Labels depend on details."""


class FilmWriter:
    """Writes frames of one size. The film is there when the block is left without an exception, and nothing is if not.

    yuv420p and even sides, because browsers decode nothing else; the index in front (faststart), so that it plays while
    it loads; a key frame every second, so that Label Studio reaches any frame quickly; no B-frames, so that the first
    frame has time 0 without an edit list, about which players disagree; BT.709 written into the file, which browsers
    would otherwise guess from the height.
    """

    def __init__(self, path: Path, size: Size, *, fps: Fraction) -> None:
        self.size = Size(size.width + size.width % 2, size.height + size.height % 2)
        self.frames_count = 0
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._fps = fps
        self._av = import_av()

    def __enter__(self) -> FilmWriter:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._partial.touch()  # PyAV would notice only at the first packet
        except OSError as error:
            raise FilmError(f"{self._path} cannot be written: {error.strerror}.") from error
        options = {"movflags": "+faststart"}
        self._container = self._av.open(str(self._partial), "w", format="mp4", options=options)
        self._stream = self._open_stream()
        return self

    def _open_stream(self) -> Any:
        stream = self._container.add_stream("libx264", rate=self._fps)
        stream.width, stream.height = self.size
        stream.pix_fmt = "yuv420p"
        stream.time_base = 1 / self._fps
        stream.options = {"crf": QUALITY, "g": str(max(1, round(self._fps))), "bf": "0"}
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = 1  # BT.709, in H.264's own numbering
        context.color_range = 1  # 16 to 235
        return stream

    def add(self, rgb: NDArray[np.uint8]) -> None:
        """Append a frame: uint8 [height, width, 3], at most as large as the film. It lies top-left, so that pixels
        keep their coordinates; what is missing is black. Raises FilmError."""
        height, width = rgb.shape[:2]
        if (width, height) != self.size:
            canvas = np.zeros((self.size.height, self.size.width, 3), np.uint8)
            canvas[:height, :width] = rgb
            rgb = canvas
        frame = self._av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
        frame = frame.reformat(format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG")
        frame.pts, frame.time_base = self.frames_count, 1 / self._fps
        self._mux(frame)
        self.frames_count += 1

    def _mux(self, frame: Any) -> None:
        with self._explained():
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (OSError, self._av.error.FFmpegError) as error:
            raise FilmError(
                f"{self._path} cannot be written with {self.size.width} x {self.size.height} pixels: {error}.",
                hint="Is the disk full, or a picture larger than H.264 allows (16,384 pixels a side)?",
            ) from error

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._mux(None)
                with self._explained():
                    self._container.close()  # moves the index to the front
                    self._partial.replace(self._path)
            else:
                with suppress(OSError, self._av.error.FFmpegError):  # what went wrong first is what is told
                    self._container.close()
        finally:
            self._partial.unlink(missing_ok=True)

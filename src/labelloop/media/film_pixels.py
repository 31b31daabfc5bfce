"""Decoded frames -> RGB, upright, in the size that is asked for: what a film costs beside its decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Size

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

Bytes = NDArray[np.uint8]

_USUAL = "yuv420p"
"""How most cameras store colours, by FFmpeg's name: brightness, and two planes of colour of half the size."""
_RGB_AMONG_GBR = (2, 0, 1)
_WHOLE = 16
"""FFmpeg 8 makes planes of RGB from so many columns at a time, and leaves out what is over where that is 8 or less."""

_CONVERTED, _NOT_SAID = frozenset({0, 1, 2, 4, 5, 6, 7, 9}), 2
"""Tags of colour standards (H.273, table 4) that FFmpeg converts; with others it refuses the frame."""


class Pixels:
    """For the frames of one film; the table of colours and the small planes are made once.

    Colours are converted as the film's own tags say (BT.601 or BT.709, narrow or full range)."""

    def __init__(self) -> None:
        from av.video.reformatter import VideoReformatter

        self._reformatter = VideoReformatter()
        self._small: VideoFrame | None = None

    def upright(self, frame: VideoFrame, size: Size | None) -> Bytes:
        """uint8 [height, width, 3], turned as its metadata says; `size` is the smaller upright size, None: as it is.
        Memory of a reduced frame may lie plane by plane."""
        if frame.colorspace not in _CONVERTED:
            frame.colorspace = _NOT_SAID
        turns = rotation_deg(frame) // 90 % 4
        lying = Size(*size[::-1]) if size and turns % 2 else size
        rgb = self._reduced(frame, lying) if lying else self._whole(frame)
        return np.ascontiguousarray(np.rot90(rgb, -turns)) if turns else rgb

    def _whole(self, frame: VideoFrame) -> Bytes:
        return np.asarray(self._reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray(), np.uint8)

    def _reduced(self, frame: VideoFrame, size: Size) -> Bytes:
        """A frame in a smaller size. Where colours are stored as most cameras do, the planes are reduced before they
        are converted: 0.5 ms from 1280 x 720 to 416 x 234, where converting all of it takes 0.7 and reducing that 1.8;
        FFmpeg's own scaling takes 0.5 for the planes alone (averages) or 1.0 with the colours."""
        if frame.format.name != _USUAL:
            return _shrunk(self._whole(frame), size)
        small = self._small_planes(frame, size)
        half = Size(-(-size.width // 2), -(-size.height // 2))
        for source, target, to in zip(frame.planes, small.planes, (size, half, half), strict=True):
            _shrunk(_plane(source), to, into=_plane(target)[: to.height, : to.width])
        gbr = self._reformatter.reformat(small, format="gbrp", threads=1)  # twice as fast as pixel by pixel
        rgb = np.stack([_plane(gbr.planes[place]) for place in _RGB_AMONG_GBR])
        return rgb[:, : size.height, : size.width].transpose(1, 2, 0)

    def _small_planes(self, frame: VideoFrame, size: Size) -> VideoFrame:
        """A frame to be written into that holds this size, with the tags of `frame`."""
        width, height = -(-size.width // _WHOLE) * _WHOLE, size.height + size.height % 2
        if self._small is None or (self._small.width, self._small.height) != (width, height):
            from av.video.frame import VideoFrame

            self._small = VideoFrame(width, height, _USUAL)
        self._small.colorspace, self._small.color_range = frame.colorspace, frame.color_range
        return self._small


def rotation_deg(frame: VideoFrame) -> int:
    """Degrees clockwise by which players turn the frame, in whole quarters; PyAV counts the other way."""
    return round(-frame.rotation / 90) * 90 % 360


def _shrunk(image: Bytes, size: Size, *, into: Bytes | None = None) -> Bytes:
    """Halved while it is more than twice too large, then bilinear, as pictures are (engines/detect/prepare)."""
    import cv2

    while image.shape[1] >= 2 * size.width and image.shape[0] >= 2 * size.height:
        halves = (image.shape[1] // 2, image.shape[0] // 2)
        image = np.asarray(cv2.resize(image, halves, interpolation=cv2.INTER_AREA), np.uint8)
    # of the same size it is a copy
    return np.asarray(cv2.resize(image, size, dst=into, interpolation=cv2.INTER_LINEAR), np.uint8)


def _plane(plane: Any) -> Bytes:
    """The plane itself, not a copy."""
    return np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)[:, : plane.width]

"""How the camera moved between two frames: the affine map that most of the picture follows.

Corners of the frame before (Shi and Tomasi, CVPR 1994) are found again by optical flow (Lucas and Kanade with pyramids)
and a map of turning, scaling and shifting is fitted to most of them with RANSAC, as BoT-SORT does (section 3.2, through
OpenCV's stabiliser). Things that move by themselves are outliers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.video.overlap import Floats

LONG_SIDE = 320
"""Frames are reduced to this: a shift of a tenth of a pixel there is half a pixel in 1,600."""
MOST_CORNERS = 200
FEWEST_CORNERS = 12
"""With fewer there is no majority worth the name, and the camera counts as standing still."""


class Camera:
    """Looks at frames in order."""

    def __init__(self) -> None:
        self._before: NDArray[np.uint8] | None = None
        self._corners: Any = None

    def moved(self, rgb: NDArray[np.uint8], *, width: int) -> Floats | None:
        """The map [2, 3] from the frame before to this one (uint8 [h, w, 3]) in pixels of a frame of this `width`,
        which `rgb` may be a reduction of; None where nothing can be told."""
        import cv2

        here = _small_grey(rgb)
        before, corners = self._before, self._corners
        self._before = here
        self._corners = cv2.goodFeaturesToTrack(here, MOST_CORNERS, 0.01, 7)
        if before is None or corners is None or len(corners) < FEWEST_CORNERS or before.shape != here.shape:
            return None
        found, status, _ = cv2.calcOpticalFlowPyrLK(before, here, corners, None)  # type: ignore[call-overload]
        there = status[:, 0] == 1
        if there.sum() < FEWEST_CORNERS:
            return None
        moved, _ = cv2.estimateAffinePartial2D(corners[there], found[there], method=cv2.RANSAC)
        return None if moved is None else _scaled(moved, width / here.shape[1])


def _small_grey(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    import cv2

    scale = LONG_SIDE / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else rgb
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


def _scaled(moved: Floats, factor: float) -> Floats:
    """The same map where everything is `factor` times as large: turning and scaling stay, the shift grows."""
    larger = np.asarray(moved, np.float64).copy()
    larger[:, 2] *= factor
    return larger

"""Pictures of light shapes on grey noise: what a classifier can be taught in a second."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

SHAPES = ("disc", "square")


def draw(kind: str, seed: int) -> NDArray[np.uint8]:
    """A light shape somewhere on grey noise: RGB [64, 64, 3]."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(60, 120, (64, 64, 3), np.uint8)
    x, y, half = (int(value) for value in (*rng.integers(24, 40, 2), rng.integers(12, 18)))
    colour = tuple(int(value) for value in rng.integers(170, 255, 3))
    if kind == "disc":
        cv2.circle(rgb, (x, y), half, colour, -1)
    else:
        cv2.rectangle(rgb, (x - half, y - half), (x + half, y + half), colour, -1)
    return rgb

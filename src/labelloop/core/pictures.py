"""A decoded picture."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Size


class Picture(msgspec.Struct, frozen=True):
    """`rgb` is uint8 [height, width, 3], upright. `size` is the size of the upright original in pixels: `rgb`
    may be smaller than that when it was decoded at a reduced scale, and coordinates always refer to `size`."""

    rgb: NDArray[np.uint8]
    size: Size

"""A cheap embedding of a picture, for engines that expose none of their own."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from labelloop.core.pictures import Picture
from labelloop.learning.pool import Floats

THUMBNAIL = 64
"""Side of the square that everything is reckoned on, in pixels."""
COLOUR_CELLS = 4
SHAPE_CELLS = 2
ORIENTATIONS = 8
FAINT = 0.02
"""Mean edge strength of a cell, in grey levels of 0..1 per pixel of the thumbnail, that counts for little: noise has
directions too. With this value edges are a fifth of the variance of 60 photographs, colours the rest."""
DIMENSIONS = COLOUR_CELLS**2 * 6 + SHAPE_CELLS**2 * ORIENTATIONS


def pooled_features(picture: Picture) -> NDArray[np.float32]:
    """What a picture looks like from afar, [DIMENSIONS] in [0, 1]: near copies are near, other scenes are far.

    Mean and standard deviation of red, green and blue in a 4 x 4 grid (colour moments, Stricker and Orengo 1995) and,
    in a 2 x 2 grid, which of 8 directions grey edges have, without sign (the cell histograms of HOG, Dalal and Triggs
    2005, each brought to length 1 unless there is next to nothing in it). All from a 64 x 64 thumbnail that ignores the
    picture's proportions. It knows light, layout and texture, not what is in the picture: enough to spread a choice
    over cameras, places and times of day and to avoid burst shots.
    """
    small = thumbnail(picture.rgb) / 255.0
    cells = _cells(small, COLOUR_CELLS)
    # the largest deviation of numbers in [0, 1] is one half
    colours = np.concatenate([cells.mean(axis=2).ravel(), 2.0 * cells.std(axis=2).ravel()])
    return np.concatenate([colours, _edges(small.mean(axis=2))]).astype(np.float32)


def thumbnail(rgb: NDArray[np.uint8]) -> NDArray[np.float64]:
    """`rgb` [height, width, 3] as [64, 64, 3] in 0..255: means of equal areas, or copies where there are fewer pixels.

    Of a large picture only every so many rows and columns are read, at least four to a pixel of the thumbnail each way.
    """
    height, width = rgb.shape[:2]
    thinned = rgb[:: max(1, height // (4 * THUMBNAIL)), :: max(1, width // (4 * THUMBNAIL))].astype(np.float64)
    return _shrink(_shrink(thinned, axis=0), axis=1)


def _shrink(values: Floats, *, axis: int) -> NDArray[np.float64]:
    length = values.shape[axis]
    edges = np.arange(THUMBNAIL + 1) * length // THUMBNAIL
    # where two edges are the same, reduceat gives the one row there: a copy, not a sum of none
    counts = np.maximum(np.diff(edges), 1).reshape([-1 if number == axis else 1 for number in range(values.ndim)])
    return np.asarray(np.add.reduceat(values, edges[:-1], axis=axis) / counts)


def _cells(values: Floats, cells: int) -> Floats:
    """Pixels [side, side, channels] by cell: [cells, cells, pixels of a cell, channels]."""
    side = len(values) // cells
    parts = values.reshape(cells, side, cells, side, -1).swapaxes(1, 2)
    return parts.reshape(cells, cells, side * side, -1)


def _edges(grey: Floats) -> Floats:
    """Directions of edges by cell, [SHAPE_CELLS**2 * ORIENTATIONS] in [0, 1], of grey [side, side] in [0, 1]."""
    down, right = np.gradient(grey)
    strength = np.hypot(down, right)
    direction = (np.arctan2(down, right) / np.pi * ORIENTATIONS).round().astype(int) % ORIENTATIONS
    parts = np.eye(ORIENTATIONS)[direction] * strength[..., None]
    histograms = _cells(parts, SHAPE_CELLS).mean(axis=2)
    length = np.sqrt(np.sum(histograms**2, axis=-1, keepdims=True) + FAINT**2)
    return np.asarray((histograms / length).ravel())

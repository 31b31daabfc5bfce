"""Kalman filters for many boxes at a time, with constant velocity.

The state is a box, measured directly, and the velocities of what is measured; one step is one call of the tracker.
Prediction and correction are the textbook's (Kalman, "A new approach to linear filtering and prediction problems",
1960). What the filters differ in is how a box is written and how sure they are of it:

    AspectMotion  cx, cy, w / h, h   ByteTrack; the noise is that of DeepSORT (Wojke, Bewley and Paulus, ICIP 2017)
    SizeMotion    cx, cy, w, h       BoT-SORT (Aharon, Orfaig and Bobrovsky, 2022, equations 3 to 6)
    AreaMotion    cx, cy, area, w/h  SORT (Bewley et al., ICIP 2016), which OC-SORT keeps; w / h has no velocity

`NOISE` and the variances of AreaMotion are the published ones.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from labelloop.video.overlap import Floats

POSITION_NOISE, VELOCITY_NOISE = 1 / 20, 1 / 160
"""Standard deviations as shares of the box's size."""

_SMALLEST = 1e-6


class Belief(NamedTuple):
    """What is believed of m boxes: `mean` [m, d] and `covariance` [m, d, d]; the first four of the d numbers are the
    box."""

    mean: Floats
    covariance: Floats

    def at(self, index: NDArray[np.intp] | slice) -> Belief:
        return Belief(self.mean[index], self.covariance[index])


class Motion(Protocol):
    """How a box is written, and how sure the filter is."""

    size: int
    """Numbers of a state."""

    def measured(self, xyxy: Floats) -> Floats:
        """[m, 4]"""

    def boxes(self, mean: Floats) -> Floats:
        """[m, 4], left, top, right, bottom"""

    def first(self, measured: Floats) -> Floats:
        """Variances [m, d] of a state that was seen once."""

    def process(self, mean: Floats) -> Floats:
        """Variances [m, d] that one step adds."""

    def measurement(self, mean: Floats) -> Floats:
        """Variances [m, 4] of what is measured."""


def begin(motion: Motion, xyxy: Floats) -> Belief:
    """Boxes [m, 4] that were seen once, and stand still as far as is known."""
    measured = motion.measured(xyxy)
    mean = np.zeros((len(xyxy), motion.size))
    mean[:, :4] = measured
    covariance = np.zeros((len(xyxy), motion.size, motion.size))
    _diagonal(covariance)[:] = motion.first(measured)
    return Belief(mean, covariance)


def predict(motion: Motion, belief: Belief) -> Belief:
    """One step on: x' = F x and P' = F P F^T + Q."""
    mean, covariance = belief.mean.copy(), belief.covariance.copy()
    moving = motion.size - 4  # F adds each velocity to its number
    mean[:, :moving] += mean[:, 4:]
    covariance[:, :moving] += covariance[:, 4:]
    covariance[:, :, :moving] += covariance[:, :, 4:]
    _diagonal(covariance)[:] += motion.process(belief.mean)
    return Belief(mean, covariance)


def correct(motion: Motion, belief: Belief, xyxy: Floats) -> Belief:
    """With boxes [m, 4] that were seen: K = P H^T (H P H^T + R)^-1, x' = x + K (z - H x), P' = P - K H P; H takes the
    first four numbers of a state."""
    mean, covariance = belief
    across = covariance[:, :, :4]
    certainty = covariance[:, :4, :4].copy()
    _diagonal(certainty)[:] += motion.measurement(mean)
    gain = np.linalg.solve(certainty, across.transpose(0, 2, 1)).transpose(0, 2, 1)
    surprise = motion.measured(xyxy) - mean[:, :4]
    corrected = covariance - gain @ covariance[:, :4]
    return Belief(mean + (gain @ surprise[:, :, None])[:, :, 0], corrected)


def _diagonal(matrices: Floats) -> Floats:
    """The diagonals [m, d] of matrices [m, d, d] in one piece, to be written into."""
    size = matrices.shape[1]
    return matrices.reshape(-1, size * size)[:, :: size + 1]


class AspectMotion:
    """cx, cy, w / h, h and their velocities; all noise is a share of the height."""

    size = 8

    def measured(self, xyxy: Floats) -> Floats:
        centre, size = _centre_and_size(xyxy)
        return np.concatenate([centre, size[:, :1] / size[:, 1:], size[:, 1:]], axis=1)

    def boxes(self, mean: Floats) -> Floats:
        size = np.maximum(mean[:, 2:4], _SMALLEST)
        size[:, 0] *= size[:, 1]
        return _around(mean[:, :2], size)

    def first(self, measured: Floats) -> Floats:
        return self._variances(measured, *_spreads(2, 10, 1e-2))

    def process(self, mean: Floats) -> Floats:
        return self._variances(mean, *_spreads(1, 1, 1e-2))

    def measurement(self, mean: Floats) -> Floats:
        return self._variances(mean, *_spreads(1, 1, 1e-1))[:, :4]

    def _variances(self, state: Floats, of_height: Floats, fixed: Floats) -> Floats:
        return np.asarray(np.square(np.maximum(state[:, 3:4], _SMALLEST) * of_height + fixed))


@lru_cache(maxsize=8)
def _spreads(position: float, velocity: float, aspect: float) -> tuple[Floats, Floats]:
    """Standard deviations [8] of AspectMotion: as shares of the height, and fixed."""
    place, speed = position * POSITION_NOISE, velocity * VELOCITY_NOISE
    of_height = np.array([place, place, 0, place, speed, speed, 0, speed])
    return of_height, np.array([0, 0, aspect, 0, 0, 0, 1e-5, 0])


class SizeMotion:
    """cx, cy, w, h and their velocities; the noise is a share of the width or the height."""

    size = 8

    def measured(self, xyxy: Floats) -> Floats:
        return np.column_stack(_centre_and_size(xyxy))

    def boxes(self, mean: Floats) -> Floats:
        return _around(mean[:, :2], np.maximum(mean[:, 2:4], _SMALLEST))

    def first(self, measured: Floats) -> Floats:
        return self._variances(measured, position=2, velocity=10)

    def process(self, mean: Floats) -> Floats:
        return self._variances(mean, position=1, velocity=1)

    def measurement(self, mean: Floats) -> Floats:
        return self._variances(mean, position=1, velocity=1)[:, :4]

    def _variances(self, state: Floats, *, position: float, velocity: float) -> Floats:
        size = np.maximum(state[:, [2, 3, 2, 3]], _SMALLEST)
        spread = [position * POSITION_NOISE * size, velocity * VELOCITY_NOISE * size]
        return np.asarray(np.square(np.column_stack(spread)))


class AreaMotion:
    """cx, cy, area, w / h, and the velocities of the first three; variances in pixels, whatever the box's size."""

    size = 7

    def measured(self, xyxy: Floats) -> Floats:
        centre, size = _centre_and_size(xyxy)
        return np.column_stack([centre, size[:, 0] * size[:, 1], size[:, 0] / size[:, 1]])

    def boxes(self, mean: Floats) -> Floats:
        area, aspect = np.maximum(mean[:, 2], _SMALLEST), np.maximum(mean[:, 3], _SMALLEST)
        width = np.sqrt(area * aspect)
        return _around(mean[:, :2], np.column_stack([width, area / width]))

    def first(self, measured: Floats) -> Floats:
        return np.tile([10.0, 10, 10, 10, 1e4, 1e4, 1e4], (len(measured), 1))

    def process(self, mean: Floats) -> Floats:
        return np.tile([1.0, 1, 1, 1, 1e-2, 1e-2, 1e-4], (len(mean), 1))

    def measurement(self, mean: Floats) -> Floats:
        return np.tile([1.0, 1, 10, 10], (len(mean), 1))


def _centre_and_size(xyxy: Floats) -> tuple[Floats, Floats]:
    return (xyxy[:, :2] + xyxy[:, 2:]) / 2, np.maximum(xyxy[:, 2:] - xyxy[:, :2], _SMALLEST)


def _around(centre: Floats, size: Floats) -> Floats:
    return np.concatenate([centre - size / 2, centre + size / 2], axis=1)

"""A box that a person drew, followed from frame to frame by its looks, without a model.

A discriminative correlation filter (Danelljan et al., "Accurate Scale Estimation for Robust Visual Tracking", BMVC
2014, equations 3 to 6, after Bolme et al., CVPR 2010): the filter answers a peak where the thing is, learns from each
frame what it and its surroundings look like, and all of that happens in the frequency domain, in a few milliseconds.
Looks are directions of edges in cells of 4 x 4 pixels (Dalal and Triggs, CVPR 2005). Size is found by trying a smaller
and a larger one, as SAMF does (Li and Zhu, ECCV workshops 2014).

It notices by itself that it is lost: the peak is low, much lower than it was, or hardly above everything else, or what
is in the box looks neither like what was drawn nor like what was there a moment ago. Surroundings that stay answer a
peak too, when the thing in front of them is gone.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from labelloop.core.regions import Box
from labelloop.video.overlap import Floats

LONG_SIDE = 640
"""Frames are reduced to this."""
AROUND = 2.2
"""How much of the surroundings is looked at, as a multiple of the box's sides."""
CELL = 4
TEMPLATE_PX = 112
"""The sides of what is looked at, as a square of the same area, once it is brought to size."""
DIRECTIONS = 9
SIZES = (1 / 1.03, 1.0, 1.03)
SAME_SIZE = 1.01
"""By how much another size must answer better."""
RATE = 0.03
"""How quickly the filter learns; what was drawn counts half after 23 frames."""
WEIGHT = 0.01
"""Regularisation: the lambda of equation 5."""
LOWEST_PEAK = 0.16
LOWEST_SHARE = 0.4
"""Of the peaks of the frames before, the newest of which count most."""
LOWEST_RATIO = 5.0
"""Peak to sidelobe, in standard deviations (Bolme et al., section 3.5)."""
ALIKE = 0.35
"""What the inside of the box must correlate by with what was drawn, or with that of a moment ago."""
LATELY = 0.15
"""How quickly the inside of a moment ago becomes that of now."""
INSIDE_PX = 24
SMALLEST_PX = 6.0

Grey = NDArray[np.uint8]
Complex = NDArray[np.complex128]


def reduced(rgb: NDArray[np.uint8]) -> Grey:
    """A frame [h, w, 3] as it is followed on: grey, and not larger than is needed."""
    import cv2

    scale = LONG_SIDE / max(rgb.shape[:2])
    small = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA) if scale < 1 else rgb
    return np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)


class Flow:
    """Follows one upright box through frames that are given in order, forwards or backwards. `grey` is the frame that
    the box was drawn on, as `reduced` makes it; boxes are in pixels of a film of this `width`."""

    def __init__(self, grey: Grey, box: Box, *, width: int) -> None:
        self._scale = grey.shape[1] / width
        left, top, right, bottom = (side * self._scale for side in box.xyxy)
        self._centre = np.array([(left + right) / 2, (top + bottom) / 2])
        self._size = np.maximum([right - left, bottom - top], SMALLEST_PX)
        self._cells = _cells(self._size)
        self._window = np.outer(np.hanning(self._cells[1]), np.hanning(self._cells[0]))
        self._wanted = np.fft.fft2(_peak(self._cells))
        looks = self._looks(grey, self._size)
        self._above, self._below = self._learnt(looks)
        self._usual_peak = 0.0
        self._drawn = self._lately = _inside(grey, self._centre, self._size)

    def next(self, grey: Grey) -> Box | None:
        """Where the box is on the next frame; None once it is lost, out of the picture, or too small."""
        answers = [self._answer(grey, self._size * size) for size in SIZES]
        peaks = [answer.max() for answer in answers]
        chosen = int(np.argmax(peaks))
        chosen = chosen if peaks[chosen] > SAME_SIZE * peaks[1] else 1
        answer = answers[chosen]
        lowest = max(LOWEST_PEAK, LOWEST_SHARE * self._usual_peak)
        if peaks[chosen] < lowest or _above_the_rest(answer) < LOWEST_RATIO:
            return None
        self._usual_peak += (peaks[chosen] - self._usual_peak) * (LATELY if self._usual_peak else 1.0)
        size = self._size * SIZES[chosen]
        shift = _place_of_peak(answer) * size * AROUND / self._cells
        self._centre, self._size = self._centre + shift, size
        if not _is_inside(self._centre, size, grey) or not self._is_alike(grey):
            return None
        above, below = self._learnt(self._looks(grey, size))
        self._above = (1 - RATE) * self._above + RATE * above
        self._below = (1 - RATE) * self._below + RATE * below
        left, top, right, bottom = (
            np.concatenate([self._centre - size / 2, self._centre + size / 2]) / self._scale
        ).tolist()
        return Box((left, top, right, bottom))

    def _is_alike(self, grey: Grey) -> bool:
        """Whether the inside of the box is what it was; plain ones have nothing to compare."""
        here = _inside(grey, self._centre, self._size)
        alike = max(float((here * self._drawn).sum()), float((here * self._lately).sum()))
        plain = not self._drawn.any()
        lately = (1 - LATELY) * self._lately + LATELY * here
        self._lately = lately / max(float(np.linalg.norm(lately)), 1e-9)
        return plain or alike >= ALIKE

    def _learnt(self, looks: Complex) -> tuple[Complex, Floats]:
        """Numerator [d, h, w] and denominator [h, w] of the filter (equation 5)."""
        return np.conj(self._wanted) * looks, (looks * np.conj(looks)).sum(axis=0).real

    def _answer(self, grey: Grey, size: Floats) -> Floats:
        """How much each place [h, w] looks like the middle of the thing; 1 is what was taught (equation 6)."""
        looks = self._looks(grey, size)
        return np.asarray(np.fft.ifft2((np.conj(self._above) * looks).sum(axis=0) / (self._below + WEIGHT)).real)

    def _looks(self, grey: Grey, size: Floats) -> Complex:
        """The surroundings of the box, if it had this size, as looks [d, h, w] in the frequency domain."""
        import cv2

        pixels = self._cells * CELL
        scale = pixels / (size * AROUND)
        turn = np.array([[scale[0], 0.0, 0.0], [0.0, scale[1], 0.0]])
        turn[:, 2] = pixels / 2 - 0.5 - self._centre * scale
        patch = cv2.warpAffine(
            grey, turn, (int(pixels[0]), int(pixels[1])), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        )
        return np.asarray(np.fft.fft2(_edges(np.asarray(patch, np.uint8), self._cells) * self._window))


def _inside(grey: Grey, centre: Floats, size: Floats) -> Floats:
    """What is in the box: INSIDE_PX x INSIDE_PX numbers without their mean, of length 1; zeros for a plain surface."""
    import cv2

    scale = INSIDE_PX / size
    shift = INSIDE_PX / 2 - 0.5 - centre * scale
    turn = np.array([[scale[0], 0.0, shift[0]], [0.0, scale[1], shift[1]]])
    patch = cv2.warpAffine(grey, turn, (INSIDE_PX, INSIDE_PX), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    rest = patch.astype(np.float64) - patch.mean()
    length = float(np.linalg.norm(rest))
    return rest / length if length > INSIDE_PX else np.zeros_like(rest)


def _cells(size: Floats) -> NDArray[np.intp]:
    """Width and height in cells of what is looked at."""
    sides = TEMPLATE_PX * np.sqrt(size / size[::-1])
    return np.asarray(np.maximum(np.round(np.clip(sides, 32, 320) / CELL), 8), np.intp)


def _peak(cells: NDArray[np.intp]) -> Floats:
    """What the filter should answer [h, w]: a peak of Gauss in the middle, a sixteenth of the box wide, put to the
    corner because a Fourier transform begins there."""
    width, height = cells
    spread = np.sqrt(width * height) / AROUND / 16
    x, y = np.arange(width) - width // 2, np.arange(height) - height // 2
    peak = np.exp(-(np.square(y)[:, None] + np.square(x)[None]) / (2 * max(spread, 0.6) ** 2))
    return np.asarray(np.roll(peak, (-(height // 2), -(width // 2)), axis=(0, 1)))


def _edges(patch: Grey, cells: NDArray[np.intp]) -> Floats:
    """[DIRECTIONS + 1, h, w]: how strong edges of each direction are in each cell, against all edges around it; and how
    bright it is."""
    import cv2

    grey = patch.astype(np.float32) / 255
    x, y = cv2.Sobel(grey, cv2.CV_32F, 1, 0, ksize=1), cv2.Sobel(grey, cv2.CV_32F, 0, 1, ksize=1)
    strength, angle = cv2.cartToPolar(x, y)
    direction = np.floor(angle * (2 * DIRECTIONS / (2 * np.pi))).astype(np.intp) % DIRECTIONS
    size = (int(cells[0]), int(cells[1]))
    parts = [cv2.resize(strength * (direction == one), size, interpolation=cv2.INTER_AREA) for one in range(DIRECTIONS)]
    found = np.stack(parts)
    around = cv2.blur(np.sqrt(np.square(found).sum(axis=0)), (3, 3))
    bright = cv2.resize(grey, size, interpolation=cv2.INTER_AREA)
    return np.concatenate([found / (around + 0.02), (bright - bright.mean())[None]])


def _above_the_rest(answer: Floats) -> float:
    """How many standard deviations the peak is above the rest (Bolme et al.: without 11 x 11 around it, here a share of
    the whole)."""
    height, width = answer.shape
    y, x = np.unravel_index(int(answer.argmax()), answer.shape)
    rest = np.roll(answer, (height // 2 - y, width // 2 - x), axis=(0, 1)).copy()
    half_y, half_x = max(height // 8, 2), max(width // 8, 2)
    rest[height // 2 - half_y : height // 2 + half_y + 1, width // 2 - half_x : width // 2 + half_x + 1] = np.nan
    return float((answer.max() - np.nanmean(rest)) / (np.nanstd(rest) + 1e-9))


def _place_of_peak(answer: Floats) -> Floats:
    """x and y of the peak in cells from the middle, between cells too: the top of the parabola through neighbours."""
    y, x = np.unravel_index(int(answer.argmax()), answer.shape)
    place = [_top(answer[y], int(x)), _top(answer[:, x], int(y))]
    sides = answer.shape[::-1]
    return np.array([at if at <= side / 2 else at - side for at, side in zip(place, sides, strict=True)])


def _top(line: Any, at: int) -> float:
    before, here, after = (float(line[(at + step) % len(line)]) for step in (-1, 0, 1))
    bend = before - 2 * here + after
    return at + (0.0 if bend >= 0 else float(np.clip((before - after) / (2 * bend), -0.5, 0.5)))


def _is_inside(centre: Floats, size: Floats, grey: Grey) -> bool:
    """Whether enough of the box is in the picture, and large enough to be seen."""
    limits = np.array(grey.shape[::-1])
    seen = np.minimum(centre + size / 2, limits) - np.maximum(centre - size / 2, 0)
    return bool((size >= SMALLEST_PX).all() and (seen > 0).all() and seen.prod() >= 0.4 * size.prod())

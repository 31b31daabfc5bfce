"""How good tracks are: HOTA, IDF1 and MOTA of boxes with ids against ground truth.

- MOTA: Bernardin and Stiefelhagen, "Evaluating multiple object tracking performance: the CLEAR MOT metrics", 2008. A
  pair that was matched on the frame before stays matched while it overlaps enough.
- IDF1: Ristani et al., "Performance measures and a data set for multi-target, multi-camera tracking", 2016. Each true
  track is one predicted track, chosen so that the most boxes agree.
- HOTA: Luiten et al., "HOTA: a higher order metric for evaluating multi-object tracking", 2021, the mean over 19
  thresholds of overlap.

Boxes overlap enough at an IoU of 0.5, except in HOTA. Details (order of preference, rounding at a threshold, empty
input) follow the reference implementation of the MOTChallenge, so that figures can be compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.geometry import iou

Floats = NDArray[np.float64]
Ids = NDArray[np.intp]
Boxes = Mapping[int, Sequence[tuple[int, tuple[float, float, float, float]]]]
"""Frame -> (id, left-top-right-bottom) of each thing on it."""

ENOUGH = 0.5
ALPHAS = np.arange(1, 20) * 0.05
EPS = float(np.finfo(np.float64).eps)
_STAYS = 1000.0
"""What a pair that was matched on the frame before is worth beside an IoU."""


class Scores(msgspec.Struct, frozen=True):
    """Measures in percent except the counts. `deta`, `assa` and `loca` are the parts of HOTA: detection, association,
    place; `switches` how often a true track changes its predicted id."""

    hota: float
    deta: float
    assa: float
    loca: float
    idf1: float
    mota: float
    motp: float
    switches: int
    false_positives: int
    misses: int
    true_tracks: int
    predicted_tracks: int
    true_boxes: int


class _Step(msgspec.Struct, frozen=True):
    """One frame: indices of the true and of the predicted tracks on it, and the IoU of each pair."""

    true: Ids
    predicted: Ids
    overlap: Floats


def score(true: Boxes, predicted: Boxes) -> Scores:
    """Compare predicted tracks with true ones; every frame that either names counts. Raises ValueError where an id is
    twice on one frame."""
    true_ids, predicted_ids = _ids(true), _ids(predicted)
    steps = list(_steps(true, predicted, true_ids, predicted_ids))
    lengths = _lengths(steps, len(true_ids), len(predicted_ids))
    shape = (len(true_ids), len(predicted_ids))
    clear = _clear(steps, len(true_ids))
    total = int(lengths[0].sum())
    misses, extra = total - clear.matches, int(lengths[1].sum()) - clear.matches
    hota = _hota(steps, lengths, shape)
    return Scores(
        **hota,
        idf1=_idf1(steps, lengths, shape) * 100,
        mota=(clear.matches - extra - clear.switches) / max(total, 1) * 100,
        motp=clear.overlap / max(clear.matches, 1) * 100,
        switches=clear.switches,
        false_positives=extra,
        misses=misses,
        true_tracks=shape[0],
        predicted_tracks=shape[1],
        true_boxes=total,
    )


def _ids(boxes: Boxes) -> dict[int, int]:
    return {name: index for index, name in enumerate(sorted({name for row in boxes.values() for name, _ in row}))}


def _steps(true: Boxes, predicted: Boxes, true_ids: dict[int, int], predicted_ids: dict[int, int]) -> Iterator[_Step]:
    for frame in sorted(true.keys() | predicted.keys()):
        rows = (true.get(frame, ()), predicted.get(frame, ()))
        first, second = (np.array([xyxy for _, xyxy in row], np.float64).reshape(-1, 4) for row in rows)
        step = _Step(
            np.array([true_ids[name] for name, _ in rows[0]], np.intp),
            np.array([predicted_ids[name] for name, _ in rows[1]], np.intp),
            np.asarray(iou(first, second), np.float64),
        )
        for names, what in ((step.true, "true"), (step.predicted, "predicted")):
            if len(set(names.tolist())) < len(names):
                raise ValueError(f"frame {frame} has two {what} boxes with one id")
        yield step


def _lengths(steps: Sequence[_Step], true: int, predicted: int) -> tuple[Floats, Floats]:
    """How many boxes each track has."""
    lengths = np.zeros(true), np.zeros(predicted)
    for step in steps:
        lengths[0][step.true] += 1
        lengths[1][step.predicted] += 1
    return lengths


def _assign(worth: Floats) -> tuple[Ids, Ids]:
    """The pairs whose worth adds up to the most (the Hungarian method)."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(worth, maximize=True)
    return np.asarray(rows, np.intp), np.asarray(columns, np.intp)


class _Clear(msgspec.Struct):
    matches: int = 0
    switches: int = 0
    overlap: float = 0.0


def _clear(steps: Sequence[_Step], tracks: int) -> _Clear:
    found = _Clear()
    ever = np.full(tracks, -1)  # the predicted track that each true one had when it was last matched
    just_now = np.full(tracks, -1)  # the same, on the frame before only
    for step in steps:
        if not step.overlap.size:
            continue  # as in the reference: such a frame does not end what was matched before it
        stays = step.predicted[None, :] == just_now[step.true][:, None]
        worth = np.where(step.overlap >= ENOUGH - EPS, step.overlap + _STAYS * stays, 0.0)
        rows, columns = _assign(worth)
        fits = worth[rows, columns] > EPS
        rows, columns = rows[fits], columns[fits]
        here, there = step.true[rows], step.predicted[columns]
        found.matches += len(here)
        found.switches += int(((ever[here] >= 0) & (ever[here] != there)).sum())
        found.overlap += float(step.overlap[rows, columns].sum())
        just_now[:] = -1
        ever[here] = just_now[here] = there
    return found


def _idf1(steps: Sequence[_Step], lengths: tuple[Floats, Floats], shape: tuple[int, int]) -> float:
    together = np.zeros(shape)
    for step in steps:
        together[np.ix_(step.true, step.predicted)] += step.overlap >= ENOUGH
    agreed = float(together[_assign(together)].sum())
    return 2 * agreed / max(float(lengths[0].sum() + lengths[1].sum()), 1.0)


def _hota(steps: Sequence[_Step], lengths: tuple[Floats, Floats], shape: tuple[int, int]) -> dict[str, float]:
    alike = _alignment(steps, lengths, shape)
    together = np.zeros((len(ALPHAS), *shape))
    matches, place = np.zeros(len(ALPHAS)), np.zeros(len(ALPHAS))
    for step in steps:
        rows, columns = _assign(alike[np.ix_(step.true, step.predicted)] * step.overlap)
        overlap = step.overlap[rows, columns]
        fits = overlap[None, :] >= ALPHAS[:, None] - EPS
        matches += fits.sum(axis=1)
        place += (fits * overlap).sum(axis=1)
        together[:, step.true[rows], step.predicted[columns]] += fits
    total = lengths[0].sum() + lengths[1].sum()
    deta = matches / np.maximum(total - matches, 1)
    union = np.maximum(lengths[0][:, None] + lengths[1][None, :] - together, 1)
    assa = (together * together / union).sum(axis=(1, 2)) / np.maximum(matches, 1)
    loca = np.where(matches > 0, place / np.maximum(matches, 1), 1.0)
    means = {"hota": np.sqrt(deta * assa), "deta": deta, "assa": assa, "loca": loca}
    return {name: float(values.mean()) * 100 for name, values in means.items()}


def _alignment(steps: Sequence[_Step], lengths: tuple[Floats, Floats], shape: tuple[int, int]) -> Floats:
    """How much each true track and each predicted one belong together over the whole film: the Jaccard index of their
    boxes, counted by overlap."""
    shared = np.zeros(shape)
    for step in steps:
        overlap = step.overlap
        union = overlap.sum(axis=0)[None, :] + overlap.sum(axis=1)[:, None] - overlap
        shared[np.ix_(step.true, step.predicted)] += np.divide(
            overlap, union, out=np.zeros_like(overlap), where=union > EPS
        )
    return np.asarray(shared / np.maximum(lengths[0][:, None] + lengths[1][None, :] - shared, EPS))

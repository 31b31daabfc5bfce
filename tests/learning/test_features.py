from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelloop.core.pictures import Picture
from labelloop.core.regions import Size
from labelloop.learning.features import COLOUR_CELLS, DIMENSIONS, ORIENTATIONS, THUMBNAIL, pooled_features, thumbnail
from labelloop.media.image import decode

COLOURS = COLOUR_CELLS**2 * 3


def picture(rgb: np.ndarray) -> Picture:
    return Picture(rgb=rgb.astype(np.uint8), size=Size(rgb.shape[1], rgb.shape[0]))


def stripes(*, down: int, right: int) -> Picture:
    y, x = np.mgrid[0:128, 0:128]
    grey = 127 + 120 * np.sin((x * right + y * down) / 4)
    return picture(np.repeat(grey[..., None], 3, axis=2))


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 900), (64, 64), (65, 63), (480, 640), (2000, 31)], ids=lambda shape: f"{shape[0]}x{shape[1]}"
)
def test_shape_and_bounds_for_any_size(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    for rgb in (rng.integers(0, 256, (*shape, 3)), rng.choice([0, 255], (*shape, 3)), np.full((*shape, 3), 255)):
        values = pooled_features(picture(rgb))
        assert values.shape == (DIMENSIONS,)
        assert values.dtype == np.float32
        assert np.isfinite(values).all()
        assert values.min() >= 0
        assert values.max() <= 1


def test_colours_are_where_they_are() -> None:
    rgb = np.zeros((80, 80, 3))
    rgb[:20, 60:] = (255, 0, 0)
    means = pooled_features(picture(rgb))[:COLOURS].reshape(COLOUR_CELLS, COLOUR_CELLS, 3)
    np.testing.assert_allclose(means[0, 3], [1, 0, 0], atol=1e-6)
    assert means.sum() == pytest.approx(1)


@pytest.mark.parametrize(
    ("down", "right", "orientation"),
    [(0, 1, 0), (1, 0, ORIENTATIONS // 2), (1, 1, ORIENTATIONS // 4), (-1, 1, 3 * ORIENTATIONS // 4)],
    ids=["upright", "level", "falling", "rising"],
)
def test_edges_are_told_apart_by_direction(down: int, right: int, orientation: int) -> None:
    edges = pooled_features(stripes(down=down, right=right))[2 * COLOURS :].reshape(-1, ORIENTATIONS)
    assert (edges.argmax(axis=1) == orientation).all()


def test_thumbnail_averages_equal_areas_and_copies_where_pixels_are_few() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (THUMBNAIL * 3, THUMBNAIL * 2, 3)).astype(np.uint8)
    blocks = rgb.reshape(THUMBNAIL, 3, THUMBNAIL, 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(thumbnail(rgb), blocks)
    two = np.array([[[0, 0, 0], [200, 100, 50]]], np.uint8)
    assert (thumbnail(two)[:, : THUMBNAIL // 2] == 0).all()
    assert (thumbnail(two)[:, THUMBNAIL // 2 :] == (200, 100, 50)).all()


def test_a_shifted_and_brighter_copy_is_nearest_to_its_original(shared: Path) -> None:
    files = sorted((shared / "data").rglob("*.jpg"))[:24]
    if len(files) < 10:
        pytest.skip("fewer than ten photographs in the shared data")
    photos = [decode(file.read_bytes(), max_pixels=50_000_000) for file in files]
    copies = [picture(np.clip(np.roll(p.rgb[::2, ::2], (2, 3), (0, 1)).astype(int) + 8, 0, 255)) for p in photos]
    originals, again = (np.array([pooled_features(p) for p in group]) for group in (photos, copies))
    distance = np.linalg.norm(originals[:, None] - again[None], axis=2)
    assert (distance.argmin(axis=1) == np.arange(len(files))).all()

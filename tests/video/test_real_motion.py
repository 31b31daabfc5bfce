"""Key frames of what a detector sees in a real film: how many are saved, and how true the rest stay."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.pictures import Picture
from labelloop.core.regions import Box, Size, Track
from labelloop.engines.base import EngineOptions
from labelloop.engines.detect import DetectEngine
from labelloop.engines.labels import COCO
from labelloop.media.film import read_frames
from labelloop.video.keyframes import fidelity, reduce
from labelloop.video.lifespans import track_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def seen(shared: Path) -> dict[str, dict[int, Box]]:
    """The best box of the class on each frame on which there is one, as the detector gives it: it trembles."""
    film = shared / "data/video/woman_and_dog.mp4"
    model = shared / "data/models/yolox_nano_416.onnx"
    engine = DetectEngine(model, ModelCard(name="yolox", labels=COCO), EngineOptions(device="cpu"))
    found: dict[str, dict[int, Box]] = {"person": {}, "dog": {}}
    for frame in read_frames(film):
        height, width = frame.rgb.shape[:2]
        (regions,) = engine.predict([engine.prepare(Picture(frame.rgb, Size(width, height)))])
        for region in reversed(regions):
            if region.label in found and (region.score or 0) > 0.3 and isinstance(region.shape, Box):
                found[region.label][frame.number] = region.shape
    return found


def dense(boxes: dict[int, Box]) -> Track:
    return track_of(boxes, frames_count=289, duration_s=289 * 1001 / 30000)


def test_a_person_who_walks_needs_a_ninth_of_the_key_frames(seen: dict[str, dict[int, Box]]) -> None:
    track = dense(seen["person"])
    found = fidelity(track, reduce(track))
    assert found.frames == 289
    assert found.keyframes <= 0.12 * found.frames, "31 when this was written"
    assert found.mean_iou > 0.95
    assert found.min_iou > 0.8


def test_what_trembles_needs_more_of_them(seen: dict[str, dict[int, Box]]) -> None:
    """The dog is small, comes and goes, and its box jumps by a fifth from frame to frame. That takes 108 of 249 frames
    at IoU 0.9, and no choice has fewer; 48 at 0.8."""
    track = dense(seen["dog"])
    strict, loose = (fidelity(track, reduce(track, min_iou=limit)) for limit in (0.9, 0.8))
    assert strict.frames > 230
    assert 0.4 < strict.keyframes / strict.frames < 0.5
    assert loose.keyframes <= 0.2 * loose.frames
    assert loose.min_iou > 0.8 - 1e-6

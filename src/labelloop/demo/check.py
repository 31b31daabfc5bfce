"""Did it work? Asked of Label Studio's API, not of ourselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from labelloop.core.outlines import bounding_box
from labelloop.core.regions import Box, Region
from labelloop.demo.project import PictureTask
from labelloop.demo.scenario import Scenario
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import LabelConfig, parse_config
from labelloop.labelstudio.wire import decode_regions

SLACK_PX = 1.5
"""Percent with four digits, and boxes that end with the last pixel."""


def find_problems(client: Client, tasks: Sequence[PictureTask], scenario: Scenario, version: str) -> list[str]:
    """What is wrong with the predictions of `version` that Label Studio has, a sentence each; empty when all is right.

    Every picture has one task and every task one prediction, with known labels and places inside its own picture. Text
    that we drew must have been read word for word on the very task; a detector must have found something.
    """
    problems = (
        [] if len(tasks) == len(scenario.pictures) else [f"{len(tasks)} tasks, {len(scenario.pictures)} pictures"]
    )
    config, found = parse_config(scenario.label_config), 0
    for task in tasks:
        stored = [row for row in client.predictions(task.id) if row["model_version"] == version]
        if len(stored) != 1:
            problems.append(f"task {task.id} has {len(stored)} predictions of {version}")
            continue
        regions = decode_regions(stored[0]["result"], config)
        found += len(regions)
        problems += [f"task {task.id} ({task.picture.name}): {what}" for what in _look(regions, task.picture, scenario)]
    return problems if found else [*problems, "nothing was found on any picture"]


def _look(regions: Sequence[Region], picture: Path, scenario: Scenario) -> Iterator[str]:
    pixels: Any = cv2.imread(str(picture))  # upright: EXIF is applied, as a browser does it
    misplaced = [region for region in regions if not _inside(region, pixels)]
    if misplaced:
        yield f"{len(misplaced)} of {len(regions)} regions lie outside the picture, for instance {misplaced[0].shape}"
    unknown = {region.label for region in regions} - _labels(parse_config(scenario.label_config))
    if unknown:
        yield f"labels that the project does not have: {sorted(map(str, unknown))}"
    drawn = scenario.texts.get(picture.name)
    if drawn is None:
        return
    read = tuple(region.text for region in regions)
    if read != drawn:
        yield f"read {read}, drawn {drawn}"
    if blank := [region.text for region in regions if not _has_ink(region, pixels)]:
        yield f"nothing is drawn where {blank} was read"


def _inside(region: Region, pixels: Any) -> bool:
    around = bounding_box(region.shape)
    if around is None:
        return False
    (left, top, right, bottom), (height, width) = around.xyxy, pixels.shape[:2]
    return left >= -SLACK_PX and top >= -SLACK_PX and right <= width + SLACK_PX and bottom <= height + SLACK_PX


def _has_ink(region: Region, pixels: Any) -> bool:
    """Whether the place holds letters: paper or paint alone is nearly of one brightness."""
    around = bounding_box(region.shape) or Box((0, 0, 0, 0))
    left, top, right, bottom = (max(0, round(number)) for number in around.xyxy)
    patch = pixels[top:bottom, left:right]
    return patch.size > 0 and float(np.std(patch)) > 20


def _labels(config: LabelConfig) -> set[str | None]:
    return {label.value for control in config.controls for label in control.labels}

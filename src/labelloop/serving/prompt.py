"""A click or a drawn box picks among what the model found."""

from __future__ import annotations

from collections.abc import Iterable

from labelloop.core.outlines import area_of, contains, outline_contains, outline_of, rings_of
from labelloop.core.regions import Box, MediaKey, Point, Polygon, Region
from labelloop.core.tasks import Prompt


def marks_on(prompt: Prompt, key: MediaKey) -> Prompt:
    """The marks that were made on one picture of the task."""
    return Prompt(
        include=tuple(mark for mark in prompt.include if mark.media == key),
        exclude=tuple(mark for mark in prompt.exclude if mark.media == key),
    )


def select(regions: Iterable[Region], prompt: Prompt) -> tuple[Region, ...]:
    """What the annotator means by `prompt`.

    A point asks for the smallest region around it (a person before a car before the street); a box or an outline
    asks for all regions whose centre lies in it. A region around an excluded point is out. A prompt without a place
    in the picture changes nothing.
    """
    excluded = [mark.shape for mark in prompt.exclude if isinstance(mark.shape, Point)]
    left = [region for region in regions if not any(_around(region, point) for point in excluded)]
    marks = [mark.shape for mark in prompt.include if isinstance(mark.shape, Point | Box | Polygon)]
    if not marks:
        return tuple(left)
    wanted: dict[int, Region] = {}
    for mark in marks:
        hits = [r for r in left if (_around(r, mark) if isinstance(mark, Point) else _centre_in(r, mark))]
        if isinstance(mark, Point):
            hits = sorted(hits, key=lambda hit: area_of(hit.shape))[:1]
        wanted |= {id(hit): hit for hit in hits}
    return tuple(region for region in left if id(region) in wanted)


def _around(region: Region, point: Point) -> bool:
    return contains(region.shape, (point.x, point.y))


def _centre_in(region: Region, mark: Box | Polygon) -> bool:
    points = [point for ring in rings_of(region.shape) for point in ring]
    if not points:
        return False
    centre = (sum(x for x, _ in points) / len(points), sum(y for _, y in points) / len(points))
    return outline_contains(outline_of(mark), centre)

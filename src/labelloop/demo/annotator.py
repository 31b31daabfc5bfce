"""A simulated annotator: draws in Label Studio what we know to lie on pictures that we made.

It stands for a person in the demo and says so. What it submits goes the way of a person's work: an annotation through
Label Studio's API, a webhook to labelloop.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from labelloop.core.regions import Box, MediaKey, Prediction, Region, Size
from labelloop.demo import belt
from labelloop.demo.project import PictureTask
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.wire import encode_prediction


class Annotator:
    """Knows what lies on each picture, by file name."""

    def __init__(self, client: Client, label_config: str, parts: Mapping[str, Sequence[belt.Part]]) -> None:
        self._client = client
        self._labels = build_label_map(parse_config(label_config), belt.LABELS)
        (picture,) = self._labels.fields
        self._media = MediaKey(picture.field)
        self._parts = parts

    def parts_of(self, task: PictureTask) -> Sequence[belt.Part]:
        """What truly lies on the picture of a task."""
        return self._parts[task.picture.name]

    def annotate(self, task: PictureTask) -> int:
        """Submit the right boxes for one task; how many."""
        drawn = Prediction(
            regions=tuple(Region(Box(part.xyxy), part.label, media=self._media) for part in self.parts_of(task)),
            sizes={self._media: Size(*belt.SIZE_WH)},
        )
        result = encode_prediction(drawn, self._labels, task_id=task.id)["result"]
        self._client.create_annotation(task.id, result)
        return len(result)

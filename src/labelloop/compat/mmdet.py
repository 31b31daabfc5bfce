"""Hosts one detector of OpenMMLab: the adapter that `host.py` loads for `engines/mmdet`."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable

sys.path.append(os.path.join(os.path.dirname(os.path.abspath(__file__)), "names"))

LOWEST_SCORE = 0.01


def host(ask: Callable[..., Any]) -> Detector:
    return Detector()


class Detector:
    """A network and its classes."""

    def __init__(self) -> None:
        self._model: Any = None
        self._classes: list[str] = []

    def pack(self, config: str, checkpoint: str, trust: bool, labels: list[str], target: str) -> None:
        from labelloop_openmmlab.packed import pack

        pack(config, checkpoint, target, trust=trust, labels=labels)

    def open(self, path: str, device: str) -> None:
        from labelloop_openmmlab import build, device_of
        from labelloop_openmmlab.packed import read

        told, config, weights = read(path)
        self._model, self._classes = build(config, weights, device_of(device)), told["classes"]

    def predict(self, pictures: list[Any]) -> list[dict[str, Any]]:
        """Of each picture (RGB) what was found, best first: boxes [n, 4] in pixels, scores, class numbers, and the
        parts of masks where the network makes them."""
        import numpy
        from labelloop_openmmlab import infer

        bgr = [numpy.ascontiguousarray(picture[:, :, ::-1]) for picture in pictures]
        return [self._found(sample.pred_instances) for sample in infer(self._model, bgr, len(bgr))]

    def _found(self, found: Any) -> dict[str, Any]:
        from labelloop_masks import parts_of

        found = found[(found.scores >= LOWEST_SCORE) & (found.labels < len(self._classes))]
        found = found[found.scores.argsort(descending=True)]
        masks = "masks" in found
        return {
            "boxes": found.bboxes.tolist(),
            "scores": found.scores.tolist(),
            "labels": found.labels.tolist(),
            "masks": masks,
            "parts": [parts_of(mask) for mask in found.masks.numpy()] if masks else [],
        }

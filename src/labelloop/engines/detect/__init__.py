"""Detectors in ONNX files: recognise the family, prepare pictures, decode boxes.

`engine` is the one engine; `recognise` finds which family a file belongs to; one file per family says what it looks
like, how its pictures are prepared and how its outputs become boxes (`head` is their common seam).
"""

from labelloop.engines.detect.engine import DetectEngine

__all__ = ["DetectEngine"]

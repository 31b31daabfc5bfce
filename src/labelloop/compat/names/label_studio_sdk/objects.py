"""labelloop's stand-in."""

from label_studio_ml.response import PredictionValue

__all__ = ["PredictionValue"]

"""A first detector from nothing: for projects that have pictures and corrections, and no model.

`network` is the net, `targets` what it is taught, `pictures` the data, `training` the loop, `export` the ONNX file.
"""

from labelloop.learning.trainers.scratch.trainer import ScratchTrainer

__all__ = ["ScratchTrainer"]

"""The model card: what labelloop knows about one model file, kept as YAML beside it and in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

Resize = Literal["letterbox-center", "letterbox-topleft", "stretch", "cover", "crop-center"]
"""A letterbox shows the whole picture, `cover` fills the input with its middle, `crop-center` with seven eighths of
that, as classifiers are tested on ImageNet (256 pixels, of which 224 are kept)."""


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a picture becomes the network's input. A field left None is read from the file or taken from the family."""

    size_wh: tuple[int, int] | None = None
    """Width and height of the network input in pixels."""
    color: Literal["rgb", "bgr"] | None = None
    resize: Resize | None = None
    pad: float | None = None
    """Grey value (0..255, before scaling) around a letterboxed picture."""
    scale: float | None = None
    """Factor applied to 0..255 values before mean and std, for instance 1/255."""
    mean: tuple[float, float, float] | None = None
    """Subtracted per channel, in the channel order of `color`, after `scale`."""
    std: tuple[float, float, float] | None = None
    """Divided by, per channel, after the mean."""


class Hosted(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A model that is somebody's Python code: `source` is an absolute path of a folder or a file, perhaps with
    ":Class"; `python` the interpreter that it runs in ("" for ours), `options` what it is built with, `model_dir` a
    folder that it keeps files in ("" for one that labelloop chooses). `code` is a
    digest of the Python files there, so that another text is another version. `timeout_s`: how long one call may take.
    """

    source: str
    python: str = ""
    model_dir: str = ""
    options: Mapping[str, Any] = {}
    code: str = ""
    timeout_s: float = 300.0


class ModelCard(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One model. `family` None lets the engine recognise the file by its inputs, outputs and metadata.

    `labels` are the class names in the order of the class index; `score_threshold` and `iou_threshold` in
    [0, 1]. `score_threshold` is for drawing, where neither the label config nor a setting names one; engines answer
    with less certain regions too. `max_detections` of a classifier is its k of "top-k". `engine` is the name of an
    engine plug-in; `remote` the address of a model that runs elsewhere (engine `remote`). A model of the task "raw" is
    given whole tasks and writes results itself, as the label config asks for them. `host` says where its code is.
    """

    name: str
    engine: str = "detect"
    task: str = "detect"
    family: str | None = None
    labels: tuple[str, ...] = ()
    input: InputSpec = InputSpec()
    score_threshold: float | None = None
    iou_threshold: float | None = None
    max_detections: int | None = None
    remote: str = ""
    description: str = ""
    licence: str = ""
    sha256: str = ""
    host: Hosted | None = None

"""One detector as one file: a zip of `model.json` (what of its config is needed, and its classes) and `weights.pth`
(tensors and names, nothing that loading could run)."""

from __future__ import annotations

import io
import json
import zipfile
from typing import Any

from labelloop_openmmlab import build, classes_of, define_operators, infer, load_checkpoint, prepared, read_config

MODEL, WEIGHTS = "model.json", "weights.pth"
KEYS = ("default_scope", "custom_imports", "model", "test_dataloader", "train_dataloader", "optim_wrapper",
        "auto_scale_lr")  # fmt: skip
TUPLE = "$tuple"
"""JSON has no tuples, and transforms tell (640, 640) from [640, 640]."""
_BEGINNING = (1980, 1, 1, 0, 0, 0)


def pack(config_file: str, checkpoint: str, target: str, *, trust: bool, labels: list[str]) -> None:
    """Write the model of a config and a checkpoint into `target`, if it answers. `labels` are its classes where others
    than the checkpoint's shall be. Raises ValueError."""
    import numpy

    config = read_config(config_file)
    weights, meta = load_checkpoint(checkpoint, trust)
    model = build(config, weights)
    classes = labels or classes_of(meta, config)
    (answer,) = infer(model, [numpy.zeros((64, 64, 3), numpy.uint8)])
    kept = {key: value for key, value in config.to_dict().items() if key in KEYS}
    kept["test_dataloader"] = {"dataset": {"pipeline": _pipeline(kept["test_dataloader"])}}
    kept["train_dataloader"] = {"batch_size": kept.get("train_dataloader", {}).get("batch_size")}
    told = {"family": type(model).__name__, "masks": "masks" in answer.pred_instances, "classes": classes}
    write(target, {**told, "config": plain(kept)}, model.state_dict())


def write(target: str, told: dict[str, Any], state_dict: Any) -> None:
    """The same model gives the same bytes, so that it is the same version."""
    import torch

    weights = io.BytesIO()
    meta = {"dataset_meta": {"classes": told["classes"]}}
    torch.save({"meta": meta, "state_dict": {name: value.cpu() for name, value in state_dict.items()}}, weights)
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:  # weights do not get smaller
        archive.writestr(zipfile.ZipInfo(MODEL, _BEGINNING), json.dumps(told, sort_keys=True))
        archive.writestr(zipfile.ZipInfo(WEIGHTS, _BEGINNING), weights.getvalue())


def read(path: str) -> tuple[dict[str, Any], Any, dict[str, Any]]:
    """What `write` was told, its config as one of MMEngine's, and the weights."""
    define_operators()
    from mmengine.config import Config
    from mmengine.utils import import_modules_from_strings

    with zipfile.ZipFile(path) as archive:
        told = json.loads(archive.read(MODEL))
        weights, _ = load_checkpoint(io.BytesIO(archive.read(WEIGHTS)))
    config = Config(unplain(told["config"]))
    if config.get("custom_imports"):
        import_modules_from_strings(**config.custom_imports)
    return told, prepared(config), weights


def _pipeline(loader: Any) -> Any:
    dataset = loader["dataset"]
    while "pipeline" not in dataset:
        dataset = dataset["dataset"]
    return dataset["pipeline"]


def plain(value: Any) -> Any:
    """As JSON can write it. Raises ValueError for what is no data."""
    if isinstance(value, tuple):
        return {TUPLE: [plain(item) for item in value]}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise ValueError(f"the config holds a {type(value).__name__}, {value!r}, where there should be plain data")


def unplain(value: Any) -> Any:
    if isinstance(value, list):
        return [unplain(item) for item in value]
    if not isinstance(value, dict):
        return value
    if set(value) == {TUPLE}:
        return tuple(unplain(item) for item in value[TUPLE])
    return {key: unplain(item) for key, item in value.items()}

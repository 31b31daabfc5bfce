"""Models of OpenMMLab from a config and a checkpoint: what the backends of `labelloop init --from mmdetection|mmocr`
and the engine `mmdet` have in common. It runs where torch, mmengine and the packages of the model are installed.

Pictures are uint8 arrays [height, width, 3] in BGR, as OpenCV reads them.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import inspect
import os
import threading
from collections.abc import Iterator
from typing import Any

KEPT: list[Any] = []
"""Operators that were made known to torch: they are forgotten with the object that did it."""

LOADED: dict[tuple[str, str, str], tuple[Any, Any, Any]] = {}
LOADING = threading.Lock()

BATCH = 8
"""Pictures that a network is given at a time unless told: at 640 pixels each takes some hundred MB, and a hundred masks
of one with two million pixels 200 MB."""


def read_config(path: Any) -> Any:
    """A config file, ready to build its model. Raises what mmengine raises."""
    define_operators()
    from mmengine.config import Config

    return prepared(Config.fromfile(path))


def prepared(config: Any) -> Any:
    """The config, which says whose models it speaks of, without initial weights: the checkpoint has them all."""
    from mmengine.registry import init_default_scope

    init_default_scope(config.get("default_scope") or "mmdet")
    forget_initial_weights(config.model)
    return config


def build(config: Any, state_dict: Any, device: str = "cpu") -> Any:
    """The network with its weights, ready to answer. Raises ValueError where they are not those of the config."""
    from mmengine.dataset import Compose
    from mmengine.model import revert_sync_batchnorm
    from mmengine.registry import MODELS

    model = revert_sync_batchnorm(MODELS.build(config.model))
    try:
        missing = set(model.load_state_dict(state_dict, strict=False).missing_keys)
    except RuntimeError as error:  # other shapes
        raise ValueError(f"the checkpoint is not of the model in the config: {error}") from error
    lacking = sorted(missing & {name for name, _ in model.named_parameters()})
    if lacking:
        raise ValueError(f"the checkpoint is not of the model in the config: it lacks {len(lacking)} weights, "
                         f"for instance {lacking[0]}")  # fmt: skip
    model.cfg = config
    steps = pipeline_of(config)
    model.test_pipeline = Compose(steps)
    model.reads_rgb = steps[0].get("color_type") == "grayscale"  # MMOCR makes grey of RGB where it is given arrays
    return model.to(device).eval()


def load_checkpoint(path: Any, trust: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """State dict and meta data. Beside tensors and plain values it may hold what MMEngine's runner writes; anything
    else would be run by loading it, and is refused with a ValueError unless you trust where the file comes from."""
    import torch

    define_operators()
    if not trust and not hasattr(torch.serialization, "safe_globals"):
        raise ValueError(
            f"torch {torch.__version__} cannot load {path} without running what is in it; 2.5 and newer can. If you "
            "trust where it comes from: --with trust=true, or --trust"
        )
    try:
        if trust:
            found = torch.load(path, map_location="cpu", weights_only=False)
        else:
            with torch.serialization.safe_globals(harmless()):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise ValueError(
                f"{path} holds more than weights, which loading would run. If you trust where it comes from: "
                "--with trust=true, or --trust"
            ) from error
        raise ValueError(f"{path} is no checkpoint: {error}") from error
    state = found.get("state_dict", found)
    prefix = "module."  # of networks that were trained on several GPUs
    weights = {name[len(prefix) :] if name.startswith(prefix) else name: value for name, value in state.items()}
    return weights, {} if state is found else found.get("meta", {})


def harmless() -> list[Any]:
    """What the runner's own checkpoints hold: its history of losses, in NumPy's arrays."""
    import numpy
    from mmengine.logging import HistoryBuffer

    makers = {"_reconstruct": numpy.zeros(1).__reduce__()[0], "scalar": numpy.float64(0).__reduce__()[0]}
    homes = ("numpy.core.multiarray", "numpy._core.multiarray")  # before NumPy 2, and since
    kinds = {type(numpy.dtype(name)) for name in ("float64", "float32", "int64", "int32", "bool")}
    found = [(maker, home + "." + name) for name, maker in makers.items() for home in homes]

    def method(owner: Any, name: str) -> Any:
        """Stands for `getattr`, with which it names its means and minima."""
        if owner is not HistoryBuffer or name.startswith("_"):
            raise ValueError(f"the checkpoint asks for {name} of {owner!r}")
        return getattr(owner, name)

    return [HistoryBuffer, numpy.ndarray, numpy.dtype, (method, "builtins.getattr"), *found, *kinds]


def load_model(
    config_file: str, checkpoint_file: str, device: str = "cpu", trust: bool = False
) -> tuple[Any, Any, Any]:
    """The network, its config and the checkpoint's meta data: one for all projects of this process. Raises what
    `read_config`, `load_checkpoint` and `build` raise."""
    key = (config_file, checkpoint_file, device)
    with LOADING:
        if key not in LOADED:
            config = read_config(config_file)
            weights, meta = load_checkpoint(checkpoint_file, trust)
            LOADED[key] = build(config, weights, device), config, meta
        return LOADED[key]


def classes_of(meta: Any, config: Any) -> list[str]:
    """Class names: as the checkpoint says, else as the config's data set is called."""
    said = meta.get("dataset_meta") or {}
    found = {key.lower(): value for key, value in said.items()}.get("classes") or meta.get("CLASSES")
    if not found:
        from mmengine.registry import DATASETS

        dataset = dict(config.test_dataloader.dataset, lazy_init=True)
        found = DATASETS.build(dataset).metainfo.get("classes")
    if not found:
        raise ValueError("neither the checkpoint nor the config says what the classes are called")
    return [str(name) for name in found]


def pipeline_of(config: Any) -> list[dict[str, Any]]:
    """How the config prepares pictures to be tested, beginning with arrays and without looking for annotations."""
    dataset = config.test_dataloader.dataset
    while "pipeline" not in dataset:
        dataset = dataset["dataset"]
    loading, *steps = [dict(step) for step in dataset["pipeline"]]
    scope = "mmocr" if config.get("default_scope") == "mmocr" else "mmdet"
    kept = {key: loading[key] for key in ("color_type", "to_float32") if key in loading}
    return [dict(kept, type=scope + ".LoadImageFromNDArray")] + [
        step for step in steps if "Annotations" not in str(step["type"])
    ]


def infer(model: Any, pictures: Any, batch: int = BATCH) -> Iterator[Any]:
    """What the network says about each picture: data samples on the CPU, `batch` pictures at a time."""
    for first in range(0, len(pictures), batch):
        yield from _infer(model, pictures[first : first + batch])


def _infer(model: Any, pictures: Any) -> list[Any]:
    import warnings

    import torch
    from mmengine.dataset import pseudo_collate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        shown = [picture[:, :, ::-1].copy() if model.reads_rgb else picture for picture in pictures]
        rows = [model.test_pipeline({"img": picture, "img_id": 0, "img_path": None}) for picture in shown]
        with torch.no_grad():
            return [sample.cpu() for sample in model.test_step(pseudo_collate(rows))]


def outlines_of(mask: Any) -> list[list[list[int]]]:
    """The outlines of a mask's parts with holes filled, in pixels; specks are left out."""
    import cv2
    import numpy
    from labelloop_masks import parts_of

    outlines = [part[0] for part in parts_of(mask)]
    return [points for points in outlines if cv2.contourArea(numpy.array(points, numpy.int32)) >= 4]


def batch_of(text: Any) -> int:
    """The pictures of a batch that a person asks for. Raises ValueError."""
    try:
        batch = int(text)
    except ValueError:
        batch = 0
    if batch < 1:
        raise ValueError(f"batch_size={text}: give a number of pictures, 1 or more")
    return batch


def device_of(text: Any) -> str:
    """The device that `cpu`, `cuda`, `cuda:1`, `gpu:0` or `auto` mean here. The CPU, with a word about it, for what
    cannot be used: `openvino`, which labelloop's other engines know and torch does not, and a GPU that is not there."""
    device = str(text).replace("gpu", "cuda")
    kind = device.partition(":")[0]
    if kind not in ("auto", "cuda", "openvino"):
        return device
    lacking = "it is not for OpenMMLab's models" if kind == "openvino" else without_gpu()
    if not lacking:
        return "cuda" if kind == "auto" else device
    if kind != "auto":
        print(f"the device {text} cannot be used, {lacking}: the CPU is used", flush=True)
    return "cpu"


def without_gpu() -> str:
    """Why nothing can be computed on a GPU here; "" where it can."""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no GPU"
    from mmcv.ops import get_compiling_cuda_version

    if get_compiling_cuda_version() == "not available":
        return "mmcv was built without CUDA (labelloop runtimes check openmmlab says what to do)"
    return ""


def forget_initial_weights(part: Any) -> None:
    """Backbones name weights to download and begin with."""
    if isinstance(part, dict):
        if isinstance(part.get("init_cfg"), dict) and "checkpoint" in part["init_cfg"]:
            part["init_cfg"] = None
        for value in part.values():
            forget_initial_weights(value)


def read_picture(path: Any) -> Any:
    """Upright, as EXIF says. Raises ValueError."""
    import cv2
    import numpy as np

    with open(path, "rb") as file:
        picture = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
    if picture is None:
        raise ValueError(f"{os.path.basename(str(path))} is no picture")
    return picture


def read_task(backend: Any, task: Any, field: str) -> Any:
    """The picture of a task: from the backend's `image_dir` if it is there, else as Label Studio's address says. Raises
    ValueError for a task without one."""
    url = task["data"].get(field) or task["data"].get("$undefined$")  # imported before the project had a label config
    if not url:
        raise ValueError(f"task {task.get('id')} has no picture in {field!r}")
    shared = os.path.join(backend.image_dir, os.path.basename(url)) if backend.image_dir else ""
    if os.path.exists(shared):
        return read_picture(shared)
    about = inspect.signature(backend.get_local_path).parameters  # the package's first generation has no task_id
    return read_picture(backend.get_local_path(url, **({"task_id": task.get("id")} if "task_id" in about else {})))


def define_operators() -> None:
    """torchvision registers gradients for its operators, which it does not bring where it is for CUDA and torch for the
    CPU: they must be known to torch before it is imported. None of them is run: mmcv has its own."""
    if KEPT or brings_operators():
        return
    import torch

    rois = "Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width"
    numbers = ["stride_h", "stride_w", "pad_h", "pad_w", "dil_h", "dil_w", "groups", "offset_groups"]
    signatures = (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        f"roi_align({rois}, int sampling_ratio, bool aligned) -> Tensor",
        f"roi_pool({rois}) -> (Tensor, Tensor)",
        f"ps_roi_align({rois}, int sampling_ratio) -> (Tensor, Tensor)",
        f"ps_roi_pool({rois}) -> (Tensor, Tensor)",
        "deform_conv2d(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, "
        + ", ".join(f"int {name}" for name in numbers)
        + ", bool use_mask) -> Tensor",
    )
    KEPT.append(torch.library.Library("torchvision", "FRAGMENT"))  # type: ignore[no-untyped-call]
    with contextlib.suppress(RuntimeError):  # a torchvision that brings them
        for signature in signatures:
            KEPT[0].define(signature)


def brings_operators() -> bool:
    """Whether torchvision's operators fit this torch. They are loaded then: what we define before that it would define
    again, and that ends the process."""
    import torch

    found = importlib.util.find_spec("torchvision")
    folders = list(found.submodule_search_locations or ()) if found is not None else []
    libraries = [path for folder in folders for path in glob.glob(os.path.join(glob.escape(folder), "_C*.so"))]
    try:
        for path in libraries:
            torch.ops.load_library(path)  # type: ignore[no-untyped-call]
    except OSError:  # what it is linked with is not here
        return False
    return bool(libraries)

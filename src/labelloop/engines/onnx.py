"""ONNX files: what they say about themselves, and running them with ONNX Runtime on a CPU or an NVIDIA GPU."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from labelloop.core.errors import ModelError, ModelFailed
from labelloop.engines.base import EngineOptions
from labelloop.engines.onnx_file import check_external_data, scan
from labelloop.engines.onnx_rewrite import faster_copy

if TYPE_CHECKING:
    import onnxruntime as ort

log = structlog.get_logger(__name__)

Array = NDArray[Any]
MAX_BATCH_GPU = 16
"""Not measured: no GPU was at hand. 16 pictures of 640 x 640 are 79 MB of input."""
MAX_BATCH_CPU = 1
"""Also for files with a free batch: deimv2_atto, two callers on two cores, does 63 images/s one by one, 46 in pairs, 37
in fours and 32 in eights (medians of three runs): there is no parallelism left to win, only cache to lose."""

_DTYPES = {"float": "float32", "double": "float64"}
_ERRORS_ONLY = 3


class Tensor(msgspec.Struct, frozen=True):
    """One input or output. A dimension is a number, or a name (or None) when it is free. `dtype` is numpy's name."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: str

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype in ("float32", "float16", "float64")

    def fixed(self, axis: int) -> int | None:
        """The size along `axis`, None when it is free."""
        size = self.shape[axis]
        return size if isinstance(size, int) and size > 0 else None

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} [{', '.join('?' if size is None else str(size) for size in self.shape)}]"


class Signature(msgspec.Struct, frozen=True):
    """What a file says about itself. `producers`: name of a tensor -> operator that makes it."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    metadata: Mapping[str, str] = {}
    producers: Mapping[str, str] = {}

    def __str__(self) -> str:
        return f"inputs: {'; '.join(map(str, self.inputs))}. Outputs: {'; '.join(map(str, self.outputs))}."


class Model(Protocol):
    """What runs tensors: a file that is open here, or a model on another machine (`remote`)."""

    @property
    def signature(self) -> Signature: ...
    @property
    def device(self) -> str:
        """Where it runs: "cpu", "cuda:N", "openvino" (with a device behind it) or "remote"."""

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order of the signature. Raises ModelFailed."""


class OnnxModel:
    """An open file. `run` may be called from several threads at a time; `device` is where it really runs.

    One session serves all threads, each caller on one core: measured with two callers on two cores, one shared
    session does 96 YOLOX-nano images/s, two sessions 100 (same within noise, twice the memory), and one session
    with two threads of its own 54.
    """

    def __init__(self, path: Path, *, device: str = "cpu", optimise: bool = True) -> None:
        """Raises ModelError when the file cannot be read, or wants to read files outside its folder."""
        contents = scan(path)
        check_external_data(path, contents.external)
        with faster_copy(path) if optimise and not contents.external else nullcontext(path) as file:
            self._session, self.device = _open(file, device, name=path.name, optimise=optimise)
        meta = self._session.get_modelmeta()
        self.signature = Signature(
            inputs=tuple(_tensor(node) for node in self._session.get_inputs()),
            outputs=tuple(_tensor(node) for node in self._session.get_outputs()),
            metadata=dict(meta.custom_metadata_map),
            producers=contents.producers,
        )

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order of the signature. Raises ModelFailed."""
        try:
            return list(self._session.run(None, dict(feeds)))
        except Exception as error:  # ONNX Runtime's exception classes share no public base
            raise ModelFailed(f"The model raised: {error}") from error


def open_model(path: Path, *, device: str, threads: int) -> Model:
    """The file, opened by what `device` names: OpenVINO where it begins with "openvino" and is installed, else ONNX
    Runtime. Raises ModelError."""
    if not device.startswith("openvino"):
        return OnnxModel(path, device=device)
    if find_spec("openvino") is None:
        log.warning(
            "openvino-missing", wanted=device, using="cpu", hint="Install it: pip install 'labelloop[openvino]'."
        )
        return OnnxModel(path, device="cpu")
    from labelloop.engines.openvino import OpenVinoModel

    try:
        return OpenVinoModel(path, device=device, threads=threads)
    except ModelError as error:
        if device != "openvino":  # a graphics card that was asked for by name
            raise
        log.warning("openvino-unable", model=path.name, using="cpu", reason=str(error))
        return OnnxModel(path, device="cpu")


class Capacity(NamedTuple):
    """What a device takes at a time: see `engines/base.Engine`."""

    parallel: int
    urgent: int
    max_batch: int


def capacity_of(model: Model, options: EngineOptions, *, fixed_batch: int | None) -> Capacity:
    """`fixed_batch` is the batch size that the file is fixed to, None when it is free."""
    on_gpu = model.device not in ("cpu", "openvino")
    parallel = 1 if on_gpu else max(1, options.threads)
    # a GPU does one after the other, whoever asks, and OpenVINO's threads are its own
    urgent = parallel if model.device == "cpu" else 0
    return Capacity(parallel, urgent, fixed_batch or options.max_batch or (MAX_BATCH_GPU if on_gpu else MAX_BATCH_CPU))


def read_signature(path: Path) -> Signature:
    """Inputs, outputs and metadata of the file, without optimising it or touching a GPU. Raises ModelError."""
    return OnnxModel(path, device="cpu", optimise=False).signature


def _tensor(node: ort.NodeArg) -> Tensor:
    kind = re.sub(r"tensor\((\w+)\)", r"\1", node.type)
    return Tensor(name=node.name, shape=tuple(node.shape), dtype=_DTYPES.get(kind, kind))


def _open(path: Path, device: str, *, name: str, optimise: bool) -> tuple[ort.InferenceSession, str]:
    import onnxruntime as ort  # here: 35 ms and tens of megabytes that a process without models need not pay

    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERRORS_ONLY
    levels = ort.GraphOptimizationLevel
    # everything on: 50 YOLOX-nano images/s on one core against 29 at "extended" and 24 without
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    providers = _providers(device, ort.get_available_providers())
    try:
        session = ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's exception classes share no public base
        raise ModelError(
            f"ONNX Runtime {ort.__version__} cannot load {name}: {error}",
            hint="Export it again, with an older opset if the message speaks of one.",
        ) from error
    used = _device(session)
    if len(providers) > 1 and used == "cpu":
        log.warning(
            "gpu-unusable",
            model=name,
            wanted=device,
            hint="ONNX Runtime could not start CUDA; see its message above.",
        )
    return session, used


def _providers(device: str, available: list[str]) -> list[Any]:
    """ONNX Runtime providers for `device`, the CPU always last. A GPU that was asked for and is missing warns."""
    if device == "cpu":
        return ["CPUExecutionProvider"]
    if "CUDAExecutionProvider" in available:
        number = int(device.partition(":")[2] or 0)
        return [("CUDAExecutionProvider", {"device_id": number}), "CPUExecutionProvider"]
    if device != "auto":
        log.warning(
            "gpu-missing",
            wanted=device,
            using="cpu",
            hint="This ONNX Runtime has no CUDA: pip install 'labelloop[cuda]'.",
        )
    return ["CPUExecutionProvider"]


def _device(session: ort.InferenceSession) -> str:
    if "CUDAExecutionProvider" not in session.get_providers():
        return "cpu"
    return f"cuda:{session.get_provider_options()['CUDAExecutionProvider'].get('device_id', '0')}"


def as_float32(array: Array) -> NDArray[np.float32]:
    """The same array, copied only when its type differs (half precision exports)."""
    return array.astype(np.float32, copy=False)

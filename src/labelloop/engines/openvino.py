"""Running ONNX files with OpenVINO (https://docs.openvino.ai), on Intel's CPUs, graphics and NPUs.

Worth it where OpenVINO has something that ONNX Runtime's CPU kernels have not: bfloat16 (AVX512-BF16, AMX), graphics,
an NPU. On a CPU without bfloat16 it was the slower one: docs/engines.md has figures.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.core.errors import ModelError, ModelFailed
from labelloop.engines.onnx import Array, read_signature

PREFIX = "openvino"


class OpenVinoModel:
    """An open file (see `engines/onnx.Model`). `run` may be called from `threads` threads at a time, each with one core
    of a CPU; more of them wait."""

    def __init__(self, path: Path, *, device: str, threads: int) -> None:
        """`device` is "openvino" for the CPU, or "openvino:gpu", "openvino:npu" … as OpenVINO calls them. Raises
        ModelError when the file cannot be read or the device is not there."""
        self.signature = read_signature(path)
        self.device = PREFIX if _name(device) == "CPU" else device
        self._compiled = _compile(path, device, threads)
        self._requests = threading.local()

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order of the signature. Raises ModelFailed."""
        request = getattr(self._requests, "own", None)
        if request is None:  # an infer request holds its outputs, so threads cannot share one
            request = self._requests.own = self._compiled.create_infer_request()
        try:
            found = request.infer(dict(feeds))
            # copied: the next call of this thread writes into the same memory
            return [np.array(found[index]) for index in range(len(self.signature.outputs))]
        except Exception as error:  # OpenVINO's exception classes share no public base
            raise ModelFailed(f"The model raised: {error}") from error


def _name(device: str) -> str:
    """What OpenVINO calls it."""
    return device.partition(":")[2].upper() or "CPU"


def _imported() -> Any:
    """The package, without the part of its conversion tools that asks a server on the internet as soon as it is
    imported, and leaves a mark in the user's home. Nothing is missing without it."""
    keep_out = not {"openvino", "openvino_telemetry"} & sys.modules.keys()
    if keep_out:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
    try:
        import openvino  # here: 0.3 s and tens of megabytes that nobody else need pay
    finally:
        if keep_out:
            del sys.modules["openvino_telemetry"]
    return openvino


def _compile(path: Path, device: str, threads: int) -> Any:
    openvino = _imported()
    name = _name(device)
    told: dict[str, Any] = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": threads} if name == "CPU" else {}
    try:
        return openvino.Core().compile_model(path, name, told)
    except Exception as error:  # OpenVINO's exception classes share no public base
        there = ", ".join(openvino.Core().available_devices) or "none"
        raise ModelError(
            f"OpenVINO {openvino.__version__} cannot load {path.name} on {name}: {error}",
            hint=f"Its devices here: {there}. Without it: --device cpu.",
        ) from error

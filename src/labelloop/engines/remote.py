"""Models that run elsewhere: Triton, KServe and others that speak the Open Inference Protocol V2 over HTTP.

Pictures are prepared and answers decoded here, by the engines for detectors and classifiers; what travels is tensors. A
server says what a model takes and gives but not which operators it ends in, so a family that is recognised by those
(YOLOX) must be named in the card. The protocol: https://github.com/kserve/open-inference-protocol; tensors travel as
bytes where the server has Triton's extension for that (a picture of 416 x 416 is 2 MB then, and 11 MB as JSON).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from labelloop.core.cards import ModelCard
from labelloop.core.decoding import from_json
from labelloop.core.errors import ModelError, ModelFailed, ModelUnrecognised
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region, Size
from labelloop.engines.base import EngineOptions, Wants
from labelloop.engines.classify import FAMILIES, ClassifyEngine
from labelloop.engines.detect import DetectEngine
from labelloop.engines.onnx import Array, Signature, Tensor

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 30.0
PARALLEL = 4
"""Requests on their way at a time: a server batches what comes together, and the network has a share of the time."""
BINARY = "binary_tensor_data"
HEADER_LENGTH = "Inference-Header-Content-Length"
DATATYPES = {
    "BOOL": "bool", "UINT8": "uint8", "UINT16": "uint16", "UINT32": "uint32", "UINT64": "uint64", "INT8": "int8",
    "INT16": "int16", "INT32": "int32", "INT64": "int64", "FP16": "float16", "FP32": "float32", "FP64": "float64",
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


class RemoteModel:
    """One model on a server; `run` may be called from several threads at a time. `url` ends in the model's name, or in
    `/versions/N`: http://triton:8000/v2/models/yolox."""

    device = "remote"

    def __init__(self, url: str) -> None:
        """Asks the server what the model takes and gives. Raises ModelError when it cannot be asked."""
        import httpx

        root, found, _ = url.rstrip("/").partition("/v2/models/")
        if not found or not url.startswith(("http://", "https://")):
            raise ModelError(
                f"{url!r} is no address of a model.", hint="Give for instance http://triton:8000/v2/models/NAME."
            )
        self.url = url.rstrip("/")
        self._http = httpx.Client(timeout=TIMEOUT_S, trust_env=False, transport=httpx.HTTPTransport(retries=1))
        server = self._ask(f"{root}/v2")
        self._binary = BINARY in (server.get("extensions") or ())
        self.signature = _signature(self._ask(self.url), self.url)

    def run(self, feeds: Mapping[str, Array]) -> list[Array]:
        """Outputs in the order of the signature. Raises ModelFailed."""
        import httpx

        head, body = _request(feeds, self.signature.outputs, binary=self._binary)
        try:
            answer = self._http.post(f"{self.url}/infer", content=head + body, headers=self._headers(head))
        except httpx.HTTPError as error:
            raise ModelFailed(f"{self.url} cannot be asked: {error or type(error).__name__}.") from error
        if answer.status_code != 200:
            raise ModelFailed(f"{self.url} answers {answer.status_code}: {_reason(answer)}")
        try:
            return _outputs(answer.content, answer.headers.get(HEADER_LENGTH), self.signature.outputs)
        except (ValueError, KeyError, TypeError, msgspec.MsgspecError) as error:
            raise ModelFailed(f"The answer of {self.url} cannot be read: {error}.") from error

    def _headers(self, head: bytes) -> dict[str, str]:
        if not self._binary:
            return {"Content-Type": "application/json"}
        return {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}

    def _ask(self, url: str) -> dict[str, Any]:
        import httpx

        hint = "Is the server up, and the model loaded? GET it: it must answer a JSON object."
        try:
            answer = self._http.get(url)
        except httpx.HTTPError as error:
            raise ModelError(f"{url} cannot be reached: {error or type(error).__name__}.", hint=hint) from error
        if answer.status_code != 200:
            raise ModelError(f"{url} answers {answer.status_code}: {_reason(answer)}", hint=hint)
        try:
            return from_json(answer.content, dict[str, Any])
        except msgspec.MsgspecError as error:
            raise ModelError(f"{url} answers no JSON object: {error}.", hint=hint) from error


class RemoteEngine:
    """A detector or classifier that runs on another machine; `card.remote` is its address."""

    needs_file: ClassVar[bool] = False
    wants: Wants = "picture"
    parallel = PARALLEL

    @staticmethod
    def describe(path: Path | None, card: ModelCard) -> ModelCard:
        """Complete `card` from what the server says. Raises ModelError when it cannot be asked, ModelUnrecognised when
        no family reads its outputs."""
        del path
        completed = _inner(card, EngineOptions()).card
        return msgspec.structs.replace(completed, engine="remote")

    def __init__(self, path: Path | None, card: ModelCard, options: EngineOptions) -> None:
        del path
        self._engine = _inner(card, options)
        self.classes = self._engine.classes
        self.max_batch = self._engine.max_batch
        self.input_size: Size | None = self._engine.input_size

    def prepare(self, picture: Picture) -> Any:
        return self._engine.prepare(picture)

    def predict(self, batch: Sequence[Any]) -> list[tuple[Region, ...]]:
        """As the engine for files does. Raises ModelFailed when the server is gone."""
        return self._engine.predict(batch)


def _inner(card: ModelCard, options: EngineOptions) -> DetectEngine | ClassifyEngine:
    """The engine that prepares and decodes, over the model on the server."""
    model = RemoteModel(card.remote)
    if card.task == "classify" or card.family in FAMILIES:
        return ClassifyEngine(None, card, options, model=model)
    try:
        return DetectEngine(None, card, options, model=model)
    except ModelUnrecognised as error:
        try:
            return ClassifyEngine(None, card, options, model=model)
        except ModelUnrecognised:
            raise error from None  # what the detectors say is what people need to read


def _signature(metadata: Mapping[str, Any], url: str) -> Signature:
    try:
        inputs, outputs = (tuple(_tensor(one) for one in metadata[side]) for side in ("inputs", "outputs"))
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(f"{url} does not say what it takes and gives: {error!r}.") from error
    return Signature(inputs=inputs, outputs=outputs)


def _tensor(said: Mapping[str, Any]) -> Tensor:
    shape = tuple(int(size) if int(size) >= 0 else None for size in said["shape"])
    return Tensor(name=str(said["name"]), shape=shape, dtype=DATATYPES.get(said["datatype"], str(said["datatype"])))


def _request(feeds: Mapping[str, Array], outputs: Sequence[Tensor], *, binary: bool) -> tuple[bytes, bytes]:
    """The JSON part and the tensors behind it."""
    arrays = {name: np.ascontiguousarray(array) for name, array in feeds.items()}
    inputs: list[dict[str, Any]] = []
    for name, array in arrays.items():
        one: dict[str, Any] = {"name": name, "shape": array.shape, "datatype": _NAMES[str(array.dtype)]}
        one |= {"parameters": {"binary_data_size": array.nbytes}} if binary else {"data": array.ravel().tolist()}
        inputs.append(one)
    wanted = [{"name": tensor.name} | ({"parameters": {"binary_data": True}} if binary else {}) for tensor in outputs]
    head = msgspec.json.encode({"inputs": inputs, "outputs": wanted})
    return head, b"".join(array.tobytes() for array in arrays.values()) if binary else b""


def _outputs(content: bytes, head_length: str | None, wanted: Sequence[Tensor]) -> list[Array]:
    end = len(content) if head_length is None else int(head_length)
    said: list[dict[str, Any]] = msgspec.json.decode(content[:end])["outputs"]
    found, start = dict[str, Array](), end
    for one in said:
        size = (one.get("parameters") or {}).get("binary_data_size")
        dtype = np.dtype(DATATYPES[one["datatype"]])
        values: NDArray[Any]
        if size is None:
            values = np.array(one["data"], dtype)
        else:
            values = np.frombuffer(content[start : start + size], dtype)
            start += size
        found[one["name"]] = values.reshape(one["shape"])
    return [found[tensor.name] for tensor in wanted]


def _reason(answer: httpx.Response) -> str:
    """What the server says went wrong, or the beginning of what it sent."""
    try:
        return str(answer.json()["error"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text[:200]

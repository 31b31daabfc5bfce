"""A small server for the Open Inference Protocol V2, as Triton answers it: real ONNX files, run for real."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np

from labelloop.engines.onnx import OnnxModel, Tensor

NAMES = {"float32": "FP32", "float16": "FP16", "float64": "FP64", "int64": "INT64", "int32": "INT32", "uint8": "UINT8"}
DTYPES = {name: dtype for dtype, name in NAMES.items()}


@contextmanager
def v2_server(models: Mapping[str, Path], *, binary: bool = True) -> Iterator[tuple[str, list[str]]]:
    """Address and what was asked for. Without `binary` tensors travel as JSON only, as with other servers than Triton."""
    loaded = {name: OnnxModel(path) for name, path in models.items()}
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None: ...

        def do_GET(self) -> None:
            name = self.path.removeprefix("/v2/models/").partition("/")[0]
            if self.path == "/v2":
                extensions = ["classification", *(["binary_tensor_data"] if binary else [])]
                self.answer({"name": "small", "version": "1", "extensions": extensions})
            elif name in loaded:
                signature = loaded[name].signature
                sides = {"inputs": signature.inputs, "outputs": signature.outputs}
                told = {side: [described(tensor) for tensor in tensors] for side, tensors in sides.items()}
                self.answer({"name": name, "versions": ["1"], "platform": "onnxruntime_onnx"} | told)
            else:
                self.answer({"error": f"Request for unknown model: '{name}' is not found"}, status=404)

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            length = self.headers.get("Inference-Header-Content-Length")
            asked.append("binary" if length else "json")
            name = self.path.removeprefix("/v2/models/").partition("/")[0]
            try:
                self.infer(loaded[name], body, length)
            except Exception as error:
                self.answer({"error": str(error)}, status=400)

        def infer(self, model: OnnxModel, body: bytes, length: str | None) -> None:
            end = int(length) if length else len(body)
            said = json.loads(body[:end])
            feeds, start = {}, end
            for one in said["inputs"]:
                dtype, size = np.dtype(DTYPES[one["datatype"]]), one.get("parameters", {}).get("binary_data_size")
                values = (
                    np.array(one["data"], dtype) if size is None else np.frombuffer(body[start : start + size], dtype)
                )
                feeds[one["name"]], start = values.reshape(one["shape"]), start + (size or 0)
            outputs, tail = [], b""
            # in another order than the model's own: a client must go by the names
            found = dict(zip((t.name for t in model.signature.outputs), model.run(feeds), strict=True))
            for wanted in reversed(said["outputs"]):
                array = np.ascontiguousarray(found[wanted["name"]])
                one: dict[str, Any] = {
                    "name": wanted["name"],
                    "shape": array.shape,
                    "datatype": NAMES[str(array.dtype)],
                }
                if wanted.get("parameters", {}).get("binary_data"):
                    one["parameters"] = {"binary_data_size": array.nbytes}
                    tail += array.tobytes()
                else:
                    one["data"] = array.ravel().tolist()
                outputs.append(one)
            self.answer({"outputs": outputs}, tail=tail)

        def answer(self, content: Any, *, status: int = 200, tail: bytes = b"") -> None:
            head = json.dumps(content).encode()
            self.send_response(status)
            if tail:
                self.send_header("Inference-Header-Content-Length", str(len(head)))
            self.send_header("Content-Length", str(len(head) + len(tail)))
            self.end_headers()
            self.wfile.write(head + tail)

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", asked
        finally:
            server.shutdown()


def described(tensor: Tensor) -> dict[str, Any]:
    shape = [size if isinstance(size, int) else -1 for size in tensor.shape]
    return {"name": tensor.name, "datatype": NAMES[tensor.dtype], "shape": shape}

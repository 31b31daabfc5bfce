"""The far side of `engines/isolated`: hosts one object in an interpreter of the user's choice.

    python host.py DESCRIPTOR ADAPTER.py

DESCRIPTOR is our end of a socket pair. Both sides send frames: the lengths of header and blob (unsigned, four bytes
each, big-endian), the header as JSON, the blob. The parent calls `{"id": 1, "call": NAME, "with": {…}}` and gets
`{"id": 1, "result": …}` or `{"id": 1, "error": {…}}`; we ask it with `{"ask": 1, "call": …}` and are answered
`{"ask": 1, "result": …}`. Bytes and arrays travel in the blob: see `pack`.

ADAPTER.py defines `host(ask)`, which returns the object whose methods are called. Calls run in the main thread, one at
a time, because models may want it (signal handlers, some GUIs); those with a `lane` run in a thread of that name.

The socket's end means that the parent is gone, however it went: then this process and all that it started end too.
"""

from __future__ import annotations

import importlib.util
import json
import os
import queue
import signal
import socket
import struct
import sys
import threading
import traceback
from typing import Any, Callable

LENGTHS = struct.Struct(">II")

MARK = "$blob"


def pack(value: Any) -> tuple[bytes, bytes]:
    """Header and blob of a value. Bytes become {"$blob": [start, length]}, arrays {"$blob": [start, length, dtype,
    shape]}; what knows how to become plain (NumPy's numbers, pydantic's models) does."""
    blobs: list[bytes] = []
    size = 0

    def keep(data: bytes, *traits: Any) -> dict[str, Any]:
        nonlocal size
        blobs.append(data)
        size += len(data)
        return {MARK: [size - len(data), len(data), *traits]}

    def plain(value: Any) -> Any:
        if isinstance(value, (bytes, bytearray, memoryview)):
            return keep(bytes(value))
        if hasattr(value, "tobytes") and hasattr(value, "dtype") and value.shape:
            return keep(value.tobytes(), str(value.dtype.str), list(value.shape))
        for method in ("model_dump", "dict", "tolist", "item"):
            if callable(getattr(value, method, None)):
                return getattr(value, method)()
        if isinstance(value, (set, frozenset, tuple)):
            return list(value)
        if hasattr(value, "__fspath__"):
            return os.fspath(value)
        raise TypeError(f"a {type(value).__name__} cannot be written as JSON")

    return json.dumps(value, default=plain, check_circular=True).encode("utf-8", "surrogatepass"), b"".join(blobs)


def unpack(header: bytes, blob: bytes) -> Any:
    """The value that `pack` made these of. Arrays are NumPy's where there is a NumPy, else their bytes."""
    memory = memoryview(blob)

    def place(value: dict[str, Any]) -> Any:
        if MARK not in value:
            return value
        start, length, *traits = value[MARK]
        data = memory[start : start + length]
        return _array(data, *traits) if traits else bytes(data)

    return json.loads(header.decode("utf-8", "surrogatepass"), object_hook=place)


def _array(data: memoryview, dtype: str, shape: list[int]) -> Any:
    try:
        import numpy
    except ImportError:
        return bytes(data)
    return numpy.frombuffer(data, dtype).reshape(shape)


def send(line: socket.socket, value: Any) -> None:
    header, blob = pack(value)
    line.sendall(LENGTHS.pack(len(header), len(blob)) + header)
    if blob:
        line.sendall(blob)


def receive(line: socket.socket) -> Any:
    """The next value; None at the end of the line."""
    lengths = _exactly(line, LENGTHS.size)
    if lengths is None:
        return None
    header_size, blob_size = LENGTHS.unpack(lengths)
    header, blob = _exactly(line, header_size), _exactly(line, blob_size)
    return None if header is None or blob is None else unpack(header, blob)


def _exactly(line: socket.socket, size: int) -> bytes | None:
    data = bytearray(size)
    view, filled = memoryview(data), 0
    while filled < size:
        count = line.recv_into(view[filled:])
        if not count:
            return None
        filled += count
    return bytes(data)


class AskFailed(Exception):
    """The parent could not do what we asked for; its message says why."""


class Line:
    """Our end: what came in for the main thread, and questions of ours that wait for an answer."""

    def __init__(self, line: socket.socket) -> None:
        self._line = line
        self._sending = threading.Lock()
        self._asked: dict[int, Any] = {}
        self._number = 0
        self.calls: queue.Queue[Any] = queue.Queue()

    def ask(self, call: str, **arguments: Any) -> Any:
        """What the parent answers; blocks the calling thread. Raises AskFailed."""
        answered = threading.Event()
        with self._sending:
            self._number += 1
            number = self._number
            self._asked[number] = [answered, None]
            send(self._line, {"ask": number, "call": call, "with": arguments})
        answered.wait()
        answer = self._asked.pop(number)[1]
        if "error" in answer:
            raise AskFailed(answer["error"]["message"])
        return answer["result"]

    def answer(self, number: int, **outcome: Any) -> None:
        """Raises TypeError or ValueError for a result that cannot be sent; nothing was sent then."""
        with self._sending:
            send(self._line, {"id": number, **outcome})

    def read(self) -> None:
        """Sort what comes in, until the line ends."""
        try:
            while True:
                message = receive(self._line)
                if message is None:
                    return
                if "ask" in message:
                    waiting = self._asked[message["ask"]]
                    waiting[1] = message
                    waiting[0].set()
                else:
                    self.calls.put(message)
        except OSError:
            return  # the parent is gone


def _load(path: str, name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _run(line: Line, hosted: Any, message: dict[str, Any]) -> None:
    number = message["id"]
    try:
        result = getattr(hosted, message["call"])(**message["with"])
    except BaseException as error:  # SystemExit of a model's `sys.exit` is a failure of this call like any other
        _answer_error(line, number, error)
        return
    try:
        line.answer(number, result=result)
    except (TypeError, ValueError, RecursionError) as error:  # it cannot be written as JSON, and nothing was sent
        _answer_error(line, number, error)


def _answer_error(line: Line, number: int, error: BaseException) -> None:
    """Tell what happened, and where in the user's own files: the last place that is not a library's."""
    traceback.print_exception(type(error), error, error.__traceback__)
    sys.stderr.flush()
    ours = os.path.dirname(os.path.abspath(__file__))
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    own = [f for f in frames if "site-packages" not in f.filename and "lib/python" not in f.filename] or frames
    where = f"{own[-1].filename}:{own[-1].lineno}" if own else ""
    line.answer(number, error={"kind": type(error).__name__, "message": str(error), "where": where})


def _end_group(*_: Any) -> None:
    """SIGKILL for us and all that the model started."""
    if os.getpgrp() == os.getpid():
        os.killpg(0, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)


def main(descriptor: int, adapter: str) -> None:
    """Serve until the line ends."""
    sys.path.pop(0)  # this script's own folder, which the models must not import from
    os.set_inheritable(descriptor, False)  # or what the model starts would keep the line open after our end
    signal.signal(signal.SIGTERM, _end_group)
    line = Line(socket.socket(fileno=descriptor))

    def read() -> None:
        line.read()
        _end_group()

    threading.Thread(target=read, name="line", daemon=True).start()
    opener: Callable[[Callable[..., Any]], Any] = _load(adapter, "labelloop_adapter").host
    hosted = opener(line.ask)
    lanes: dict[str, queue.Queue[Any]] = {}
    while True:
        message = line.calls.get()
        lane = message.get("lane")
        if not lane:
            _run(line, hosted, message)
            continue
        if lane not in lanes:
            lanes[lane] = queue.Queue()
            threading.Thread(target=_serve, args=(line, hosted, lanes[lane]), name=lane, daemon=True).start()
        lanes[lane].put(message)


def _serve(line: Line, hosted: Any, calls: Any) -> None:
    while True:
        _run(line, hosted, calls.get())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])

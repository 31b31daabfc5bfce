"""Look into an ONNX file without running it: which operators it has, and which other files it wants to read.

An uploaded model is a stranger's file. ONNX may keep weights in other files ("external data") and names them by
path, so a crafted model could pull any file of this machine into its weights. ONNX Runtime opens those files while
it loads; we must look before. Reading the few protobuf fields needed costs milliseconds and no `onnx` package.
Format: https://protobuf.dev/programming-guides/encoding/ and onnx.proto (field numbers below).
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import msgspec

from labelloop.core.errors import ModelError

# message -> {field number: message inside}; every way from a model to a tensor, subgraphs and functions included
CHILDREN: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "GraphProto": {1: "NodeProto", 5: "TensorProto", 15: "SparseTensorProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: "TensorProto",
        6: "GraphProto",
        10: "TensorProto",
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: "TensorProto", 2: "TensorProto"},
    "TensorProto": {13: "StringStringEntryProto"},
    "StringStringEntryProto": {},
}
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE = 1, 2, 4
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_GRAPH = 7
_INITIALIZER, _INPUT = 5, 11
_TENSOR_NAME, _VALUE_NAME = 8, 1
_IR_VERSION, _FREE_OF_INPUTS = 1, 4
"""Before version 4 of the format every weight had to be an input, and none of them was meant to be replaced."""
_LARGEST = 256 * 10**6
"""Larger files are left as they are: what is cut is held in memory."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class FileContents(msgspec.Struct, frozen=True):
    """`producers`: name of a tensor -> operator that makes it, seen through `Identity`. `external`: locations of
    external data, as written."""

    producers: dict[str, str]
    external: frozenset[str]


def scan(path: Path) -> FileContents:
    """Read the operators and the external-data locations of the ONNX file at `path`. Raises ModelError."""
    producers: dict[str, str] = {}
    copies: dict[str, str] = {}
    external: set[str] = set()
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            todo = [("ModelProto", 0, len(data))]  # a list, not recursion: nesting is the file's choice
            while todo:
                message, start, end = todo.pop()
                strings: dict[int, list[str]] = {}
                inside = CHILDREN[message]
                for field, _, begin, stop in _fields(data, start, end):
                    if field in inside:
                        todo.append((inside[field], begin, stop))
                    elif message in ("NodeProto", "StringStringEntryProto"):
                        strings.setdefault(field, []).append(data[begin:stop].decode(errors="replace"))
                if message == "NodeProto":
                    operator, made = strings.get(_NODE_OP_TYPE, ["?"])[-1], strings.get(_NODE_OUTPUT, [])
                    producers |= dict.fromkeys(made, operator)
                    if operator == "Identity" and made and strings.get(_NODE_INPUT):
                        copies[made[0]] = strings[_NODE_INPUT][0]
                elif message == "StringStringEntryProto" and strings.get(_ENTRY_KEY, [""])[-1] == "location":
                    external.add(strings.get(_ENTRY_VALUE, [""])[-1])
    except (OSError, ValueError, IndexError) as error:
        raise ModelError(
            f"{path.name} is not an ONNX file that can be read: {error}.", hint="Export it again."
        ) from error
    return FileContents(producers=producers | _through(copies, producers), external=frozenset(external))


def _through(copies: Mapping[str, str], producers: Mapping[str, str]) -> dict[str, str]:
    """What made the originals of tensors that are only copies; some exporters end every output in one."""
    found = {}
    for name, source in copies.items():
        seen = {name}
        while source in copies and source not in seen:  # a file may be crafted to go round in circles
            seen.add(source)
            source = copies[source]
        found[name] = producers.get(source, "Identity")
    return found


def check_external_data(path: Path, external: frozenset[str]) -> None:
    """Raise ModelError unless every external-data file lies, links followed, in the model's own folder."""
    folder = path.resolve().parent
    for location in sorted(external):
        target = (folder / location).resolve()
        if not location or not target.is_relative_to(folder):
            raise ModelError(
                f"{path.name} wants to read {location!r}, which is outside its own folder.",
                hint="Save the model as one file, or with its external data beside it.",
            )
        if not target.is_file():
            raise ModelError(
                f"{path.name} keeps weights in {location!r}, which is not there.",
                hint="Put that file beside the model, or save the model as one file.",
            )


@contextmanager
def lean_copy(path: Path) -> Iterator[Path]:
    """A file like the one at `path`, without those inputs of the graph that are weights too; `path` itself where there
    are none. For files without external data that `scan` could read.

    Exporters of old list all weights among the inputs. That makes them defaults that a caller may replace, so ONNX
    Runtime must not fold them: NanoDet-m took 30 to 36 ms of one core as it is, and 24 to 30 without them.
    """
    try:
        lean = _without_weights(path)
    except (ValueError, IndexError):  # whatever is wrong with it, ONNX Runtime has the better words
        lean = None
    if lean is None:
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="labelloop-") as folder:  # bytes would be kept by the session for good
        copy = Path(folder) / path.name
        copy.write_bytes(lean)
        del lean
        yield copy


def _without_weights(path: Path) -> bytes | None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if len(data) > _LARGEST or _ir_version(data) < _FREE_OF_INPUTS:
            return None
        graph = next((part for part in _fields(data, 0, len(data)) if part[0] == _GRAPH), None)
        parts = list(_fields(data, *graph[2:])) if graph else []
        tensors = [(begin, stop) for field, _, begin, stop in parts if field == _INITIALIZER]
        weights = {_name(data, begin, stop, _TENSOR_NAME) for begin, stop in tensors}
        inputs = [(head, begin, stop) for field, head, begin, stop in parts if field == _INPUT]
        surplus = [(head, stop) for head, begin, stop in inputs if _name(data, begin, stop, _VALUE_NAME) in weights]
        if graph is None or not surplus:
            return None
        _, head, position, end = graph
        kept = bytearray()
        for cut, stop in surplus:
            kept += data[position:cut]
            position = stop
        kept += data[position:end]
        return b"".join((data[:head], bytes([_GRAPH << 3 | _BYTES]), _length(len(kept)), kept, data[end:]))


def _ir_version(data: mmap.mmap) -> int:
    """Of the format; exporters write it first, and 0 stands for one that is not there."""
    return _varint(data, 1)[0] if data[0] == _IR_VERSION << 3 | _VARINT else 0


def _name(data: mmap.mmap, begin: int, stop: int, wanted: int) -> bytes:
    return next((data[start:end] for field, _, start, end in _fields(data, begin, stop) if field == wanted), b"")


def _length(size: int) -> bytes:
    """A number as protobuf writes it."""
    written = bytearray()
    while size > 0x7F:
        written.append(size & 0x7F | 0x80)
        size >>= 7
    written.append(size)
    return bytes(written)


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field number, where it begins, where its contents begin, stop) of every length-delimited field; the other wire
    types are stepped over."""
    while position < end:
        begin = position
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("it is cut off")
            yield tag >> 3, begin, position, position + length
            position += length
        elif wire == _VARINT:
            _, position = _varint(data, position)
        elif wire in (_FIXED32, _FIXED64):
            position += 4 if wire == _FIXED32 else 8
        else:
            raise ValueError("it is not in the ONNX (protobuf) format")


def _varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    byte = data[position]
    value, shift = byte & 0x7F, 7
    while byte & 0x80:
        position += 1
        byte = data[position]
        value |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise ValueError("it is not in the ONNX (protobuf) format")
    return value, position + 1

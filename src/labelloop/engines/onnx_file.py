"""Look into an ONNX file without running it: which operators it has, and which other files it wants to read.

An uploaded model is a stranger's file. ONNX may keep weights in other files ("external data") and names them by
path, so a crafted model could pull any file of this machine into its weights. ONNX Runtime opens those files while
it loads; we must look before. Reading the few protobuf fields needed costs milliseconds and no `onnx` package.
Format: https://protobuf.dev/programming-guides/encoding/ and onnx.proto (field numbers below).
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
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
_CHECKPOINT = (
    "It looks like a checkpoint of PyTorch. Export it to ONNX where it was trained, for instance with "
    "`yolo export model=FILE format=onnx`."
)
_OTHERS = (
    (b"PK\3\4", _CHECKPOINT),
    (b"\x80", _CHECKPOINT),  # a bare pickle
    (b"version https://git-lfs", "It is a pointer of Git LFS: run git lfs pull where it came from."),
    (b"<", "It looks like a web page: download the file itself."),
)
"""What people give instead, by its first bytes, and what to do then."""
_NODE_INPUT, _NODE_OUTPUT, _NODE_OP_TYPE = 1, 2, 4
_ENTRY_KEY, _ENTRY_VALUE = 1, 2
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class FileContents(msgspec.Struct, frozen=True):
    """`producers`: name of a tensor -> operator that makes it, seen through `Identity`. `external`: locations of
    external data, as written."""

    producers: dict[str, str]
    external: frozenset[str]


def _instead(path: Path) -> str:
    """The hint for a file that is something else. Its content is looked at, never loaded."""
    try:
        with path.open("rb") as file:
            begins = file.read(32)
    except OSError:
        return "Check the name, and whether you may read it."
    return next((hint for magic, hint in _OTHERS if begins.startswith(magic)), "Export it again.")


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
                for field, begin, stop in _fields(data, start, end):
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
        raise ModelError(f"{path.name} is not an ONNX file that can be read: {error}.", hint=_instead(path)) from error
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


def _fields(data: mmap.mmap, position: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, start, stop) of every length-delimited field; the other wire types are stepped over."""
    while position < end:
        tag, position = _varint(data, position)
        wire = tag & 7
        if wire == _BYTES:
            length, position = _varint(data, position)
            if position + length > end:
                raise ValueError("it is cut off")
            yield tag >> 3, position, position + length
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

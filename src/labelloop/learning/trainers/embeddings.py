"""Features of pictures; those that were computed before are kept, so that another training need not do it again.

Features belong to a graph and a picture. So their names are a digest over both, and what is kept of them is right for
whoever asks by that name, whichever project, version or run it was computed for.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime

from labelloop.core.cards import InputSpec
from labelloop.core.pictures import Picture
from labelloop.engines.classify import prepare_for
from labelloop.engines.detect.prepare import Normaliser
from labelloop.engines.onnx import OnnxModel
from labelloop.learning.detections import Floats
from labelloop.learning.manifest import Item
from labelloop.learning.trainers.base import Progress, Report, TrainerFailed, TrainRequest
from labelloop.media.cache import Cache
from labelloop.media.image import decode as decode_picture

MOST_BYTES = 500_000_000
"""60,000 pictures with the features of YOLOX-nano, mirror images included."""
FORMAT = 1
"""Part of every name: a release that prepares pictures differently must not find these."""


class Kind(msgspec.Struct, frozen=True):
    """One kind of features: `file` computes them for pictures prepared by `spec`; `digest` names what it computes."""

    file: str
    spec: InputSpec
    digest: str


class Embeddings:
    """Features [d] of pictures and of their mirror images, in `folder`; what was not used for longest goes first, and
    trouble with the disk is features that are not there. With None nothing is kept."""

    def __init__(self, folder: Path | None, *, digest: str) -> None:
        """`digest` names what computes them (`digest_of`)."""
        self._cache = Cache(folder, max_bytes=MOST_BYTES) if folder is not None else None
        self._digest = digest

    def find(self, picture: str) -> list[Floats]:
        """Features of the picture with this hash, and of its mirror image; of the first alone, or none, where that is
        all that was kept."""
        entry = self._cache.get(self._name(picture)) if self._cache is not None else None
        if entry is None:
            return []
        views, kept = entry.body[0], np.frombuffer(entry.body[1:], "<f4").astype(np.float64)
        return list(kept.reshape(views, -1))

    def keep(self, picture: str, views: Sequence[Floats]) -> None:
        """Keep what `find` will bring: features of the picture, and of its mirror image where they are known."""
        if self._cache is not None:
            self._cache.put(self._name(picture), bytes([len(views)]) + np.asarray(views, "<f4").tobytes())

    def _name(self, picture: str) -> str:
        return f"{FORMAT}/{self._digest}/{picture}"


def digest_of(model: onnx.ModelProto, spec: InputSpec, *, device: str) -> str:
    """A name for what `model` computes of pictures prepared by `spec` on such a device, by this ONNX Runtime: others
    round otherwise. The same for the same graph in another file: what was trained before holds the features that it was
    made of."""
    found = hashlib.sha256(msgspec.json.encode(spec, order="deterministic"))
    found.update(f"{device.partition(':')[0]} {onnxruntime.__version__}".encode())
    for part in sorted(_parts(model)):
        found.update(part)
    return found.hexdigest()


def _parts(model: onnx.ModelProto) -> Iterator[bytes]:
    """Of each operator and each weight a digest. Names of nodes, comments and their order change no answer."""
    yield repr(sorted((one.domain, one.version) for one in model.opset_import)).encode()
    for node in model.graph.node:
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        bare.ClearField("name")
        bare.ClearField("doc_string")
        yield hashlib.sha256(bare.SerializeToString(deterministic=True)).digest()
    for weight in model.graph.initializer:
        array = onnx.numpy_helper.to_array(weight)
        about = f"{weight.name} {array.dtype} {array.shape}".encode()
        yield hashlib.sha256(about + array.tobytes()).digest()


def embed(
    request: TrainRequest, items: Sequence[Item], kind: Kind, *, mirror_until: float | None, report: Report
) -> Iterator[tuple[int, Floats]]:
    """Number of the item and features [d] of each picture; then of their mirror images, unless `mirror_until` is None:
    of those that are known already, and of as many as there is time for until then (on `time.monotonic`)."""
    kept, look = Embeddings(request.cache, digest=kind.digest), _Look(request, kind)
    names = [item.sha256 or _sha256(request.data, item) for item in items]
    known = [kept.find(name) for name in names]
    sides = (0,) if mirror_until is None else (0, 1)
    views, computed = [(at, turned) for turned in sides for at in range(len(items))], 0
    for number, (at, turned) in enumerate(views):
        if len(known[at]) <= turned:
            if turned and mirror_until is not None and time.monotonic() > mirror_until:
                continue
            known[at].append(look(items[at], turned=bool(turned)))
            kept.keep(names[at], known[at])
            computed += 1
        report(Progress(step=number + 1, steps=len(views)))
        yield at, known[at][turned]
    if request.cache is not None:
        report(Progress(step=len(views), steps=len(views), message=f"{computed} of {len(views)} views were new"))


class _Look:
    """The features [d] of a picture, or of its mirror image; the file is opened for the first one that is not known."""

    def __init__(self, request: TrainRequest, kind: Kind) -> None:
        self._request = request
        self._kind = kind

    @cached_property
    def _model(self) -> OnnxModel:
        return OnnxModel(self._request.out / self._kind.file, device=self._request.device)

    def __call__(self, item: Item, *, turned: bool) -> Floats:
        picture = picture_of(self._request.data, item)
        if turned:
            picture = Picture(np.ascontiguousarray(picture.rgb[:, ::-1]), picture.size)
        image = self._model.signature.inputs[0]
        tensor = Normaliser(self._kind.spec, dtype=image.dtype).tensor([prepare_for(picture, self._kind.spec)], size=1)
        row: Floats = np.asarray(self._model.run({image.name: tensor})[0], np.float64)[0]
        if not np.isfinite(row).all():
            raise TrainerFailed(f"The features of {item.file_name} are not finite.", hint="Begin from another model.")
        return row


def _sha256(data: Path, item: Item) -> str:
    with (data / "images" / item.file_name).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def picture_of(data: Path, item: Item) -> Picture:
    return decode_picture((data / "images" / item.file_name).read_bytes(), max_pixels=2**31)

"""The trainer `classify`: what people chose for pictures -> features of an ONNX file and logistic regression.

The features are those of the model that serves the project, or of any the registry has, and stay as they are; ONNX
Runtime computes them once for each picture and its mirror image. The regression becomes the last layer of one file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import msgspec
import numpy as np

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.extras import not_installed
from labelloop.core.pictures import Picture
from labelloop.engines.base import EngineOptions
from labelloop.learning.choices import flags_of
from labelloop.learning.detections import Floats
from labelloop.learning.manifest import Item, decode
from labelloop.learning.trainers import logistic
from labelloop.learning.trainers.base import (
    Progress,
    Report,
    Trained,
    TrainerFailed,
    TrainRequest,
    read_options,
    replace_file,
)
from labelloop.learning.trainers.text import labels_in, metrics_of, nothing_to_tell_apart

MODEL, FROM_MODEL, PLAIN = "model.onnx", "features of the model.onnx", "colours and edges.onnx"
SCORES = "probabilities_of_the_labels"
PLAIN_FEATURES = "features: colours and edges"
NO_MODEL = (
    ", because no classifier or detector is known; one that is added before a project's first run is tried too: "
    "labelloop models add FILE.onnx"
)
WITNESSES = 8
LARGEST_GAP = 1e-3
LOOKING = 0.6
"""Of the budget: after it no more mirror images are looked at."""
_BEGINNINGS = ("classify", "detect")


class ClassifyOptions(msgspec.Struct, frozen=True):
    """`strengths`, `folds`, `enough` and `balanced` as in `logistic.Strengths`. `mirror` learns mirror images too; not
    for pictures of text. `features` are those of the "model" to begin from, "plain" colours and edges, or the "best" of
    both by cross-validation."""

    strengths: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    folds: int = 3
    enough: int = 30
    balanced: bool = False
    mirror: bool = True
    features: Literal["best", "model", "plain"] = "best"


class ClassifyTrainer:
    name: ClassVar[str] = "classify"

    def refuses(self, request: TrainRequest) -> str | None:
        if missing := not_installed("sklearn"):
            return missing
        manifest = decode((request.data / "manifest.json").read_bytes())
        if (manifest.learns, manifest.reads) != ("choices", "pictures"):
            return "It learns what people choose for pictures: <Choices> on <Image>."
        if request.base_card is not None and request.base_card.engine not in _BEGINNINGS:
            return f"It begins from an ONNX classifier or detector, and {request.base_card.name} is neither."
        return nothing_to_tell_apart(manifest)

    def train(self, request: TrainRequest, report: Report) -> Trained:
        """Raises ModelError (features are not found), TrainerFailed (the file does not say what was trained)."""
        from threadpoolctl import threadpool_limits

        began = time.monotonic()
        options = read_options(request.options, ClassifyOptions, trainer=self.name)
        manifest = decode((request.data / "manifest.json").read_bytes())
        items = manifest.on("train")
        labels = labels_in(items, request.labels)
        until = began + LOOKING * request.budget_s if options.mirror else 0.0
        with threadpool_limits(request.threads):
            tried = [
                _learn(request, items, labels, options, name, until=until, several=manifest.several, report=report)
                for name in _kinds(request, options)
            ]
        best = max(tried, key=lambda one: one.fitted.score or 0.0)  # the first, where they are alike
        path, card = request.out / MODEL, _card(request, labels, best.spec)
        replace_file(path, lambda target: _write(request.out / best.file, target, best.layer, labels))
        rows = best.rows[:WITNESSES]
        expected = logistic.probabilities(rows, best.layer.weights, best.layer.intercepts, several=manifest.several)
        metrics = metrics_of(best.fitted) | {
            "parity_score": _gap(path, card, request, items[:WITNESSES], expected),
            "features": float(best.rows.shape[1]),
            "seconds": time.monotonic() - began,
        }
        report(Progress(step=1, steps=1, seconds=metrics["seconds"], metrics=metrics, message=f"{best.file} is best"))
        for one in tried:
            (request.out / one.file).unlink()
        return Trained(path, card, metrics)


class _Layer(msgspec.Struct, frozen=True):
    """The last layer: `weights` [c, d] of features as they are, `intercepts` [c]."""

    weights: Floats
    intercepts: Floats
    several: bool


class _Learned(msgspec.Struct, frozen=True):
    """What came of one kind of features: `file` computes them for pictures prepared by `spec`; `rows` [n, d] are those
    of the pictures, in the order of the items and then of their mirror images."""

    file: str
    spec: InputSpec
    rows: Floats
    fitted: logistic.Fitted
    layer: _Layer


def _kinds(request: TrainRequest, options: ClassifyOptions) -> list[str]:
    """Names of the files of features to try."""
    if request.base is None or options.features == "plain":
        return [PLAIN]
    return [FROM_MODEL] if options.features == "model" else [FROM_MODEL, PLAIN]


def _learn(
    request: TrainRequest,
    items: Sequence[Item],
    labels: tuple[str, ...],
    options: ClassifyOptions,
    name: str,
    *,
    until: float,
    several: bool,
    report: Report,
) -> _Learned:
    spec = _write_features(request, report, name)
    seen = list(_seen(request, items, spec, name, mirror_until=until, report=report))
    rows = np.stack([row for _, row in seen])
    mean, deviation = rows.mean(axis=0), np.maximum(rows.std(axis=0), 1e-6)
    fitted = logistic.fit(
        (rows - mean) / deviation,
        flags_of([items[at].said for at, _ in seen], labels),
        logistic.Strengths(options.strengths, options.folds, options.enough, options.balanced),
        several=several,
        seed=request.seed,
        groups=np.array([at for at, _ in seen]),
        check=lambda: report(Progress(step=len(seen), steps=len(seen))),
    )
    weights = fitted.weights / deviation
    return _Learned(name, spec, rows, fitted, _Layer(weights, fitted.intercepts - weights @ mean, several))


def _write_features(request: TrainRequest, report: Report, name: str) -> InputSpec:
    """Write the file `name` that computes features, and say how it wants pictures."""
    import onnx

    from labelloop.learning.trainers import backbone

    card = request.base_card
    if request.base is None or card is None or name == PLAIN:
        report(Progress(step=0, message=PLAIN_FEATURES + (NO_MODEL if request.base is None else "")))
        onnx.save(backbone.plain(), request.out / name)
        return backbone.PLAIN_INPUT
    model = backbone.features_of(request.base, card)
    report(Progress(step=0, message=f"features: {card.name} ({card.family or card.engine})"))
    onnx.save(model, request.out / name)
    return card.input


def _seen(
    request: TrainRequest, items: Sequence[Item], spec: InputSpec, name: str, *, mirror_until: float, report: Report
) -> Iterator[tuple[int, Floats]]:
    """Number of the item and features [d] of each picture; then of their mirror images, as many as there is time for
    until `mirror_until` (on `time.monotonic`)."""
    from labelloop.engines.classify import prepare_for
    from labelloop.engines.detect.prepare import Normaliser
    from labelloop.engines.onnx import OnnxModel

    model = OnnxModel(request.out / name, device=request.device)
    image = model.signature.inputs[0]
    normaliser = Normaliser(spec, dtype=image.dtype)
    views = [(at, turned) for turned in (False, True) for at in range(len(items))]
    for number, (at, turned) in enumerate(views):
        if turned and time.monotonic() > mirror_until:
            return
        picture = _picture(request.data, items[at])
        if turned:
            picture = Picture(np.ascontiguousarray(picture.rgb[:, ::-1]), picture.size)
        tensor = normaliser.tensor([prepare_for(picture, spec)], size=1)
        row = np.asarray(model.run({image.name: tensor})[0], np.float64)[0]
        if not np.isfinite(row).all():
            raise TrainerFailed(
                f"The features of {items[at].file_name} are not finite.", hint="Begin from another model."
            )
        report(Progress(step=number + 1, steps=len(views)))
        yield at, row


def _picture(data: Path, item: Item) -> Picture:
    from labelloop.media.image import decode as decode_picture

    return decode_picture((data / "images" / item.file_name).read_bytes(), max_pixels=2**31)


def _write(features: Path, target: Path, layer: _Layer, labels: Sequence[str]) -> None:
    """The file that computes features, with the layer behind it."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    from labelloop.learning.trainers.backbone import FEATURES

    model = onnx.load(features)
    graph = model.graph
    names = ("weights_of_the_labels", "intercepts_of_the_labels")
    for name, value in zip(names, (layer.weights, layer.intercepts), strict=True):
        graph.initializer.append(numpy_helper.from_array(np.asarray(value, np.float32), name))
    graph.node.append(helper.make_node("Gemm", [FEATURES, *names], ["raw_scores"], transB=1))
    if layer.several:
        graph.node.append(helper.make_node("Sigmoid", ["raw_scores"], [SCORES]))
    else:
        graph.node.append(helper.make_node("Softmax", ["raw_scores"], [SCORES], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(SCORES, TensorProto.FLOAT, ["batch", len(labels)]))
    model.metadata_props.add(key="names", value=str(dict(enumerate(labels))))
    model.metadata_props.add(key="trainer", value="labelloop.classify")
    onnx.checker.check_model(model)
    onnx.save(model, target)


def _card(request: TrainRequest, labels: tuple[str, ...], spec: InputSpec) -> ModelCard:
    return ModelCard(
        name=request.base_card.name if request.base_card else "classify",
        engine="classify",
        task="classify",
        family="probabilities",
        labels=labels,
        input=spec,
        description="Trained by labelloop on the choices of a project.",
    )


def _gap(
    path: Path,
    card: ModelCard,
    request: TrainRequest,
    items: Sequence[Item],
    expected: Any,
) -> float:
    """The largest difference between what the file says as it is served and what was trained."""
    from labelloop.engines.classify import ClassifyEngine

    try:
        engine = ClassifyEngine(path, card, EngineOptions(device="cpu"))
    except ModelError as error:
        raise TrainerFailed(f"The file that was written cannot be served: {error.message}", hint=error.hint) from error
    said = np.concatenate([engine.scores([engine.prepare(_picture(request.data, item))]) for item in items])
    gap = float(np.abs(said - expected).max())
    if not gap <= LARGEST_GAP:
        raise TrainerFailed(
            f"The file does not say what was trained: probabilities differ by {gap:.3g}.",
            hint="This is a fault of labelloop, or of this ONNX Runtime: please report it with both versions.",
        )
    return gap

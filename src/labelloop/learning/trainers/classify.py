"""The trainer `classify`: what people chose for pictures -> features of an ONNX file and logistic regression.

The features are those of the model that serves the project, or of any the registry has, and stay as they are; ONNX
Runtime computes them once for each picture and its mirror image, and they are kept for the next training. The
regression becomes the last layer of one file.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import msgspec
import numpy as np

from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.extras import not_installed
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

if TYPE_CHECKING:
    from labelloop.learning.trainers.embeddings import Kind

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
        until = began + LOOKING * request.budget_s if options.mirror else None
        with threadpool_limits(1):  # as for `text`: 0.33 s of processor time for 200 pictures, with two threads 0.58
            kinds = {kind.digest: kind for kind in (_kind(request, report, name) for name in _names(request, options))}
            tried = [
                _learn(request, items, labels, options, kind, until=until, several=manifest.several, report=report)
                for kind in kinds.values()  # one, where the model has been made of colours and edges
            ]
        best = max(tried, key=lambda one: one.fitted.score or 0.0)  # the first, where they are alike
        path, card = request.out / MODEL, _card(request, labels, best.kind.spec)
        replace_file(path, lambda target: _write(request.out / best.kind.file, target, best.layer, labels))
        rows = best.rows[:WITNESSES]
        expected = logistic.probabilities(rows, best.layer.weights, best.layer.intercepts, several=manifest.several)
        metrics = metrics_of(best.fitted) | {
            "parity_score": _gap(path, card, request, items[:WITNESSES], expected),
            "features": float(best.rows.shape[1]),
            "seconds": time.monotonic() - began,
        }
        report(
            Progress(step=1, steps=1, seconds=metrics["seconds"], metrics=metrics, message=f"{best.kind.file} is best")
        )
        for name in _names(request, options):
            (request.out / name).unlink()
        return Trained(path, card, metrics)


class _Layer(msgspec.Struct, frozen=True):
    """The last layer: `weights` [c, d] of features as they are, `intercepts` [c]."""

    weights: Floats
    intercepts: Floats
    several: bool


class _Learned(msgspec.Struct, frozen=True):
    """What came of one kind of features: `rows` [n, d] are those of the pictures, in the order of the items and then of
    their mirror images."""

    kind: Kind
    rows: Floats
    fitted: logistic.Fitted
    layer: _Layer


def _names(request: TrainRequest, options: ClassifyOptions) -> list[str]:
    """Names of the files of features to try."""
    if request.base is None or options.features == "plain":
        return [PLAIN]
    return [FROM_MODEL] if options.features == "model" else [FROM_MODEL, PLAIN]


def _kind(request: TrainRequest, report: Report, name: str) -> Kind:
    """Write the file `name` that computes features."""
    import onnx

    from labelloop.learning.trainers import backbone
    from labelloop.learning.trainers.embeddings import Kind, digest_of

    card = request.base_card
    if request.base is None or card is None or name == PLAIN:
        report(Progress(step=0, message=PLAIN_FEATURES + (NO_MODEL if request.base is None else "")))
        model, spec = backbone.plain(), backbone.PLAIN_INPUT
    else:
        model, spec = backbone.features_of(request.base, card), card.input
        report(Progress(step=0, message=f"features: {card.name} ({card.family or card.engine})"))
    onnx.save(model, request.out / name)
    return Kind(name, spec, digest_of(model, spec, device=request.device))


def _learn(
    request: TrainRequest,
    items: Sequence[Item],
    labels: tuple[str, ...],
    options: ClassifyOptions,
    kind: Kind,
    *,
    until: float | None,
    several: bool,
    report: Report,
) -> _Learned:
    from labelloop.learning.trainers.embeddings import embed

    seen = list(embed(request, items, kind, mirror_until=until, report=report))
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
    return _Learned(kind, rows, fitted, _Layer(weights, fitted.intercepts - weights @ mean, several))


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
    from labelloop.learning.trainers.embeddings import picture_of

    try:
        engine = ClassifyEngine(path, card, EngineOptions(device="cpu"))
    except ModelError as error:
        raise TrainerFailed(f"The file that was written cannot be served: {error.message}", hint=error.hint) from error
    said = np.concatenate([engine.scores([engine.prepare(picture_of(request.data, item))]) for item in items])
    gap = float(np.abs(said - expected).max())
    if not gap <= LARGEST_GAP:
        raise TrainerFailed(
            f"The file does not say what was trained: probabilities differ by {gap:.3g}.",
            hint="This is a fault of labelloop, or of this ONNX Runtime: please report it with both versions.",
        )
    return gap

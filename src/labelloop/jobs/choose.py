"""Who trains: the trainers by what is learned, in the order in which they are tried, and what each is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from labelloop.core.errors import LabelloopError
from labelloop.core.settings import Settings
from labelloop.engines.base import cpu_threads
from labelloop.jobs.folder import read_folder
from labelloop.jobs.training import Training
from labelloop.learning.trainers.base import TrainerRefused, TrainRequest, device_for, load_trainer
from labelloop.store.registry import ModelVersion
from labelloop.store.runs import Run

TRAINERS: Mapping[tuple[str, str], tuple[tuple[str, ...], tuple[str, ...]]] = {
    ("boxes", "pictures"): (("head", "full", "transformers", "openmmlab"), ("scratch",)),
    ("masks", "pictures"): (("openmmlab",), ()),
    ("choices", "pictures"): (("classify",), ("classify",)),
    ("choices", "texts"): (("text",), ("text",)),
}
"""By what is learned, and from what: the trainers that go on from a model, and those that begin from nothing, each in
the order in which they are tried."""
OUT = "out"
"""The folder that the first trainer of a run writes into; who goes on has one of its name."""
FURTHER: Mapping[str, str] = {"head": "full"}
"""Who goes on from what another has made, in the time that is left."""
GENTLY: Mapping[str, Mapping[str, float]] = {"full": {"rate": 3e-5, "class_rate": 1e-4}}
"""Options of who goes on, unless a person gave others: at its usual rates `full` took what `head` had reached on bccd
from AP50 0.831 to 0.667 in 40 steps, at these to 0.844 (benchmarks/README.md)."""
LEAST_S: Mapping[str, float] = {"cpu": 300.0, "cuda": 60.0}
"""By the kind of device, what each of the two must have at least; the first one gets half. All weights learn slowly: a
step of YOLOX-nano takes a core a second."""


class Chooser:
    """Of one run. `folder` is where it keeps its files, its data set in `data`; `tell` writes into its log."""

    def __init__(self, settings: Settings, training: Training, folder: Path, tell: Callable[[str, str], None]) -> None:
        self._settings = settings
        self._training = training
        self._folder = folder
        self._tell = tell
        self._chosen = ("", "")
        self._refused: dict[tuple[str, str], str] = {}

    def choose(self, run: Run) -> tuple[str, TrainRequest]:
        """The trainer that the options name, else the first that can do it. Raises TrainerRefused with all reasons."""
        wanted = run.options.trainer
        base, manifest = self.trainable(run), read_folder(self._folder / "data").manifest
        from_base, from_nothing = TRAINERS[manifest.learns, manifest.reads]
        if wanted in _known() - {*from_base, *from_nothing}:
            raise TrainerRefused(
                f"The trainer {wanted} does not learn {manifest.learns} of {manifest.reads}.",
                hint=f"For this project: {', '.join(dict.fromkeys((*from_base, *from_nothing)))}.",
            )
        names = (wanted,) if wanted != "auto" else (*(from_base if base else ()), *from_nothing)
        if not names:
            raise TrainerRefused(
                "A first model of labelloop's own draws boxes, and in this label config there is only a brush.",
                hint="Add <RectangleLabels> or <PolygonLabels>, or a model that makes masks: see docs/hosted.md.",
            )
        starts = [(name, base) for name in dict.fromkeys(names)]
        if base is not None:
            starts += [(name, None) for name in names if name in from_nothing]
        reasons = []
        for name, start in starts:
            begin = start if start or name != "classify" else self._any_onnx()
            request = self._request(run, name, begin, labels=manifest.labels)
            choice = name, start.id if start else ""
            if choice in self._refused:
                reasons.append(self._refused[choice])
                continue
            reason = load_trainer(name).refuses(request)
            if reason is None:
                if start is None and base is not None:
                    self._tell("warning", f"{base.id} cannot be trained further, so a new one begins.")
                self._chosen = choice
                return name, request
            reasons.append(f"{name}: {reason}")
            self._tell("info", reasons[-1])
        raise TrainerRefused(
            f"No trainer can do this. {' '.join(reasons)}", hint="See docs/learning.md; --trainer chooses one."
        )

    def pass_over(self, run: Run, reason: TrainerRefused) -> None:
        """The trainer that was chosen has looked closer and cannot do it: the next one is chosen. Raises `reason` where
        a person had named it."""
        if run.options.trainer != "auto":
            raise reason
        self._tell("info", str(reason))
        self._refused[self._chosen] = str(reason)

    def further(self, run: Run, made: ModelVersion, *, spent_s: float) -> tuple[str, TrainRequest] | None:
        """Who goes on from the version that was `made` in `spent_s`, and what it is told; None where nobody does, or
        where the time that is left is not worth it."""
        name, rest_s = FURTHER.get(run.trainer), run.options.budget_s - spent_s
        if name is None or run.options.trainer != "auto" or rest_s < self._least_s():
            return None
        labels = read_folder(self._folder / "data").manifest.labels
        request = self._told(run, made, labels=labels, budget_s=rest_s, out=self._folder / name)
        request = msgspec.structs.replace(request, options={**GENTLY.get(name, {}), **request.options})
        return None if load_trainer(name).refuses(request) else (name, request)

    def _least_s(self) -> float:
        return LEAST_S[device_for(self._settings.device).partition(":")[0]]

    def base(self, run: Run) -> ModelVersion | None:
        return self._training.registry.catalogue().find(run.base) if run.base else None

    def trainable(self, run: Run) -> ModelVersion | None:
        """The base, or what it was exported from: an exported file is served, and what it was made of is trained."""
        base = self.base(run)
        made = self._training.lineages.of(base.name, base.number) if base else None
        if made is None or not made.source:
            return base
        try:
            return self._training.registry.catalogue().find(made.source)
        except LabelloopError as error:
            self._tell("warning", f"What {made.id} was exported from is gone: {error}")
            return base

    def _any_onnx(self) -> ModelVersion | None:
        """Whose features a first classifier is made of: the newest classifier or, without one, detector that people
        added."""
        added = [v for v in self._training.registry.catalogue().versions if not v.trained and v.artifact]
        kinds = [[v for v in added if v.card.engine == engine] for engine in ("classify", "detect")]
        return next((max(kind, key=lambda version: version.created_at) for kind in kinds if kind), None)

    def _request(self, run: Run, name: str, start: ModelVersion | None, *, labels: tuple[str, ...]) -> TrainRequest:
        budget_s = run.options.budget_s
        if run.options.trainer == "auto" and name in FURTHER and budget_s >= 2 * self._least_s():
            budget_s /= 2
        return self._told(run, start, labels=labels, budget_s=budget_s, out=self._folder / OUT)

    def _told(
        self, run: Run, start: ModelVersion | None, *, labels: tuple[str, ...], budget_s: float, out: Path
    ) -> TrainRequest:
        return TrainRequest(
            data=self._folder / "data",
            labels=labels,
            out=out,
            budget_s=budget_s,
            base=self._training.registry.path(start) if start else None,
            base_card=start.card if start else None,
            threads=self._settings.threads or cpu_threads(),
            device=device_for(self._settings.device),
            seed=run.options.seed,
            options=dict(run.options.trainer_options),
            cache=self._settings.home / "cache" / "training",
        )


def _known() -> set[str]:
    """Those that know what they learn; others, of plug-ins, may learn anything."""
    return {name for names in TRAINERS.values() for some in names for name in some}

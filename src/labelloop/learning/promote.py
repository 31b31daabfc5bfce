"""Whether a candidate goes live: better than the live version on the same held-out pictures, and not by luck.

Paired bootstrap over pictures (Efron and Tibshirani, An introduction to the bootstrap, 1993; for comparing two systems:
Koehn, Statistical significance tests for machine translation evaluation, 2004): n pictures are drawn with replacement
from the n held-out ones, B times; each time both versions are measured on the same draw. The share of draws in which
the candidate is better, (1/B) * sum of [metric_b(candidate) - metric_b(live) > 0], must reach `confidence`, and the
difference on the pictures themselves must reach `margin`. Matches are made once (`detections.match`), so a draw is only
a weight per picture. Where people make choices about pictures or texts it is the same with other metrics.
"""

from __future__ import annotations

import math
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from labelloop.core.settings import Settings
from labelloop.learning.choices import ChoiceMetric
from labelloop.learning.detections import Floats
from labelloop.learning.evaluate_choices import ChoiceEvaluation
from labelloop.learning.measures import Metric

Mode = Literal["auto", "always", "never", "ask"]
Decision = Literal["promote", "keep", "ask"]

SEED = 20261121
"""Fixed, so that the same evaluations always get the same verdict."""


class Measured(Protocol):
    """A version as it did on held-out items: `evaluate.Evaluation`, `evaluate_choices.ChoiceEvaluation`."""

    @property
    def measures(self) -> Any: ...
    @property
    def items(self) -> int:
        """Pictures or texts that were held out."""

    @property
    def answers(self) -> int:
        """Boxes, or answers, that people gave there."""

    @property
    def described(self) -> str:
        """Both in words."""

    def value(self, metric: str) -> float | None:
        """None where there is nothing to measure."""

    def floor(self, metric: str) -> float:
        """What is reached without looking."""

    def sampled(self, metric: str, draws: Floats) -> Floats:
        """The metric [samples] on samples of the items, `draws` [samples, items]."""

    def same_items(self, other: object) -> bool:
        """Whether `other` was measured on the same items."""


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a candidate must show. `margin` is on the scale of the metric (`choice_metric` where people make choices),
    `confidence` in [0, 1]. On less than `min_pictures` and `min_boxes` held out (or as many items, for choices) nothing
    can be told, and nothing is promoted unless `even_if_few`."""

    mode: Mode = "auto"
    metric: Metric = "AP50"
    choice_metric: ChoiceMetric = "macro-F1"
    margin: float = 0.005
    confidence: float = 0.9
    min_pictures: int = 4
    min_boxes: int = 10
    even_if_few: bool = False
    resamples: int = 1000


def gate_of(settings: Settings) -> Gate:
    """What the settings say."""
    return Gate(
        mode=settings.promote,
        metric=settings.promote_metric,
        choice_metric=settings.promote_choice_metric,
        margin=settings.promote_margin,
        confidence=settings.promote_confidence,
        min_pictures=settings.promote_min_pictures,
        min_boxes=settings.promote_min_boxes,
    )


class Verdict(msgspec.Struct, frozen=True):
    """`sentence` says it all to a person. `pictures` (or texts) were held out, with `boxes` (or answers). `candidate`
    and `live` are values of `metric`, None without a live version or without a box to find; `better_share` is that of
    the draws, `low` and `high` hold nine of ten differences."""

    decision: Decision
    sentence: str
    metric: str
    pictures: int
    boxes: int
    candidate: float | None
    live: float | None = None
    better_share: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def promoted(self) -> bool:
        return self.decision == "promote"


def judge(candidate: Measured, live: Measured | None, gate: Gate) -> Verdict:
    """The verdict on `candidate`; `live` None: no model serves the project yet, and any that finds something (chooses
    better than one that does not look) is better.

    Both must have been evaluated on the same pictures.
    """
    if live is not None and not candidate.same_items(live):
        raise ValueError("a candidate and the live version are measured on the same pictures, or not compared")
    metric = gate.choice_metric if isinstance(candidate, ChoiceEvaluation) else gate.metric
    found = Verdict(
        decision="keep",
        sentence="",
        metric=metric,
        pictures=candidate.items,
        boxes=candidate.answers,
        candidate=candidate.value(metric),
        live=live.value(metric) if live else None,
    )
    if live is not None and found.candidate is not None:
        found = _compared(found, candidate, live, gate)
    why_not = _objection(found, candidate, gate, first=live is None)
    decision = _decision(gate.mode, why_not)
    sentence = _sentence(found, candidate.described, gate, why_not, decision)
    return msgspec.structs.replace(found, decision=decision, sentence=sentence)


def differences(candidate: Measured, live: Measured, *, metric: str, resamples: int) -> Floats:
    """Candidate less live on `resamples` draws of the pictures; draws without a box to find are left out."""
    pictures = candidate.items
    rng = np.random.default_rng(SEED)
    draws = rng.multinomial(pictures, np.full(pictures, 1 / pictures), size=resamples).astype(np.float64)
    difference = candidate.sampled(metric, draws) - live.sampled(metric, draws)
    return np.asarray(difference[~np.isnan(difference)])


def _compared(found: Verdict, candidate: Measured, live: Measured, gate: Gate) -> Verdict:
    difference = differences(candidate, live, metric=found.metric, resamples=gate.resamples)
    low, high = np.quantile(difference, (0.05, 0.95))
    # A draw that changes a figure by the last bit of a sum is a tie.
    share = float((difference > 1e-9).mean())
    return msgspec.structs.replace(found, better_share=share, low=float(low), high=float(high))


def _objection(found: Verdict, candidate: Measured, gate: Gate, *, first: bool) -> str:
    """Why the gate stays shut, as the end of a sentence; empty when it opens."""
    chooses = isinstance(candidate, ChoiceEvaluation)
    if found.candidate is None:
        return "nothing was held out that could be found"
    if not gate.even_if_few and (found.pictures < gate.min_pictures or found.boxes < gate.min_boxes):
        few = f"{gate.min_pictures} pictures and {gate.min_boxes} boxes"
        return f"too little to tell, {max(gate.min_pictures, gate.min_boxes) if chooses else few} are needed"
    if first:
        floor = candidate.floor(found.metric)
        nothing = f"always giving the commonest answer reaches {floor:.3f}" if chooses else "it finds nothing"
        return "" if found.candidate > floor else nothing
    if found.candidate - (found.live or 0.0) < gate.margin or not found.better_share:
        return f"{gate.margin:g} better is needed" if gate.margin else "it is not better"
    if found.better_share < gate.confidence:
        return f"{gate.confidence * 100:g} % are needed"
    return ""


def _decision(mode: Mode, why_not: str) -> Decision:
    if mode == "always":
        return "promote"
    if mode == "never" or why_not:
        return "keep"
    return "ask" if mode == "ask" else "promote"


def _sentence(found: Verdict, on: str, gate: Gate, why_not: str, decision: Decision) -> str:
    """ "AP50 0.871 against 0.752 on 72 held-out pictures with 967 boxes, 99 % of resamples better: promoted" """
    value = "unknown" if found.candidate is None else f"{found.candidate:.3f}"
    against = "" if found.live is None else f" against {found.live:.3f}"
    parts = [f"{found.metric} {value}{against} on {on}"]
    if found.better_share is not None:
        parts.append(f"{_percent(found.better_share)} of resamples better")
    elif found.live is None and found.candidate is not None:
        parts.append("the first model of the project")
    parts += [why_not] if why_not else []
    ends = {"promote": "promoted", "keep": "not promoted", "ask": "waiting for a person to promote it"}
    end = ends[decision] + {"always": ", as told (always)", "never": ", as told (never)"}.get(gate.mode, "")
    return f"{', '.join(parts)}: {end}"


def _percent(share: float) -> str:
    """Rounded down: 99.6 % is not all of them."""
    return f"{math.floor(share * 100 + 1e-9)} %"

"""The gate: what goes live, what does not, and what is said about it. Candidates are real boxes of bccd, moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelloop.formats import coco
from labelloop.learning.detections import Found, Truth, truth_of
from labelloop.learning.evaluate import Evaluation
from labelloop.learning.measures import measure
from labelloop.learning.promote import Gate, differences, judge


@pytest.fixture(scope="module")
def bccd(shared: Path) -> Truth:
    """The test split: 72 pictures."""
    return truth_of(coco.read(shared / "data/datasets/bccd/test.json"))


def candidate(
    truth: Truth, *, missed: float, seed: int = 0, shuffled: bool = False, name: str = "cells@1"
) -> Evaluation:
    """A version that finds everybody's boxes but a share `missed`, a little beside where they are, and some more."""
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(rng.random(len(truth.picture)) >= missed)
    boxes = truth.xywh[rows] + rng.normal(0, 3, (len(rows), 4))
    label = rng.permutation(truth.label)[rows] if shuffled else truth.label[rows]
    ghosts = rng.integers(0, len(truth.picture), len(rows) // 5)
    xywh = np.concatenate([boxes, truth.xywh[ghosts] + (90, 60, 0, 0)])
    score = np.concatenate([rng.uniform(0.3, 1, len(rows)), rng.uniform(0.1, 0.6, len(ghosts))])
    found = Found(
        np.concatenate([truth.picture[rows], truth.picture[ghosts]]),
        np.concatenate([label, truth.label[ghosts]]),
        score,
        np.abs(xywh),
        score > 0.4,
    )
    return Evaluation(name, truth, found, measure(truth, found))


def test_a_clear_gain_is_promoted(bccd: Truth) -> None:
    verdict = judge(candidate(bccd, missed=0.1), candidate(bccd, missed=0.4), Gate())
    assert verdict.promoted
    assert verdict.sentence == (
        f"AP50 {verdict.candidate:.3f} against {verdict.live:.3f} on 72 held-out pictures with {bccd.boxes} boxes, "
        "100 % of resamples better: promoted"
    )
    assert verdict.low is not None
    assert 0 < verdict.low < verdict.candidate - verdict.live < (verdict.high or 0)  # type: ignore[operator]


def test_a_candidate_that_learned_shuffled_labels_is_refused(bccd: Truth) -> None:
    verdict = judge(candidate(bccd, missed=0.0, shuffled=True), candidate(bccd, missed=0.4), Gate())
    assert not verdict.promoted
    assert verdict.sentence.endswith("0 % of resamples better, 0.005 better is needed: not promoted")


def test_a_tie_is_not_promoted(bccd: Truth) -> None:
    verdict = judge(candidate(bccd, missed=0.2), candidate(bccd, missed=0.2), Gate(margin=0.0))
    assert (verdict.decision, verdict.better_share, verdict.low, verdict.high) == ("keep", 0.0, 0.0, 0.0)
    assert verdict.sentence.endswith("it is not better: not promoted")


def test_a_gain_that_may_be_luck_is_not_promoted(bccd: Truth) -> None:
    """Two versions that miss as much, by chance one does a little better on these pictures."""
    ours, theirs = candidate(bccd, missed=0.3, seed=5), candidate(bccd, missed=0.3, seed=6)
    if (ours.measures.ap50 or 0) < (theirs.measures.ap50 or 0):
        ours, theirs = theirs, ours
    verdict = judge(ours, theirs, Gate(margin=0.0, confidence=0.995))
    assert verdict.decision == "keep"
    assert "99.5 % are needed" in verdict.sentence
    assert verdict.better_share is not None
    assert 0.5 < verdict.better_share < 0.995


def test_the_same_evaluations_always_get_the_same_verdict(bccd: Truth) -> None:
    pair = candidate(bccd, missed=0.3, seed=5), candidate(bccd, missed=0.3, seed=6)
    assert judge(*pair, Gate()) == judge(*pair, Gate())


def test_resamples_scatter_as_much_as_new_pictures_would(bccd: Truth) -> None:
    """The spread of the bootstrap against that of versions drawn anew on the same pictures, within a factor of two: it
    is neither blind nor wild."""
    pairs = [(candidate(bccd, missed=0.3, seed=2 * n), candidate(bccd, missed=0.3, seed=2 * n + 1)) for n in range(12)]
    anew = np.std([(a.measures.ap50 or 0) - (b.measures.ap50 or 0) for a, b in pairs])
    resampled = np.std(differences(*pairs[0], metric="AP50", resamples=400))
    assert 0.5 < resampled / anew < 2.0


@pytest.mark.parametrize(
    ("gate", "decision", "ending"),
    [
        (Gate(), "promote", "better: promoted"),
        (Gate(mode="ask"), "ask", "better: waiting for a person to promote it"),
        (Gate(mode="never"), "keep", "better: not promoted, as told (never)"),
        (Gate(mode="always"), "promote", "better: promoted, as told (always)"),
        (Gate(margin=0.9), "keep", "0.9 better is needed: not promoted"),
        (Gate(min_pictures=100), "keep", "too little to tell, 100 pictures and 10 boxes are needed: not promoted"),
        (Gate(min_boxes=9000), "keep", "too little to tell, 4 pictures and 9000 boxes are needed: not promoted"),
        (Gate(min_pictures=100, even_if_few=True), "promote", "better: promoted"),
        (Gate(metric="AP"), "promote", "better: promoted"),
    ],
    ids=["auto", "ask", "never", "always", "margin", "few pictures", "few boxes", "few, and told to", "AP"],
)  # fmt: skip
def test_what_the_settings_do_to_a_clear_gain(bccd: Truth, gate: Gate, decision: str, ending: str) -> None:
    verdict = judge(candidate(bccd, missed=0.1), candidate(bccd, missed=0.4), gate)
    assert (verdict.decision, verdict.metric) == (decision, gate.metric)
    assert verdict.sentence.endswith(ending)


@pytest.mark.parametrize(("mode", "decision"), [("auto", "keep"), ("ask", "keep"), ("always", "promote")])
def test_what_the_modes_do_to_a_loss(bccd: Truth, mode: str, decision: str) -> None:
    gate = Gate(mode=mode)  # type: ignore[arg-type]
    assert judge(candidate(bccd, missed=0.4), candidate(bccd, missed=0.1), gate).decision == decision


def test_the_first_model_of_a_project_needs_no_rival(bccd: Truth) -> None:
    verdict = judge(candidate(bccd, missed=0.4), None, Gate())
    assert verdict.promoted
    assert verdict.sentence.endswith("boxes, the first model of the project: promoted")


def test_a_first_model_that_finds_nothing_is_refused(bccd: Truth) -> None:
    nothing = Found(*(column[:0] for column in candidate(bccd, missed=0.0).found))
    verdict = judge(Evaluation("cells@1", bccd, nothing, measure(bccd, nothing)), None, Gate())
    assert (verdict.decision, verdict.candidate) == ("keep", 0.0)
    assert verdict.sentence.endswith("it finds nothing: not promoted")


def test_without_a_box_held_out_nothing_can_be_told(bccd: Truth) -> None:
    empty = Truth(3, bccd.labels, *(column[:0] for column in bccd[2:]))  # type: ignore[arg-type]
    found = Found(*(column[:0] for column in candidate(bccd, missed=0.0).found))
    one = Evaluation("cells@1", empty, found, measure(empty, found))
    verdict = judge(one, one, Gate(even_if_few=True))
    assert verdict.sentence == (
        "AP50 unknown on 3 held-out pictures with 0 boxes, nothing was held out that could be found: not promoted"
    )


def test_versions_measured_on_different_pictures_are_not_compared(bccd: Truth) -> None:
    half = bccd._replace(picture=bccd.picture[::2], label=bccd.label[::2], xywh=bccd.xywh[::2], crowd=bccd.crowd[::2])
    with pytest.raises(ValueError, match="same pictures"):
        judge(candidate(bccd, missed=0.1), candidate(half, missed=0.1), Gate())

"""Choices people made, frozen; how good a model's are; and whether a better one goes live."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import numpy as np
import pytest

from labelloop.core.regions import Box, MediaKey, Region, Whole
from labelloop.core.tasks import Annotation, TextRef
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.vocabulary import vocabulary
from labelloop.learning.choices import Chosen, commonest, flags_of, measure, sampled
from labelloop.learning.dataset import Annotated, freeze
from labelloop.learning.evaluate_choices import ChoiceEvaluation
from labelloop.learning.manifest import Options, as_rows, decode, encode
from labelloop.learning.promote import Gate, judge

LABELS = ("a", "b", "c")


def config(choice: str = "single", *, tag: str = "Text", extra: str = "") -> str:
    options = "".join(f'<Choice value="{label}"/>' for label in LABELS)
    return f'<View><{tag} name="t" value="$x" {extra}/><Choices name="c" toName="t" choice="{choice}">{options}</Choices></View>'


# --- what is learned --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("xml", "learns", "control", "several"),
    [
        (config(), "choices", "c", False),
        (config("multiple"), "choices", "c", True),
        (config(tag="HyperText"), "choices", "c", False),
        (config(tag="Image"), "choices", "c", False),
        (
            config(tag="Image").replace("</View>", '<RectangleLabels name="r" toName="t"><Label value="x"/></RectangleLabels></View>'),
            "boxes",
            "",
            False,
        ),
        (
            config().replace("<Choices", '<Choices name="r" toName="t" perRegion="true"><Choice value="z"/></Choices><Choices', 1),
            "choices",
            "c",
            False,
        ),
    ],
    ids=["text", "several", "markup", "picture", "boxes come first", "not those about a region"],
)  # fmt: skip
def test_what_a_project_teaches(xml: str, learns: str, control: str, several: bool) -> None:
    words = vocabulary(parse_config(xml))
    assert (words.learns, words.control, words.several) == (learns, control, several)
    assert words.labels == (LABELS if learns == "choices" else ("x",))


# --- the data set -----------------------------------------------------------------------------------


def annotation(number: int, *labels: str, task: int = 1, **more: Any) -> Annotation:
    regions = tuple(Region(Whole(), label, media=MediaKey("x")) for label in labels)
    return Annotation(number, task, regions, updated_at=datetime(2026, 1, number, tzinfo=UTC), **more)


def task(*annotations: Annotation, number: int = 1, text: str = "words", **ref: Any) -> Annotated:
    return Annotated(number, (TextRef(text, MediaKey("x"), number, 7, **ref),), annotations)


def frozen(*tasks: Annotated, choice: str = "single", annotators: str = "ground_truth") -> Any:
    words = vocabulary(parse_config(config(choice)))
    return freeze(tasks, project_id=7, vocabulary=words, options=Options(annotators=annotators))


def test_a_data_set_of_texts() -> None:
    manifest = frozen(
        task(annotation(1, "a"), annotation(2, "b")),
        task(annotation(1, task=2), number=2),
        task(annotation(1, "gone", task=3), number=3),
        task(annotation(1, "c", task=4, skipped=True), number=4),
        task(annotation(1, "c", task=5), number=5, text=""),
        task(annotation(1, "c", task=6), number=6, text="<p>bold <b>word</b></p>", markup=True),
        task(annotation(1, "c", task=7), number=7, text="/data/x.txt", by_url=True),
    )
    assert (manifest.learns, manifest.reads, manifest.labels) == ("choices", "texts", LABELS)
    assert [(item.task_id, item.said, item.text, item.uri) for item in manifest.items] == [
        (1, ("b",), "words", ""),
        (6, ("c",), "bold word", ""),
        (7, ("c",), None, "/data/x.txt"),
    ], "the latest counts; texts at an address are fetched later"
    assert [(left.task_id, left.reason) for left in manifest.left_out] == [
        (2, "no-choice"),
        (3, "no-choice"),
        (4, "skipped"),
        (5, "no-text"),
    ]
    assert [(d.reason, d.label, d.regions) for d in manifest.dropped] == [("unknown-label", "gone", 1)]
    assert decode(encode(manifest)) == manifest
    rows = as_rows(manifest, "train") + as_rows(manifest, "val")
    assert {"task_id": 1, "text": "words", "labels": ["b"]} in rows


def test_where_several_may_be_true_none_is_an_answer() -> None:
    manifest = frozen(task(annotation(1)), task(annotation(1, "c", "a", task=2), number=2), choice="multiple")
    assert [item.said for item in manifest.items] == [(), ("a", "c")]


@pytest.mark.parametrize(
    ("choice", "votes", "said"),
    [
        ("single", ["a", "a", "b"], [("a",)]),
        ("single", ["a", "b"], []),
        ("multiple", ["ab", "bc", "b"], [("b",)]),
    ],
    ids=["a majority", "a tie is no answer", "label by label"],
)
def test_a_consensus(choice: str, votes: list[str], said: list[tuple[str, ...]]) -> None:
    people = [annotation(n, *vote, author_id=n) for n, vote in enumerate(votes, 1)]
    assert [item.said for item in frozen(task(*people), choice=choice, annotators="consensus").items] == said


def test_the_digest_is_over_texts_and_choices_and_nothing_else() -> None:
    def digest(label: str = "a", text: str = "words") -> str:
        return frozen(task(annotation(1, label), text=text)).digest

    assert digest() == digest()
    assert len({digest(), digest("b"), digest(text="others")}) == 3


def test_half_a_character_does_not_break_the_file() -> None:
    manifest = frozen(task(annotation(1, "a"), text="odd \ud83d end"))
    assert decode(encode(manifest)) == manifest


# --- measures ---------------------------------------------------------------------------------------


def chosen(*rows: str, score: float = 1.0) -> Chosen:
    flags = flags_of([tuple(row) for row in rows], LABELS)
    return Chosen(flags, flags * score)


def test_measures_by_hand() -> None:
    truth = chosen("a", "a", "b", "b", "c").flags
    found = chosen("a", "b", "b", "b", "", score=0.9)
    measures = measure(truth, found, LABELS, seconds_per_item=0.5, failed=1)
    assert measures.accuracy == pytest.approx(3 / 5)
    assert [one.f1 for one in measures.classes] == pytest.approx([2 / 3, 4 / 5, 0.0])
    assert measures.macro_f1 == pytest.approx((2 / 3 + 4 / 5) / 3)
    assert [one.precision for one in measures.classes] == [1.0, pytest.approx(2 / 3), None]
    assert measures.ece == pytest.approx(abs(3 / 4 - 0.9)), "three of four choices are right, and 0.9 was said"
    assert (measures.items, measures.failed, measures.seconds_per_item) == (5, 1, 0.5)


@pytest.mark.parametrize("several", [False, True])
def test_the_same_as_scikit_learn(several: bool) -> None:
    metrics = pytest.importorskip("sklearn.metrics", reason="needs the extra labelloop[train]")
    rng = np.random.default_rng(3)
    if several:
        truth, found = rng.random((2, 200, 3)) < 0.4
    else:
        truth, found = (np.eye(3, dtype=bool)[rng.integers(0, 3, 200)] for _ in range(2))
    measures = measure(truth, Chosen(found, found * 0.7), LABELS)
    assert measures.accuracy == pytest.approx(metrics.accuracy_score(truth, found))
    assert measures.macro_f1 == pytest.approx(metrics.f1_score(truth, found, average="macro", zero_division=0))


def test_samples_are_measured_as_if_their_items_were_repeated() -> None:
    rng = np.random.default_rng(0)
    truth, found = (np.eye(3, dtype=bool)[rng.integers(0, 3, 12)] for _ in range(2))
    draws = rng.multinomial(12, np.full(12, 1 / 12), size=5)
    for metric in ("accuracy", "macro-F1"):
        repeated = [
            sampled(np.repeat(truth, draw, 0), np.repeat(found, draw, 0), metric, np.ones((1, 12)))[0] for draw in draws
        ]
        assert sampled(truth, found, metric, draws.astype(float)) == pytest.approx(repeated)


def test_nothing_to_measure() -> None:
    measures = measure(np.zeros((0, 3), bool), Chosen(np.zeros((0, 3), bool), np.zeros((0, 3))), LABELS)
    assert (measures.accuracy, measures.macro_f1, measures.ece) == (None, None, None)


# --- the gate ---------------------------------------------------------------------------------------


def version(truth: Any, right: float, *, seed: int = 0) -> ChoiceEvaluation:
    """One that is right about this share of the items."""
    rng = np.random.default_rng(seed)
    found = truth.copy()
    wrong = rng.permutation(len(truth))[: round((1 - right) * len(truth))]
    found[wrong] = np.roll(truth[wrong], 1, axis=1)
    return ChoiceEvaluation("m@1", LABELS, "texts", truth, found, measure(truth, Chosen(found, found * 1.0), LABELS))


MANY = np.eye(3, dtype=bool)[np.arange(60) % 3]
FEW = MANY[:6]
LOPSIDED = np.eye(3, dtype=bool)[[0] * 50 + [1] * 10]


@pytest.mark.parametrize(
    ("candidate", "live", "decision", "says"),
    [
        (version(MANY, 0.95), version(MANY, 0.7, seed=1), "promote", "macro-F1 0.95"),
        (version(MANY, 0.8), version(MANY, 0.8, seed=1), "keep", "better is needed"),
        (version(MANY, 0.6), version(MANY, 0.9, seed=1), "keep", "better is needed"),
        (version(FEW, 1.0), version(FEW, 0.1), "keep", "too little to tell, 10 are needed"),
        (version(MANY, 0.9), None, "promote", "the first model of the project"),
        (version(MANY, 0.1), None, "keep", "always giving the commonest answer reaches 0.167"),
    ],
    ids=["better", "a tie", "worse", "too few", "the first", "a first one that does not look"],
)
def test_the_gate(candidate: ChoiceEvaluation, live: ChoiceEvaluation | None, decision: str, says: str) -> None:
    verdict = judge(candidate, live, Gate())
    assert verdict.decision == decision, verdict.sentence
    assert says in verdict.sentence
    assert f"on {len(candidate.truth)} held-out texts" in verdict.sentence


def test_accuracy_can_be_the_measure() -> None:
    lazy = ChoiceEvaluation(
        "m@1",
        LABELS,
        "texts",
        LOPSIDED,
        commonest(LOPSIDED),
        measure(LOPSIDED, Chosen(commonest(LOPSIDED), commonest(LOPSIDED) * 1.0), LABELS),
    )
    assert lazy.value("accuracy") == pytest.approx(50 / 60)
    assert lazy.floor("accuracy") == pytest.approx(50 / 60)
    assert not judge(lazy, None, Gate(choice_metric="accuracy")).promoted
    assert judge(version(LOPSIDED, 0.95), lazy, Gate(choice_metric="accuracy")).promoted


def test_other_items_are_not_compared() -> None:
    other = msgspec.structs.replace(version(MANY, 0.9), truth=MANY[::-1])
    with pytest.raises(ValueError, match="same pictures"):
        judge(version(MANY, 0.9), other, Gate())


def test_regions_that_are_drawn_are_not_choices() -> None:
    drawn = Annotation(1, 1, (Region(Box((0, 0, 1, 1)), "a", media=MediaKey("x")),))
    assert frozen(task(drawn)).items == ()

"""Annotations -> manifest: whose word counts, what is dropped, which side a task is on, and that order does not matter."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from labelloop.core.regions import Box, Mask, MediaKey, Point, Polygon, Raw, Region, Shape, Size, Whole
from labelloop.core.tasks import Annotation, MediaRef
from labelloop.formats.coco import DatasetError
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.vocabulary import Vocabulary, vocabulary
from labelloop.learning.consensus import consensus
from labelloop.learning.dataset import Annotated, chosen, freeze
from labelloop.learning.manifest import (
    Drawn,
    Dropped,
    Manifest,
    Options,
    as_coco,
    decode,
    encode,
    scaled,
    side_of,
    without_twins,
)

CONFIG = """<View><Image name="img" value="$image"/>
<RectangleLabels name="box" toName="img"><Label value="Zebra"/><Label value="Car" alias="car"/></RectangleLabels>
<PolygonLabels name="poly" toName="img"><Label value="Lake"/><Label value="Zebra"/></PolygonLabels>
<Choices name="kind" toName="img"><Choice value="day"/></Choices></View>"""
WORDS = vocabulary(parse_config(CONFIG))
KEY, SIZE = MediaKey("image"), Size(100, 80)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def region(shape: Shape, label: str | None = "Zebra", media: MediaKey = KEY) -> Region:
    return Region(shape, label=label, id="r", media=media)


def box(left: float, top: float = 10.0, label: str = "Zebra") -> Region:
    return region(Box((left, top, left + 20, top + 20)), label)


SQUARE = ((10.0, 10.0), (10.0, 30.0), (30.0, 30.0), (30.0, 10.0))
TRIANGLE = ((50.0, 50.0), (50.0, 60.0), (60.0, 60.0))
SPECK = ((70.0, 70.0),)


def said(number: int, *regions: Region, task: int = 1, **fields: Any) -> Annotation:
    sizes = {one.media: SIZE for one in regions}
    return Annotation(number, task, regions, sizes, **{"author_id": number, "updated_at": NOON, **fields})


def task(number: int, *annotations: Annotation, fields: tuple[str, ...] = ("image",)) -> Annotated:
    refs = tuple(MediaRef(f"/data/{number}-{field}.jpg", MediaKey(field), number, 7) for field in fields)
    return Annotated(number, refs, annotations)


def frozen(*tasks: Annotated, words: Vocabulary = WORDS, **options: Any) -> Manifest:
    return freeze(tasks, project_id=7, vocabulary=words, options=Options(**options))


def drawn(manifest: Manifest) -> list[tuple[str, tuple[float, ...]]]:
    (item,) = manifest.items
    return [(one.label, one.xyxy) for one in item.drawn]


def test_labels_are_those_of_boxes_and_polygons_in_the_order_of_the_config() -> None:
    assert WORDS.labels == ("Zebra", "car", "Lake")
    assert [tag.field for tag in WORDS.fields] == ["image"]


@pytest.mark.parametrize(
    ("shape", "label", "expected"),
    [
        (Box((10, 20, 30, 40)), "Zebra", ("Zebra", (10, 20, 30, 40))),
        (Box((-5, 20, 30, 999)), "Zebra", ("Zebra", (0, 20, 30, 80))),
        (Box((10, 20, 30, 40)), "Car", ("car", (10, 20, 30, 40))),
        (Box((20, 20, 40, 60), angle_deg=90), "Zebra", ("Zebra", (10, 30, 50, 50))),
        (Polygon(((0, 0), (10.00001, 0), (5, 10))), "Lake", ("Lake", (0, 0, 10, 10))),
        (Polygon(((90, 10), (110, 10), (110, 30), (90, 30))), "Lake", ("Lake", (90, 10, 100, 30))),
        (Mask(((SQUARE,), (TRIANGLE,))), "Lake", ("Lake", (10, 10, 60, 60))),
    ],
    ids=["a box", "beyond the border", "a label that has an alias now", "a turned box", "a polygon", "a polygon beyond the border", "a mask of two parts"],
)  # fmt: skip
def test_what_becomes_of_a_shape(shape: Shape, label: str, expected: tuple[str, tuple[float, ...]]) -> None:
    assert drawn(frozen(task(1, said(1, region(shape, label))))) == [
        (expected[0], pytest.approx(expected[1], abs=0.01))
    ]


@pytest.mark.parametrize(
    ("one", "dropped"),
    [
        (region(Box((10, 20, 30, 40)), "Bus"), Dropped("unknown-label", "Bus", 1)),
        (region(Box((10, 20, 30, 40)), None), Dropped("no-label", "", 1)),
        (region(Point(5, 5), "Zebra"), Dropped("no-box", "Zebra", 1)),
        (region(Raw({"type": "brushlabels"}), None), Dropped("no-box", "raw", 1)),
        (region(Box((10, 20, 10, 40))), Dropped("no-area", "Zebra", 1)),
        (region(Box((110, 20, 130, 40))), Dropped("no-area", "Zebra", 1)),
        (region(Polygon(((200, 200), (210, 200), (210, 220))), "Lake"), Dropped("no-area", "Lake", 1)),
        (region(Box((10, 20, 30, 40)), media=MediaKey("second")), Dropped("other-picture", "Zebra", 1)),
    ],
    ids=["a label that was removed", "no label", "a point", "a brush stroke", "flat", "outside", "a polygon outside", "a picture that was removed"],
)  # fmt: skip
def test_a_region_that_cannot_be_learned_is_dropped_and_its_neighbours_stay(one: Region, dropped: Dropped) -> None:
    manifest = frozen(task(1, said(1, one, box(40))))
    assert manifest.dropped == (dropped,)
    assert drawn(manifest) == [("Zebra", (40, 10, 60, 30))]


def test_a_mask_keeps_the_outlines_of_its_parts() -> None:
    mask = Mask(((TRIANGLE,), (SPECK,), (SQUARE, ((15.0, 15.0), (20.0, 20.0), (20.0, 15.0)))))
    manifest = frozen(task(1, said(1, region(mask, "Lake"))))
    (one,) = manifest.items[0].drawn
    assert (one.outline, one.others) == (SQUARE, (TRIANGLE,)), "the largest first, holes filled, no specks"
    assert decode(encode(manifest)).items == manifest.items
    (instance,) = as_coco(manifest, manifest.items[0].side).annotations
    assert instance.segmentation == tuple(
        tuple(number for point in ring for number in point) for ring in (SQUARE, TRIANGLE)
    )
    assert (instance.bbox, instance.area) == ((10, 10, 50, 50), 450)
    (larger,) = scaled([one], x=2, y=3)
    assert larger.others == (((100, 150), (100, 180), (120, 180)),)


@pytest.mark.parametrize(
    ("controls", "learns"),
    [
        ('<BrushLabels name="b" toName="img"><Label value="x"/></BrushLabels>', "masks"),
        ('<Brush name="b" toName="img"/><Labels name="l" toName="img"><Label value="x"/></Labels>', "masks"),
        (
            '<BrushLabels name="b" toName="img"><Label value="x"/></BrushLabels><Rectangle name="r" toName="img"/>',
            "boxes",
        ),
        ('<Brush name="b" toName="img"/><Choices name="c" toName="img"><Choice value="x"/></Choices>', "choices"),
    ],
    ids=["a brush", "a brush and its labels", "boxes too", "a brush without labels"],
)
def test_where_there_is_only_a_brush_masks_are_learned(controls: str, learns: str) -> None:
    words = vocabulary(parse_config(f'<View><Image name="img" value="$image"/>{controls}</View>'))
    assert (words.learns, words.labels) == (learns, ("x",))


def test_what_is_said_about_the_whole_picture_is_no_region() -> None:
    manifest = frozen(task(1, said(1, region(Whole(), "day"))))
    assert (manifest.items[0].drawn, manifest.dropped) == ((), ())


def test_an_empty_picture_stays_and_a_skipped_one_goes() -> None:
    manifest = frozen(
        task(1, said(1)),
        task(2, said(2, box(10), skipped=True)),
        task(3, said(3, skipped=True), said(4, box(10))),
        task(4),
        task(5, said(5, box(1)), fields=()),
    )
    assert [(item.task_id, len(item.drawn)) for item in manifest.items] == [(1, 0), (3, 1)]
    assert [(left.task_id, left.reason) for left in manifest.left_out] == [
        (2, "skipped"),
        (4, "unlabelled"),
        (5, "no-picture"),
    ]


def test_every_picture_of_a_task_is_an_item_on_the_same_side() -> None:
    words = vocabulary(
        parse_config(
            CONFIG.replace('value="$image"/>', 'value="$image"/><Image name="b" value="$back"/>').replace(
                'toName="img">', 'toName="img,b">', 1
            )
        )
    )
    back = region(Box((1, 1, 9, 9)), media=MediaKey("back"))
    manifest = frozen(*(task(n, said(n, box(10), back), fields=("image", "back")) for n in range(1, 40)), words=words)
    assert len(manifest.items) == 78
    assert all(len(item.drawn) == 1 for item in manifest.items)
    sides = {
        item.task_id: {other.side for other in manifest.items if other.task_id == item.task_id}
        for item in manifest.items
    }
    assert all(len(found) == 1 for found in sides.values())


# --- several annotators -----------------------------------------------------------------------------


def minutes(number: int) -> datetime:
    return NOON + timedelta(minutes=number)


OLD, NEW = said(1, box(0)), said(2, box(2), updated_at=minutes(5))
TRUE = said(3, box(4), ground_truth=True, updated_at=minutes(-9))
SKIPPED = said(4, box(6), skipped=True, updated_at=minutes(9))


@pytest.mark.parametrize(
    ("annotations", "how", "expected"),
    [
        ((OLD, NEW, SKIPPED), "latest", [2]),
        ((OLD, NEW, TRUE), "latest", [2]),
        ((OLD, NEW, TRUE), "ground_truth", [3]),
        ((OLD, NEW), "ground_truth", [2]),
        ((OLD, NEW, TRUE), "consensus", [3]),
        ((OLD, NEW, SKIPPED), "consensus", [1, 2]),
        ((OLD, NEW, said(5, box(8), author_id=1, updated_at=minutes(1))), "consensus", [2, 5]),
        ((said(1, box(0), author_id=None), said(2, box(1), author_id=None)), "consensus", [1, 2]),
        ((said(1, box(0), updated_at=None), said(2, box(1), updated_at=None)), "latest", [2]),
        ((SKIPPED,), "latest", []),
    ],
    ids=["the latest", "ground truth does not matter", "ground truth", "no ground truth", "ground truth settles it",
         "everybody", "the latest of each", "unknown people", "nobody knows when", "only skipped"],
)  # fmt: skip
def test_whose_word_counts(annotations: tuple[Annotation, ...], how: Any, expected: list[int]) -> None:
    for order in (annotations, annotations[::-1]):
        assert [one.id for one in chosen(order, how=how)] == expected


def thing(left: float, top: float = 0.0, label: str = "Zebra", size: float = 20.0) -> Drawn:
    return Drawn(label, (left, top, left + size, top + size))


def test_a_consensus_is_what_most_drew() -> None:
    votes = [[thing(0), thing(50)], [thing(2), thing(50, label="car")], [thing(1, 1), thing(50, 60)]]
    agreed, alone = consensus(votes)
    assert agreed == [Drawn("Zebra", (1, 0, 21, 20))], "the median of each side"
    assert sorted(alone) == [thing(50), thing(50, 60), thing(50, label="car")]


def test_half_is_no_majority() -> None:
    assert consensus([[thing(0)], []]) == ([], [thing(0)])
    assert consensus([[thing(0)], [thing(0)], [], []])[0] == []
    assert consensus([[thing(0)], [thing(0)], []])[0] == [thing(0)]


def test_two_things_of_one_person_are_never_one() -> None:
    agreed, alone = consensus([[thing(0), thing(4)], [thing(0), thing(4)], [thing(2)]])
    assert len(agreed) == 2
    assert alone == []


def test_an_outline_is_somebodys() -> None:
    outlines = [
        Drawn("Lake", (0, 0, 10, 10), ((0, 0), (10, 0), (10, 10))),
        Drawn("Lake", (0, 0, 12, 12), ((0, 0), (12, 0), (12, 12))),
        Drawn("Lake", (0, 0, 14, 14), ((0, 0), (14, 0), (14, 14))),
    ]
    assert consensus([[one] for one in outlines])[0] == [outlines[1]]


@pytest.mark.parametrize("seed", range(5))
def test_a_consensus_does_not_depend_on_who_comes_first(seed: int) -> None:
    rng = random.Random(seed)
    votes = [
        [thing(rng.randrange(0, 60, 5), rng.randrange(0, 60, 5), rng.choice(["a", "b"])) for _ in range(6)]
        for _ in range(4)
    ]
    again = [rng.sample(vote, len(vote)) for vote in votes]
    assert consensus(again) == consensus(votes)


def test_a_disagreement_is_counted() -> None:
    manifest = frozen(task(1, said(1, box(0), box(50)), said(2, box(1))), annotators="consensus")
    assert drawn(manifest) == [("Zebra", (0.5, 10, 20.5, 30))]
    assert manifest.dropped == (Dropped("no-majority", "Zebra", 1),)
    assert manifest.items[0].annotation_ids == (1, 2)


# --- the split and the digest -----------------------------------------------------------------------


def test_a_task_stays_on_its_side_whatever_happens_to_the_project() -> None:
    before = {number: side_of(number, options=Options()) for number in range(1, 5000)}
    manifest = frozen(*(task(n, said(n, box(n % 60), ground_truth=n % 3 == 0)) for n in range(1, 300, 2)))
    assert all(item.side == before[item.task_id] for item in manifest.items)
    assert sum(side == "val" for side in before.values()) / len(before) == pytest.approx(0.25, abs=0.02)


def test_a_larger_share_only_moves_tasks_into_val_and_another_salt_deals_anew() -> None:
    def val(**options: Any) -> set[int]:
        return {number for number in range(2000) if side_of(number, options=Options(**options)) == "val"}

    assert val(val_share=0.1) < val(val_share=0.3) < val(val_share=0.99)
    assert len(val(val_share=0.3) & val(val_share=0.3, salt="x")) / 2000 == pytest.approx(0.09, abs=0.03)
    assert val(val_share=0.0) == set()


def project(seed: int) -> list[Annotated]:
    """Tasks with up to three annotations of everything that people do."""
    rng = random.Random(seed)
    made = []
    for number in range(1, 40):
        annotations = []
        for author in range(rng.randrange(1, 4)):
            regions = [
                box(rng.randrange(0, 70), rng.randrange(0, 50), rng.choice(["Zebra", "Car", "Lake", "Bus"]))
                for _ in range(rng.randrange(5))
            ]
            annotations.append(
                said(number * 10 + author, *regions, author_id=author, skipped=rng.random() < 0.2,
                     ground_truth=rng.random() < 0.1, updated_at=minutes(rng.randrange(3)))
            )  # fmt: skip
        made.append(task(number, *annotations))
    return made


@pytest.mark.parametrize("annotators", ["latest", "ground_truth", "consensus"])
@pytest.mark.parametrize("seed", range(6))
def test_the_digest_does_not_depend_on_any_order(seed: int, annotators: Any) -> None:
    rng, tasks = random.Random(seed), project(seed)
    shuffled = [
        msgspec.structs.replace(
            one,
            annotations=tuple(
                msgspec.structs.replace(said, regions=tuple(rng.sample(said.regions, len(said.regions))))
                for said in rng.sample(one.annotations, len(one.annotations))
            ),
        )
        for one in rng.sample(tasks, len(tasks))
    ]
    manifest = frozen(*tasks, annotators=annotators)
    assert frozen(*shuffled, annotators=annotators) == manifest
    assert frozen(*shuffled, annotators=annotators).digest == manifest.digest


def test_the_digest_changes_with_what_a_training_sees_and_only_with_that() -> None:
    tasks = [task(n, said(n, box(n))) for n in range(1, 30)]
    digest = frozen(*tasks).digest
    changed = {
        "a box": [*tasks[1:], task(1, said(1, box(1.5)))],
        "an annotation made anew": [*tasks[1:], task(1, said(99, box(1)))],
        "one task less": tasks[1:],
        "a label": [*tasks[1:], task(1, said(1, box(1, label="Lake")))],
        "ground truth": [*tasks[1:], task(1, said(1, box(1), ground_truth=True))],
    }
    assert len({digest, *(frozen(*these).digest for these in changed.values())}) == 1 + len(changed)
    assert frozen(*tasks, salt="x").digest != digest
    assert frozen(*tasks, task(77, said(77, skipped=True))).digest == digest, "what is left out is not seen"


def fetched(manifest: Manifest, **sha256: str) -> Manifest:
    """As after fetching: `a1="x"` says that the picture of task 1 has this hash."""
    items = [
        msgspec.structs.replace(
            item, size=SIZE, file_name=f"{item.task_id}.jpg", sha256=sha256.get(f"a{item.task_id}", str(item.task_id))
        )
        for item in manifest.items
    ]
    return msgspec.structs.replace(manifest, items=tuple(items))


def test_a_picture_that_was_imported_twice_is_not_on_both_sides() -> None:
    sides = {number: side_of(number, options=Options()) for number in range(1, 60)}
    val, train, other = (
        next(n for n, side in sides.items() if side == wanted and n > least)
        for wanted, least in (("val", 0), ("train", 0), ("train", 20))
    )
    manifest = fetched(
        frozen(*(task(n, said(n, box(n))) for n in (val, train, other))), **{f"a{val}": "same", f"a{train}": "same"}
    )
    cleaned = without_twins(manifest)
    assert {item.task_id for item in cleaned.items} == {val, other}
    assert [(left.task_id, left.reason, left.detail) for left in cleaned.left_out] == [
        (train, "twin", f"the same picture as in task {val}, held out")
    ]
    assert without_twins(cleaned) == cleaned


def test_a_manifest_is_what_it_was_when_it_is_read_again() -> None:
    manifest = fetched(frozen(*project(3)))
    assert decode(encode(manifest)) == manifest
    with pytest.raises(DatasetError, match="changed after it was written"):
        decode(encode(manifest).replace(b'"side": "train"', b'"side": "val"', 1))
    with pytest.raises(DatasetError, match="no manifest"):
        decode(b'{"images": []}')


def test_as_coco_has_the_labels_in_order_and_empty_pictures() -> None:
    manifest = fetched(frozen(*(task(n, said(n, *([box(n, label="Lake")] if n % 2 else []))) for n in range(1, 41))))
    both = [as_coco(manifest, side) for side in ("train", "val")]
    assert [(c.id, c.name) for c in both[0].categories] == [(1, "Zebra"), (2, "car"), (3, "Lake")]
    assert [image.id for image in sorted((i for one in both for i in one.images), key=lambda i: i.id)] == list(
        range(1, 41)
    )
    assert {image.task_id for one in both for image in one.images} == set(range(1, 41))
    assert sum(len(one.annotations) for one in both) == 20
    assert {a.category_id for one in both for a in one.annotations} == {3}
    assert len({a.id for one in both for a in one.annotations}) == 20

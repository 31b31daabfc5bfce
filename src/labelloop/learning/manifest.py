"""A data set, frozen: which pictures or texts, what people said about them, and on which side of the split each is.

The manifest decides what a training sees, so its digest is part of a version's lineage: the same digest means the same
pictures, texts, boxes, choices, labels and split, whoever pulled them and in which order they came.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from labelloop.core.decoding import convert
from labelloop.core.outlines import bounding_box
from labelloop.core.regions import Box, Mask, MediaKey, Polygon, Size
from labelloop.core.tasks import Learns
from labelloop.formats import coco
from labelloop.formats.coco import DatasetError

if TYPE_CHECKING:  # it reads the environment with pydantic: a fifth of a second that a trainer need not pay
    from labelloop.core.settings import Settings

Side = Literal["train", "val"]
Reads = Literal["pictures", "texts"]
Annotators = Literal["ground_truth", "latest", "consensus"]

SIDES: tuple[Side, ...] = ("train", "val")
FORMAT = 1
"""Part of the digest: a later release that freezes differently must not claim to have seen the same data."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How annotations become a data set. `val_share` in (0, 1) of the tasks is held out; another `salt` deals them
    anew. `annotators` says whose word counts where several people annotated a task (`dataset.chosen`)."""

    val_share: float = 0.25
    salt: str = ""
    annotators: Annotators = "ground_truth"


def options_of(settings: Settings) -> Options:
    """What the settings say."""
    return Options(settings.val_share, settings.split_salt, settings.annotators)


Outline = tuple[tuple[float, float], ...]


class Drawn(msgspec.Struct, frozen=True, omit_defaults=True, order=True):
    """One labelled thing: an upright box around it in pixels of the upright picture, rounded to thousandths, and its
    outline where it is a polygon, a turned box or a mask; `others` are those of a mask's other parts. A mask's holes
    are filled."""

    label: str
    xyxy: tuple[float, float, float, float]
    outline: Outline = ()
    others: tuple[Outline, ...] = ()

    @property
    def shape(self) -> Box | Polygon | Mask:
        if self.others:
            return Mask(tuple((ring,) for ring in (self.outline, *self.others)))
        return Polygon(self.outline) if self.outline else Box(self.xyxy)


class Item(msgspec.Struct, frozen=True):
    """One picture or text of one task. An empty `drawn` is a statement too: a person saw nothing to label there. `said`
    are the labels that were chosen for the whole item, in their order in the config.

    `size`, `sha256` (of the bytes as they are stored where the task names them) and `file_name` are known once the
    picture was fetched; until then `size` is what the annotations say, if anything. `text` is what a person reads, None
    for a picture and for a text at an address that was not fetched yet (with `markup`: as HTML).
    """

    task_id: int
    media: MediaKey
    uri: str
    side: Side
    annotation_ids: tuple[int, ...]
    drawn: tuple[Drawn, ...]
    ground_truth: bool = False
    size: Size | None = None
    sha256: str = ""
    file_name: str = ""
    said: tuple[str, ...] = ()
    text: str | None = None
    markup: bool = False


class LeftOut(msgspec.Struct, frozen=True, order=True):
    """A task, or a picture of it, that is not in the data set. `reason` is a short stable name, `detail` for people."""

    task_id: int
    reason: str
    detail: str = ""


class Dropped(msgspec.Struct, frozen=True, order=True):
    """Regions of one kind that are not in the data set while their pictures are."""

    reason: str
    label: str
    regions: int


class Manifest(msgspec.Struct, frozen=True):
    """`labels` are the classes, in the order of the project's config. Items are in order of task and picture. `learns`
    says which part of an item people filled, `reads` what an item is, and `several` that more than one choice may be
    true."""

    project_id: int
    labels: tuple[str, ...]
    options: Options
    items: tuple[Item, ...]
    left_out: tuple[LeftOut, ...] = ()
    dropped: tuple[Dropped, ...] = ()
    learns: Learns = "boxes"
    reads: Reads = "pictures"
    several: bool = False

    @property
    def digest(self) -> str:
        """sha256, hex, over what a training sees: not over where a picture was fetched, nor over what is left out."""
        rows = [
            (
                item.task_id, item.media, item.side, item.annotation_ids, item.ground_truth, item.size,
                item.sha256 or item.uri,
                scaled(item.drawn, x=1.0, y=1.0),  # as rounded as it will be read again, whoever made it
                *((item.said, item.text) if self.learns == "choices" else ()),
            )
            for item in self.items
        ]  # fmt: skip
        kind = [self.learns, self.several] if self.learns == "choices" else []
        content = msgspec.json.encode((FORMAT, self.labels, rows, *kind), order="deterministic")
        return hashlib.sha256(content).hexdigest()

    def on(self, side: Side) -> tuple[Item, ...]:
        """The items on one side."""
        return tuple(item for item in self.items if item.side == side)


def side_of(task_id: int, *, options: Options) -> Side:
    """Where a task is, whatever else is in the project: a hash of its id and the salt, compared with the share.

    Nothing else decides. A task that moved between the sides, when it became ground truth for instance, would be held
    out from a model that had learned it. A larger share moves tasks into val only.
    """
    digest = hashlib.blake2b(f"{options.salt}/{task_id}".encode(), digest_size=8).digest()
    return "val" if int.from_bytes(digest) < options.val_share * 2**64 else "train"


def without_twins(manifest: Manifest) -> Manifest:
    """Leaves pictures (texts) out of train whose very bytes are in val too: people import pictures twice, and a model
    must not be tested on what it learned. For manifests whose pictures were fetched."""
    held_out = {item.sha256: item.task_id for item in reversed(manifest.on("val")) if item.sha256}
    twins = [item for item in manifest.on("train") if item.sha256 in held_out]
    gone = [
        LeftOut(t.task_id, "twin", f"the same {manifest.reads[:-1]} as in task {held_out[t.sha256]}, held out")
        for t in twins
    ]
    return msgspec.structs.replace(
        manifest,
        items=tuple(item for item in manifest.items if item not in twins) if twins else manifest.items,
        left_out=tuple(sorted([*manifest.left_out, *gone])),
    )


def as_coco(manifest: Manifest, side: Side) -> coco.Dataset:
    """One side as COCO detection data: category ids 1..n in the order of the labels. For manifests whose pictures were
    fetched. Ids of pictures and instances count through both sides, so that the two files can be joined."""
    category = {label: number for number, label in enumerate(manifest.labels, 1)}
    images, instances = list[coco.Image](), list[coco.Instance]()
    first = 1
    for number, item in enumerate(manifest.items, 1):
        if item.side == side:
            if item.size is None:
                raise ValueError(f"the picture of task {item.task_id} was not fetched")
            images.append(coco.Image(number, item.file_name, *item.size, task_id=item.task_id))
            instances += _instances(item, number, category, first)
        first += len(item.drawn)
    categories = tuple(coco.Category(number, label) for label, number in category.items())
    return coco.Dataset(tuple(images), tuple(instances), categories)


def as_rows(manifest: Manifest, side: Side) -> list[dict[str, Any]]:
    """One side of a data set of choices, an object for each item: its task, its text or the name of its picture, and
    the labels that were chosen."""
    return [
        {"task_id": item.task_id}
        | ({"text": item.text} if manifest.reads == "texts" else {"file_name": item.file_name})
        | {"labels": list(item.said)}
        for item in manifest.on(side)
    ]


def _instances(item: Item, image_id: int, category: Mapping[str, int], first: int) -> Iterator[coco.Instance]:
    for number, drawn in enumerate(item.drawn, first):
        made = coco.instance_of(drawn.shape, id=number, image_id=image_id, category_id=category[drawn.label])
        if made is not None:
            yield made


def encode(manifest: Manifest) -> bytes:
    """`manifest.json`: the manifest and its digest."""
    return msgspec.json.format(msgspec.json.encode({"digest": manifest.digest, **msgspec.to_builtins(manifest)}))


def decode(content: bytes) -> Manifest:
    """Read what `encode` wrote. Raises DatasetError: no manifest, or one that was changed since."""
    try:
        found = msgspec.json.decode(content)
        manifest = convert(found, Manifest)
        digest = found["digest"]
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise DatasetError(f"This is no manifest of labelloop: {error}.", hint="Export the data set again.") from error
    if manifest.digest != digest:
        raise DatasetError("The manifest was changed after it was written.", hint="Export the data set again.")
    return manifest


def scaled(drawn: Sequence[Drawn], *, x: float, y: float) -> tuple[Drawn, ...]:
    """The same things on a picture that is `x` times as wide and `y` times as high."""
    return tuple(
        Drawn(
            one.label,
            rounded((one.xyxy[0] * x, one.xyxy[1] * y, one.xyxy[2] * x, one.xyxy[3] * y)),
            tuple(rounded((px * x, py * y)) for px, py in one.outline),
            tuple(tuple(rounded((px * x, py * y)) for px, py in ring) for ring in one.others),
        )
        for one in drawn
    )


def around(label: str, *outlines: Outline) -> Drawn | None:
    """A thing with these outlines, the first its largest; None where it has no extent."""
    rings = tuple(tuple(rounded(point) for point in outline) for outline in outlines)
    box = bounding_box(Mask((rings,)))
    if box is None or box.xyxy[0] >= box.xyxy[2] or box.xyxy[1] >= box.xyxy[3]:
        return None
    return Drawn(label, box.xyxy, rings[0], rings[1:])


def rounded(numbers: Iterable[float]) -> tuple[Any, ...]:
    """To thousandths of a pixel: percentages come back with noise in the thirteenth digit. Whole numbers and minus zero
    become what JSON will bring back, or equal boxes would differ in the digest."""
    return tuple(round(float(number), 3) + 0.0 for number in numbers)

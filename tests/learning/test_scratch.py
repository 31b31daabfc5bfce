"""The trainer `scratch`: geometry of its pictures and targets, its file against its net, resuming, refusing, learning."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs the extra train")

from labelloop.core.cards import ModelCard  # noqa: E402
from labelloop.core.errors import LabelloopError  # noqa: E402
from labelloop.core.pictures import Picture  # noqa: E402
from labelloop.core.regions import Box, Size  # noqa: E402
from labelloop.demo import belt  # noqa: E402
from labelloop.engines.base import EngineOptions  # noqa: E402
from labelloop.engines.detect import DetectEngine  # noqa: E402
from labelloop.learning.trainers import process  # noqa: E402
from labelloop.learning.trainers.base import Progress, Stopped, TrainerFailed, TrainRequest  # noqa: E402
from labelloop.learning.trainers.scratch import ScratchTrainer  # noqa: E402
from labelloop.learning.trainers.scratch.export import differences, weights_of, write_onnx  # noqa: E402
from labelloop.learning.trainers.scratch.network import Detector, boxes_of, peaks  # noqa: E402
from labelloop.learning.trainers.scratch.pictures import (  # noqa: E402
    Album,
    Changes,
    Sample,
    ahead,
    batches,
    change,
    fitting_side,
    read_samples,
)
from labelloop.learning.trainers.scratch.targets import giou, loss_of, targets  # noqa: E402
from labelloop.learning.trainers.scratch.training import has_bfloat16, normalised  # noqa: E402
from reference.coco_map import Detection, box_map  # noqa: E402
from reference.own_children import own_children  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("belt")
    belt.write_data_set(folder, train=range(6), val=range(6, 8))
    (folder / "manifest.json").write_text("{}")
    return folder


def request(data: Path, out: Path, **changes: Any) -> TrainRequest:
    options = {"side": 160, "batch": 2, "max_steps": 4} | changes.pop("options", {})
    out.mkdir(parents=True, exist_ok=True)
    return TrainRequest(data=data, labels=belt.LABELS, out=out, budget_s=600, options=options, **changes)


def quiet(progress: Progress) -> None:
    assert progress.loss is None or np.isfinite(progress.loss)


# --- pictures ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_box_goes_where_its_pixels_go(seed: int) -> None:
    """A white rectangle, zoomed, mirrored and moved, is found again at its box, to the pixel."""
    picture = np.zeros((150, 200, 3), np.uint8)
    picture[40:90, 60:140] = 255
    sample = Sample(Path(), (400, 300), np.array([[120, 80, 280, 180]], np.float32), np.array([0]))
    rng = np.random.default_rng(seed)
    changes = Changes(zoom=1.5, colour=0.0, flip=True, flip_vertical=True)
    moved, boxes, classes = change(picture, sample, side=160, changes=changes, rng=rng)
    white = (moved > 127).all(axis=2)
    rows, columns = np.flatnonzero(white.any(axis=1)), np.flatnonzero(white.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    assert moved.shape == (160, 160, 3)
    assert list(classes) == [0]
    assert np.abs(boxes[0] - seen).max() <= 1


def test_what_is_mostly_outside_after_cropping_is_gone() -> None:
    picture = np.zeros((100, 100, 3), np.uint8)
    boxes = np.array([[0, 0, 10, 10], [45, 45, 55, 55]], np.float32)
    sample = Sample(Path(), (100, 100), boxes, np.array([0, 1]))

    class Middle:
        """Zooms in twice, on the middle."""

        @staticmethod
        def uniform(low: float, high: float, size: int | None = None) -> Any:
            return np.zeros(size) if size else (1.0 if (low, high) == (-1, 1) else (low + high) / 2)

    _, kept, classes = change(
        picture,
        sample,
        side=100,
        changes=Changes(zoom=2.0, flip=False, colour=0),
        rng=Middle(),  # type: ignore[arg-type]
    )
    assert list(classes) == [1]
    assert kept.tolist() == [[40, 40, 60, 60]]


def test_samples_leave_out_crowds_and_unknown_categories(tmp_path: Path) -> None:
    rows = [
        {"image_id": 1, "category_id": 7, "bbox": [1, 2, 3, 4]},
        {"image_id": 1, "category_id": 7, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": 1, "category_id": 9, "bbox": [0, 0, 9, 9]},
    ]
    coco = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 20, "height": 10}, {"id": 2, "file_name": "b.jpg", "width": 5, "height": 5}],
        "annotations": rows,
        "categories": [{"id": 7, "name": "dog"}, {"id": 9, "name": "stone"}],
    }  # fmt: skip
    (tmp_path / "train.json").write_text(json.dumps(coco))
    first, second = read_samples(tmp_path, "train", ("cat", "dog"))
    assert first.xyxy.tolist() == [[1, 2, 4, 6]]
    assert first.classes.tolist() == [1]
    assert second.xyxy.shape == (0, 4), "a picture without objects stays, as a negative"


@pytest.mark.parametrize(
    ("object_px", "side"), [(100, 320), (32, 320), (30, 416), (20, 512), (4, 640)], ids=lambda value: str(value)
)
def test_the_side_follows_from_the_smallest_tenth_of_the_objects(object_px: int, side: int) -> None:
    box = np.array([[0, 0, object_px, object_px]], np.float32)
    assert fitting_side([Sample(Path(), (640, 480), box, np.array([0]))] * 5) == side


def test_batches_are_the_same_again_and_each_picture_comes_once_a_round(data: Path) -> None:
    samples = read_samples(data, "train", belt.LABELS)
    kwargs: dict[str, Any] = {"side": 96, "size": 3, "labels": 4, "changes": Changes(), "seed": 5}

    def take(start: int, count: int, memory: int) -> list[Any]:
        album = Album(samples, side=96, memory_bytes=memory)
        stream = ahead(batches(album, start=start, **kwargs))
        taken = [next(stream) for _ in range(count)]
        stream.close()
        return taken

    whole, resumed = take(0, 4, 10**9), take(2, 2, 0)
    for one, two in zip(whole[2:], resumed, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(one, two, strict=True))
    still = Changes(zoom=1.0, colour=0.0, flip=False)
    album = Album(samples, side=96, memory_bytes=10**9)
    stream = batches(album, start=0, **(kwargs | {"changes": still}))
    first_round = np.concatenate([next(stream).pictures for _ in range(2)])
    assert len({picture.tobytes() for picture in first_round}) == 6


def test_an_unreadable_picture_reaches_the_caller(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    sample = Sample(tmp_path / "broken.jpg", (9, 9), np.zeros((0, 4), np.float32), np.zeros(0, np.intp))
    album = Album([sample], side=96, memory_bytes=0)
    with pytest.raises(LabelloopError, match=r"broken\.jpg"):
        next(ahead(batches(album, side=96, size=1, labels=1, changes=Changes(), seed=0, start=0)))


# --- targets and losses -----------------------------------------------------------------------------


def test_targets_of_one_box() -> None:
    made = targets(np.array([[16, 24, 48, 40]], np.float32), np.array([1]), count=2, side=64)
    assert made.heat[0].max() == 0
    assert np.unravel_index(made.heat[1].argmax(), (8, 8)) == (4, 4), "the cell of the middle (32, 32)"
    assert made.heat[1, 4, 4] == 1
    assert made.heat[1, 4, 5] == made.heat[1, 4, 3] < 1
    taught = made.weight > 0
    assert (made.box[taught] == [16, 24, 48, 40]).all()
    assert made.weight.sum() == pytest.approx(np.log(32 * 16), rel=1e-5)


def test_a_small_object_is_not_lost_under_a_large_one() -> None:
    boxes = np.array([[24, 24, 40, 40], [0, 0, 64, 64]], np.float32)
    made = targets(boxes, np.array([0, 0]), count=1, side=64)
    assert made.box[4, 4].tolist() == [24, 24, 40, 40]
    assert made.box[2, 2].tolist() == [0, 0, 64, 64]


@pytest.mark.parametrize("box", [[0, 0, 64, 64], [62, 62, 64, 64], [0, 0, 2, 64]], ids=["all", "corner", "edge"])
def test_targets_at_the_border_stay_inside(box: list[float]) -> None:
    made = targets(np.array([box], np.float32), np.array([0]), count=1, side=64)
    assert made.heat.max() == 1
    assert np.isfinite(made.weight).all()


@pytest.mark.parametrize(
    ("first", "second", "value"),
    [
        ([0, 0, 2, 2], [0, 0, 2, 2], 1.0),
        ([0, 0, 2, 2], [1, 0, 3, 2], 1 / 3),  # overlap 2, union 6, hull 6
        ([0, 0, 1, 1], [2, 0, 3, 1], -1 / 3),  # union 2, hull 3
    ],
    ids=["the-same", "half", "apart"],
)
def test_generalised_iou(first: list[float], second: list[float], value: float) -> None:
    assert giou(torch.tensor([first]).float(), torch.tensor([second]).float()).item() == pytest.approx(value)


def test_the_loss_is_least_for_the_right_answer() -> None:
    made = targets(np.array([[16, 24, 48, 40]], np.float32), np.array([1]), count=2, side=64)
    wanted = [torch.from_numpy(part[None]) for part in made]
    right_heat = torch.where(wanted[0].eq(1), 9.0, -9.0)
    sides = torch.tensor([2.5, 1.5, 1.5, 0.5]).log().reshape(1, 4, 1, 1).expand(1, 4, 8, 8)
    right = loss_of((right_heat, sides), *wanted)
    assert boxes_of(sides)[0, 4 * 8 + 4].tolist() == pytest.approx([16, 24, 48, 40], abs=1e-4)
    for wrong in ((-right_heat, sides), (right_heat.flip(1), sides), (right_heat, sides + 1), (right_heat, sides - 1)):
        assert loss_of(wrong, *wanted) > right + 0.1


# --- the file ---------------------------------------------------------------------------------------


def lively_net(classes: int, seed: int = 0) -> Detector:
    """Weights and running statistics as after some training: nothing is at its start, where mistakes would cancel out."""
    torch.manual_seed(seed)
    net = Detector(classes)
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if "norm" in name and value.ndim:
                value.copy_(torch.rand_like(value) + 0.5)
        net.heat.weight.mul_(8)
    return net.eval()


def test_the_file_says_what_the_net_says_for_any_batch(tmp_path: Path) -> None:
    net = lively_net(3)
    write_onnx(net, tmp_path / "m.onnx", labels=("a", "b", "c"), side=96)
    for count in (1, 3):
        pixels, score = differences(net, tmp_path / "m.onnx", torch.randn(count, 3, 96, 96))
        assert pixels < 1e-3
        assert score < 1e-5


def test_a_file_that_says_something_else_is_noticed(tmp_path: Path) -> None:
    net, other = lively_net(3), lively_net(3, seed=1)
    write_onnx(net, tmp_path / "m.onnx", labels=("a", "b", "c"), side=96)
    pixels, _ = differences(other, tmp_path / "m.onnx", torch.randn(1, 3, 96, 96))
    assert pixels > 0.01


def test_the_file_alone_is_recognised_and_prepared_as_in_training(tmp_path: Path) -> None:
    """No card: family, labels and preparation follow from the file; boxes are those of the net's own peaks."""
    net = lively_net(2)
    write_onnx(net, tmp_path / "m.onnx", labels=("cat", "dog"), side=96)
    engine = DetectEngine(tmp_path / "m.onnx", ModelCard(name="m"), EngineOptions(device="cpu"))
    assert (engine.card.family, engine.classes, engine.card.input.size_wh) == ("mmdeploy", ("cat", "dog"), (96, 96))
    rgb = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    regions = engine.predict([engine.prepare(Picture(rgb=rgb, size=Size(96, 96)))])[0]
    bgr = np.ascontiguousarray(rgb[None, ..., ::-1])
    with torch.no_grad():
        dets, labels = peaks(*net(normalised(torch.from_numpy(bgr))), most=5)
    for region, det, label in zip(regions, dets[0], labels[0], strict=False):
        assert isinstance(region.shape, Box)
        assert region.label == ("cat", "dog")[int(label)]
        assert region.score == pytest.approx(float(det[4]), abs=1e-4)
        assert region.shape.xyxy == pytest.approx(det[:4].clamp(0, 96).tolist(), abs=0.01)


def test_weights_come_back_from_the_file(tmp_path: Path) -> None:
    net = lively_net(2)
    write_onnx(net, tmp_path / "m.onnx", labels=("cat", "dog"), side=96)
    back = weights_of(tmp_path / "m.onnx")
    for name, value in net.state_dict().items():
        assert not value.ndim or torch.equal(back[name], value), name


# --- the trainer ------------------------------------------------------------------------------------


def test_a_run_leaves_a_served_file(data: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    trained = ScratchTrainer().train(request(data, tmp_path / "out"), seen.append)
    assert [event.step for event in seen] == [0, 1, 2, 3, 4]
    assert seen[-1].steps == 4
    assert trained.metrics["parity_px"] <= 0.01
    assert trained.card.labels == belt.LABELS
    completed = DetectEngine.describe(trained.model, trained.card)
    assert completed.input.size_wh == (160, 160)
    assert completed.iou_threshold == 0.6


def test_a_stopped_run_goes_on_where_it_was_and_ends_as_if_it_had_not_been_stopped(data: Path, tmp_path: Path) -> None:
    def stop_at_two(progress: Progress) -> None:
        if progress.step == 2:
            raise Stopped

    with pytest.raises(Stopped):
        ScratchTrainer().train(request(data, tmp_path / "a"), stop_at_two)
    seen: list[Progress] = []
    resumed = ScratchTrainer().train(request(data, tmp_path / "a"), seen.append)
    assert seen[0].message == "going on from step 2"
    assert [event.step for event in seen] == [2, 3, 4]
    whole = ScratchTrainer().train(request(data, tmp_path / "b"), quiet)
    one, two = weights_of(resumed.model), weights_of(whole.model)
    assert all(torch.allclose(one[name], two[name], atol=1e-4) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"seed": 1}, {"options": {"zoom": 1.1}}], ids=["seed", "option"])
def test_another_request_does_not_take_over_the_checkpoint(data: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    ScratchTrainer().train(request(data, tmp_path / "out"), quiet)
    seen: list[Progress] = []
    ScratchTrainer().train(request(data, tmp_path / "out", **change), seen.append)
    assert seen[0].message == "6 pictures at 160 x 160"


def test_a_damaged_checkpoint_is_not_the_end(data: Path, tmp_path: Path) -> None:
    asked = request(data, tmp_path / "out")
    asked.checkpoint.write_bytes(b"half of a file")
    seen: list[Progress] = []
    ScratchTrainer().train(asked, seen.append)
    assert seen[-1].step == 4


def test_a_second_round_starts_from_the_first_with_labels_where_they_are_now(data: Path, tmp_path: Path) -> None:
    first = ScratchTrainer().train(request(data, tmp_path / "one"), quiet)
    turned = ("washer", "new", *belt.LABELS[:2])
    asked = msgspec.structs.replace(
        request(data, tmp_path / "two", options={"max_steps": 0}), labels=turned, base=first.model, base_card=first.card
    )
    second = ScratchTrainer().train(asked, quiet)
    old, new = weights_of(first.model), weights_of(second.model)
    assert torch.equal(new["stem.conv.weight"], old["stem.conv.weight"])
    for label in ("washer", "bolt", "nut"):
        assert torch.equal(new["heat.weight"][turned.index(label)], old["heat.weight"][belt.LABELS.index(label)])
    assert second.card.labels == turned


def test_what_is_refused(data: Path, tmp_path: Path, shared: Path) -> None:
    trainer = ScratchTrainer()
    asked = request(data, tmp_path / "out")
    assert trainer.refuses(asked) is None
    assert "no labels" in str(trainer.refuses(msgspec.structs.replace(asked, labels=())))
    foreign = msgspec.structs.replace(asked, base=shared / "data/models/nanodet_m_320.onnx")
    assert "Leave the base model out" in str(trainer.refuses(foreign))
    empty = tmp_path / "empty"
    belt.write_data_set(empty, train=(), val=())
    assert "no box" in str(trainer.refuses(msgspec.structs.replace(asked, data=empty)))


@pytest.mark.parametrize(
    ("options", "message"),
    [({"side": 100}, "no multiple of 32"), ({"rates": 1}, "Did you mean 'rate'")],
    ids=["side", "misspelt"],
)
def test_wrong_options_are_named(data: Path, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(LabelloopError, match=message):
        ScratchTrainer().train(request(data, tmp_path / "out", options=options), quiet)


def test_no_time_for_a_single_step_is_an_error_and_no_model(data: Path, tmp_path: Path) -> None:
    asked = msgspec.structs.replace(request(data, tmp_path / "out", options={"max_steps": None}), budget_s=0.001)
    with pytest.raises(LabelloopError, match="not enough for a single step"):
        ScratchTrainer().train(asked, quiet)
    assert not (tmp_path / "out" / "model.onnx").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_trains_on_the_cpu_and_says_so(data: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    ScratchTrainer().train(request(data, tmp_path / "out", device="cuda", options={"max_steps": 1}), seen.append)
    assert seen[0].message == "6 pictures at 160 x 160, on the CPU: this torch cannot use cuda"


def test_bfloat16_is_used_only_where_the_processor_has_it() -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("needs /proc/cpuinfo")
    text = flags.read_text()
    assert has_bfloat16(torch.device("cpu")) == ("avx512_bf16" in text or "amx_tile" in text)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds the child in /proc")
def test_a_run_killed_in_the_middle_goes_on_from_its_last_checkpoint(data: Path, tmp_path: Path) -> None:
    """A real SIGKILL of the real child process, which writes a checkpoint at every step."""
    asked = request(data, tmp_path / "out", options={"max_steps": 8, "checkpoint_s": 0.0})

    before = own_children()

    def kill_at_three(progress: Progress) -> None:
        if progress.step >= 3:
            (child,) = own_children() - before
            os.kill(child, signal.SIGKILL)

    with pytest.raises(TrainerFailed, match="SIGKILL"):
        process.run("scratch", asked, on_event=kill_at_three)
    seen: list[Progress] = []
    trained = process.run("scratch", asked, on_event=seen.append)
    assert 2 <= int(seen[0].message.removeprefix("going on from step ")) <= 8
    assert trained.metrics["steps"] == 8  # of progress that comes faster than anybody reads, the last may be left out
    assert not [path for path in asked.out.iterdir() if path.name.startswith(".checkpoint")]


@pytest.mark.slow
def test_it_learns_to_find_parts_on_the_belt(tmp_path: Path) -> None:
    """250 steps on 24 pictures: mAP on those pictures; chance, and an untrained net, are at 0."""
    belt.write_data_set(tmp_path / "data", train=range(24), val=())
    asked = request(tmp_path / "data", tmp_path / "out", options={"side": 320, "batch": 4, "max_steps": 250})
    trained = ScratchTrainer().train(asked, quiet)
    engine = DetectEngine(trained.model, trained.card, EngineOptions(device="cpu"))
    found = {}
    for image in json.loads((tmp_path / "data" / "train.json").read_text())["images"]:
        rgb = cv2.imread(str(tmp_path / "data/images" / image["file_name"]), cv2.IMREAD_COLOR_RGB)
        assert rgb is not None
        picture = Picture(rgb=np.asarray(rgb, np.uint8), size=Size(image["width"], image["height"]))
        regions = engine.predict([engine.prepare(picture)])[0]
        found[image["id"]] = [
            Detection(region.shape.xyxy, float(region.score or 0), belt.LABELS.index(str(region.label)))
            for region in regions
            if isinstance(region.shape, Box)
        ]
    assert box_map(found, tmp_path / "data" / "train.json") > 0.25

"""The loop played with a trainer and an engine whose answers are known: choices, curve and edits exactly."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import stub_trainers

from labelloop.core.cards import ModelCard
from labelloop.core.errors import SimulationError
from labelloop.formats import coco
from labelloop.learning import simulate
from labelloop.learning.acquisition import AcquisitionError
from labelloop.learning.annotator import Times
from labelloop.learning.labelled import Source, manifest_of
from labelloop.learning.manifest import Options
from labelloop.learning.pool import Observation
from labelloop.learning.rounds import Pictures
from labelloop.learning.simulate import At, Simulation, chosen
from labelloop.learning.simulation import FULL, Plan, Row, Step, acquisition_of, begin
from labelloop.learning.trainers.base import Progress, Trained, TrainerRefused, TrainRequest, load_trainer
from reference.numbered import write_numbered

POOL, HELD_OUT = range(1, 21), range(101, 111)
TIMES = Times(accept=1, move=10, delete=100, add=1000, picture=10_000)
PLAN = Plan(
    data="d", start="none", strategies=("uncertainty", "random"), seeds=2, budgets=(4, 8, 16), trainer="counting",
    train_s=5.0, times=TIMES,
)  # fmt: skip


class Desk:
    """A folder with pictures, and simulations of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pool, held_out = (
            Source(coco.read(write_numbered(folder / "data", name, numbers)), folder / "data/images")
            for name, numbers in (("train", POOL), ("val", HELD_OUT))
        )
        made = manifest_of(pool, held_out=held_out, options=Options())
        items = tuple(msgspec.structs.replace(item, file_name=f"{item.task_id}.png") for item in made.items)
        self.pictures = Pictures(msgspec.structs.replace(made, items=items), folder / "data/images", 10_000)

    def simulation(self, plan: Plan = PLAN, *, out: str = "out", **more: Any) -> Simulation:
        (self.folder / out).mkdir(exist_ok=True)
        return Simulation(plan, self.pictures, self.folder / out, **more)

    def step(self, name: str, seed: int, size: int) -> Step:
        return msgspec.json.decode((self.folder / f"out/steps/{name}.{seed}.{size}.json").read_bytes(), type=Step)

    @property
    def trainings(self) -> list[str]:
        """Seed and number of pictures of each training so far."""
        log = self.folder / "package/counting.txt"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """Trainers work in this process here, which saves half a second each; tests/cli/test_cli_simulate.py has children."""

    def train(name: str, request: TrainRequest, *, on_event: Callable[[Progress], object]) -> Trained:
        request.out.mkdir(parents=True, exist_ok=True)
        return load_trainer(name).train(request, lambda progress: (on_event(progress), None)[1])

    (tmp_path / "package").mkdir()
    stub_trainers.install(tmp_path / "package", monkeypatch)
    monkeypatch.setattr(simulate, "train", train)
    return Desk(tmp_path)


def timeless(rows: list[Row]) -> list[Row]:
    return [msgspec.structs.replace(row, train_seconds=0.0) for row in rows]


def at_hand(number: int) -> tuple[int, int, int, int]:
    """Accepted, moved, deleted, added on picture `number`, on which the engine `plain` draws its one box in the right
    place, a bit beside it, or elsewhere."""
    return [(0, 0, 1, 1), (1, 0, 0, 0), (0, 1, 0, 0)][number % 3]


def test_choices_curve_and_edits_are_those_that_can_be_worked_out(desk: Desk) -> None:
    rows = list(desk.simulation().run())
    for seed in range(2):
        first = set(chosen([Observation(number) for number in POOL], "random", seed=seed, wanted=4))
        # the engine is the surer the higher the number, so the lowest that are left are chosen, most doubtful first
        left = [number for number in POOL if number not in first]
        assert desk.step("uncertainty", seed, 4).chosen == tuple(left[:4])
        assert desk.step("uncertainty", seed, 8).chosen == tuple(left[4:12])
        assert desk.step("uncertainty", seed, 16).chosen == ()
        order = chosen([Observation(number) for number in POOL], "random", seed=seed, wanted=16)
        assert desk.step("random", seed, 4).chosen == order[4:8]
        assert desk.step("random", seed, 8).chosen == order[8:]

        mine = {(row.strategy, row.pictures): row for row in rows if row.seed == seed}
        start, second = mine["uncertainty", 4], mine["uncertainty", 8]
        assert (start.batch, start.accepted, start.added, start.seconds) == (4, 0, 4, 44_000.0), "drawn by hand"
        did = tuple(map(sum, zip(*map(at_hand, left[:4]), strict=True)))
        assert (second.accepted, second.moved, second.deleted, second.added) == did
        costs = did[0] + 10 * did[1] + 100 * did[2] + 1000 * did[3] + 40_000
        assert (second.batch_seconds, second.seconds) == (costs, 44_000 + costs)
        assert second.edits_per_picture == sum(did[1:]) / 4
        assert [mine["random", size].boxes for size in PLAN.budgets] == [4, 8, 16]
    for row in rows:
        found = row.pictures // 2
        assert row.ap50 == pytest.approx((10 * min(found, 10) + 1) / 101, abs=0.011)
        assert row.ap == pytest.approx(row.ap50)


def test_the_first_training_is_shared_and_everything_is_trained_on_last(desk: Desk) -> None:
    rows = list(desk.simulation().run())
    assert desk.trainings == [f"{seed} {size}" for seed in range(2) for size in (4, 8, 16, 8, 16, 20)]
    points = [("uncertainty", 4), ("random", 4), ("uncertainty", 8), ("uncertainty", 16), ("random", 8), ("random", 16)]
    assert [(row.strategy, row.pictures) for row in rows] == [*points, (FULL, 20)] * 2
    assert not list((desk.folder / "out/rounds").iterdir()), "what a round needed is removed after it"


def test_the_same_plan_gives_the_same_rows_and_another_seed_others(desk: Desk) -> None:
    once, again = (timeless(list(desk.simulation(out=out).run())) for out in ("out", "again"))
    assert once == again
    assert desk.step("random", 0, 4).chosen != desk.step("random", 1, 4).chosen


@pytest.mark.parametrize("trainings", range(1, 6))
def test_a_simulation_that_was_stopped_goes_on_and_ends_as_if_it_had_not(desk: Desk, trainings: int) -> None:
    plan = msgspec.structs.replace(PLAN, seeds=1)
    whole = timeless(list(desk.simulation(plan, out="whole").run()))
    before = len(desk.trainings)

    def stop(at: At) -> None:
        if at.done > trainings:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(desk.simulation(plan, tell=stop).run())
    played = desk.simulation(plan)
    assert played.missing == 6 - trainings
    list(played.run())
    assert {(row.strategy, row.pictures): row for row in timeless(played.rows())} == {
        (row.strategy, row.pictures): row for row in whole
    }
    assert len(desk.trainings) - before <= 7, "only the round that was broken off is trained again"
    assert not played.missing


def test_it_goes_on_with_more_seeds_budgets_and_strategies(desk: Desk) -> None:
    small = msgspec.structs.replace(PLAN, seeds=1, budgets=(4, 8), strategies=("random",), full=False)
    list(desk.simulation(small).run())
    assert desk.trainings == ["0 4", "0 8"]
    list(desk.simulation().run())
    fresh = desk.simulation(out="fresh")
    list(fresh.run())
    assert timeless(desk.simulation().rows()) == timeless(fresh.rows())


def test_a_lost_file_makes_only_what_depends_on_it_anew(desk: Desk) -> None:
    plan = msgspec.structs.replace(PLAN, seeds=1)
    list(desk.simulation(plan).run())
    (desk.folder / "out/steps/random.0.8.json").unlink()
    done = len(desk.trainings)
    list(desk.simulation(plan).run())
    assert desk.trainings[done:] == ["0 8", "0 16"]


def test_a_batch_of_another_size_is_chosen_anew_with_all_that_follows(desk: Desk) -> None:
    plan = msgspec.structs.replace(PLAN, seeds=1, strategies=("random",), full=False)
    list(desk.simulation(plan).run())
    done = len(desk.trainings)
    list(desk.simulation(msgspec.structs.replace(plan, budgets=(4, 8, 12, 16))).run())
    assert desk.trainings[done:] == ["0 8", "0 12", "0 16"]
    assert len(desk.step("random", 0, 8).chosen) == len(desk.step("random", 0, 12).chosen) == 4


def test_progress_grows_to_the_number_of_trainings(desk: Desk) -> None:
    told: list[At] = []
    list(desk.simulation(msgspec.structs.replace(PLAN, seeds=1), tell=told.append).run())
    done = [at.done for at in told]
    assert done == sorted(done)
    assert {at.of for at in told} == {6}
    assert 5 < done[-1] < 6
    assert {at.doing for at in told} == {"training", "measuring"}


def test_a_folder_belongs_to_one_simulation(tmp_path: Path) -> None:
    begin(tmp_path, PLAN)
    begin(tmp_path, msgspec.structs.replace(PLAN, seeds=9, budgets=(4, 8), strategies=("entropy",), full=False))
    cases: dict[str, dict[str, Any]] = {
        "another data set or split": {"data": "e"},
        "another model to start from": {"start": "m"},
        "another trainer: counting then, head now": {"trainer": "head"},
        "another training time: 5.0 then, 60.0 now": {"train_s": 60.0},
        "another number of steps": {"options": {"max_steps": 3}},
        "another threshold: None then, 0.5 now": {"threshold": 0.5},
        "another set of times": {"times": Times()},
        "the budgets 4,8, which can only be continued": {"budgets": (4, 9)},
    }
    for sentence, change in cases.items():
        with pytest.raises(SimulationError, match=sentence):
            begin(tmp_path, msgspec.structs.replace(PLAN, **change))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"budgets": (8, 4)}, "budgets 8, 4 do not grow"),
        ({"budgets": (4, 4)}, "budgets 4, 4 do not grow"),
        ({"budgets": ()}, r"budgets \(none\) do not grow"),
        ({"budgets": (0, 4)}, "budgets 0, 4 do not grow"),
        ({"seeds": 0}, "0 seeds are no simulation"),
        ({"strategies": ()}, "one strategy at least"),
        ({"strategies": ("random", "random")}, "each once"),
        ({"strategies": (FULL,)}, "Training on everything is no strategy"),
        ({"train_s": 0.0}, "0 s are no time to train"),
    ],
)
def test_a_plan_that_makes_no_sense_is_refused(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SimulationError, match=sentence):
        msgspec.structs.replace(PLAN, **change)


def test_names_are_those_of_acquisition_functions() -> None:
    assert acquisition_of("uncertainty", seed=3) == acquisition_of("margin:top-k", seed=3)
    assert acquisition_of("entropy:sum", seed=0).aggregation == "sum"
    with pytest.raises(AcquisitionError, match="There is no strategy called 'entrpy'") as refused:
        acquisition_of("entrpy", seed=0)
    assert "entropy" in refused.value.hint
    with pytest.raises(AcquisitionError, match="There is no aggregation called 'most'"):
        acquisition_of("margin:most", seed=0)


def test_more_than_there_is_cannot_be_chosen(desk: Desk) -> None:
    with pytest.raises(SimulationError, match="A budget of 21 pictures is more than the 20"):
        desk.simulation(msgspec.structs.replace(PLAN, budgets=(4, 21)))


def test_without_boxes_there_is_nothing_to_measure_with(desk: Desk) -> None:
    manifest = desk.pictures.manifest
    empty = tuple(msgspec.structs.replace(item, drawn=()) for item in manifest.items)
    desk.pictures = desk.pictures._replace(manifest=msgspec.structs.replace(manifest, items=empty))
    with pytest.raises(SimulationError, match="10 pictures are held out, and nothing is drawn on them"):
        desk.simulation()


def test_what_the_trainer_has_against_it_is_said_before_any_work(desk: Desk) -> None:
    base = desk.folder / "base.json"
    base.write_text("3")
    with pytest.raises(TrainerRefused, match="It begins with nothing"):
        desk.simulation(start=(base, ModelCard(name="b", engine="plain", labels=("part",)))).check()
    assert desk.trainings == []

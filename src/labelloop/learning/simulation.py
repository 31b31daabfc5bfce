"""What a simulation of the loop is told, and what it finds: a plan, rows of the learning curve, steps."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec

from labelloop.core.decoding import from_json
from labelloop.core.errors import SimulationError
from labelloop.learning.acquisition import Acquisition
from labelloop.learning.annotator import Actions, Times
from labelloop.learning.trainers.base import replace_file

FULL = "full"
"""The name under which rounds that train on everything are kept."""
PLAN = "plan.json"


class Plan(msgspec.Struct, frozen=True):
    """Everything that decides what a simulation finds. `data` and `start` are digests. Strategies, the number of seeds,
    more budgets, and `full` may change when a simulation goes on; nothing else may."""

    data: str
    start: str
    strategies: tuple[str, ...]
    seeds: int
    budgets: tuple[int, ...]
    trainer: str
    train_s: float
    full: bool = True
    options: dict[str, Any] = {}
    threshold: float | None = None
    times: Times = Times()

    def __post_init__(self) -> None:
        for name in self.strategies:
            acquisition_of(name, seed=0)
        if not self.strategies or len(set(self.strategies)) < len(self.strategies):
            raise SimulationError(
                "There must be one strategy at least, each once.", hint="--strategy uncertainty,random"
            )
        if self.seeds < 1:
            raise SimulationError(f"{self.seeds} seeds are no simulation.", hint="Take 3 or more, to see the spread.")
        if not self.budgets or self.budgets[0] < 1 or any(b <= a for a, b in pairwise(self.budgets)):
            raise SimulationError(
                f"The budgets {', '.join(map(str, self.budgets)) or '(none)'} do not grow.",
                hint="Give numbers of pictures, each larger than the one before: --budget 20,40,80",
            )
        if self.train_s <= 0:
            raise SimulationError(f"{self.train_s:g} s are no time to train.", hint="Give seconds: --train-seconds 60")

    def contradiction(self, earlier: Plan) -> str | None:
        """Why this plan cannot go on where `earlier` was, as a sentence; None when it can."""
        free = ("strategies", "seeds", "budgets", "full")
        for name in self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(earlier, name)
            if name not in free and mine != theirs:
                value = "" if name in ("data", "start") else f": {theirs} then, {mine} now"
                return f"The folder holds a simulation with another {_NAMES[name]}{value}."
        common = min(len(self.budgets), len(earlier.budgets))
        if self.budgets[:common] != earlier.budgets[:common]:
            then = ",".join(map(str, earlier.budgets))
            return f"The folder holds a simulation with the budgets {then}, which can only be continued at their end."
        return None


_NAMES = {
    "data": "data set or split",
    "start": "model to start from",
    "trainer": "trainer",
    "train_s": "training time",
    "options": "number of steps",
    "threshold": "threshold",
    "times": "set of times per action",
}


class Row(msgspec.Struct, frozen=True):
    """A point of the curve: what one strategy has reached with one seed after `pictures`, on which there are `boxes`.

    `seconds` of work are estimated, all batches together. `batch` to `added` describe the last batch alone: so many
    pictures, the time for them, and what people did on them, who were shown the model of the round before. `ap` and
    `ap50` in [0, 1] are of the held-out pictures.
    """

    strategy: str
    seed: int
    pictures: int
    boxes: int
    seconds: float
    batch: int
    batch_seconds: float
    accepted: int
    moved: int
    deleted: int
    added: int
    ap: float
    ap50: float
    train_seconds: float

    @property
    def edits_per_picture(self) -> float:
        return (self.moved + self.deleted + self.added) / self.batch

    @property
    def seconds_per_picture(self) -> float:
        return self.batch_seconds / self.batch


class Step(msgspec.Struct, frozen=True):
    """A row, which pictures were `chosen` after it by their ids, and what people did on those."""

    row: Row
    chosen: tuple[int, ...] = ()
    actions: Actions = Actions()


def begin(folder: Path, plan: Plan) -> None:
    """Note in `folder` what is simulated there. Raises SimulationError where that is something else already."""
    path = folder / PLAN
    if path.is_file():
        try:
            earlier = from_json(path.read_bytes(), Plan)
        except msgspec.MsgspecError as error:
            raise SimulationError(f"{path} cannot be read: {error}.", hint="Give another folder with -o.") from error
        why = plan.contradiction(earlier)
        if why:
            raise SimulationError(why, hint="Repeat the command that began it, or give another folder with -o.")
    save(path, plan)


def acquisition_of(name: str, *, seed: int) -> Acquisition:
    """The acquisition function that "uncertainty" (the one that projects get by default), "entropy" or "entropy:sum"
    mean. Raises AcquisitionError with the near name, SimulationError for the name that is taken."""
    strategy, _, aggregation = name.partition(":")
    if strategy == FULL:
        raise SimulationError("Training on everything is no strategy.", hint="It is done anyway, unless --no-full.")
    given = {} if strategy == "uncertainty" else {"strategy": strategy}
    if aggregation:
        given["aggregation"] = aggregation
    return Acquisition(seed=seed, **given)  # type: ignore[arg-type]  # it says what exists


def save(path: Path, value: Plan | Step) -> None:
    """Write a file of JSON in one step."""
    content = msgspec.json.format(msgspec.json.encode(value))

    def write(fresh: Path) -> None:
        fresh.write_bytes(content)

    replace_file(path, write)

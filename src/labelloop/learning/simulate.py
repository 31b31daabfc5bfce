"""The loop played on a data set that is labelled already: does it pay to choose, and how much does it need?

For each seed: a first batch by chance, the same for all strategies; then rounds of train -> measure -> look at what is
left -> choose the next batch, each strategy on its own. Every round starts from the model that the loop started with.
What a round found is a file of its own, written in one step, so a simulation that was killed goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import msgspec
import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.core.errors import SimulationError
from labelloop.learning.acquisition import Acquisition
from labelloop.learning.annotator import Actions, Times, correct
from labelloop.learning.measures import Measures
from labelloop.learning.pool import Observation, pool_of
from labelloop.learning.rounds import Model, Pictures, Seen, look, measured, open_model, truth_on, write_round
from labelloop.learning.select import rank
from labelloop.learning.trainers.base import Progress, TrainerRefused, TrainRequest, load_trainer, replace_file
from labelloop.learning.trainers.process import run as train

FULL = "full"
"""The name under which rounds that train on everything are kept."""
PLAN = "plan.json"
_TRAINED_SHARE = 0.85  # of a round, for the progress: the rest is measuring and looking


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


class Machine(NamedTuple):
    """What does the work; it decides how long it takes, not what is found."""

    threads: int = 1
    device: str = "cpu"


class At(NamedTuple):
    """Where a simulation is: `done` rounds, in parts, `of` so many."""

    done: float
    of: int
    strategy: str
    seed: int
    pictures: int
    doing: str


class _State(NamedTuple):
    """What one strategy has at some point: pictures labelled so far, in order, the last `batch`, and all work."""

    labelled: tuple[int, ...]
    batch: Actions
    total: Actions

    def then(self, step: Step) -> _State:
        return _State(self.labelled + step.chosen, step.actions, self.total + step.actions)


class Simulation:
    """A plan, its pictures, and the folder with what was found so far.

    `start` is the model file that every round begins with; None for a cold start. Raises SimulationError where there
    are too few pictures.
    """

    def __init__(
        self,
        plan: Plan,
        pictures: Pictures,
        folder: Path,
        *,
        start: tuple[Path, ModelCard] | None = None,
        machine: Machine = Machine(),  # noqa: B008
        tell: Callable[[At], object] = lambda _: None,
    ) -> None:
        self.plan, self._pictures, self._folder, self._start = plan, pictures, folder, start
        self._machine, self._tell = machine, tell
        self._pool = {item.task_id: item for item in pictures.manifest.on("train")}
        self._done, self._of = 0, 0
        _check_pictures(plan, pictures)

    def check(self) -> None:
        """Raise TrainerRefused where the trainer has something against it, before any work is done."""
        with TemporaryDirectory() as name:
            data = write_round(self._pictures, self._pool, Path(name))
            why = load_trainer(self.plan.trainer).refuses(self._request(data, data, seed=0))
        if why:
            raise TrainerRefused(f"The trainer {self.plan.trainer} cannot do this: {why}")

    def run(self) -> Iterator[Row]:
        """Play what is not yet there, and yield each row as it is written."""
        todo = list(self._missing())
        self._of = len(todo)
        first = dict[int, _State]()
        for names, seed, number in todo:
            if seed not in first:
                first = {seed: self._first(seed)}
            if names == (FULL,):
                yield from self._play(names, seed, self._everything(), wanted=0)
            else:
                yield from self._play(names, seed, self._state(names[0], seed, number, first[seed]), self._next(number))
            self._done += 1

    @property
    def missing(self) -> int:
        """How many trainings are to be done."""
        return len(list(self._missing()))

    def rows(self) -> list[Row]:
        """All that is there of this plan, in its order."""
        wanted = [(name, seed, size) for seed in range(self.plan.seeds) for name, size in self._points()]
        steps = (self._read(name, seed, size) for name, seed, size in wanted)
        return [step.row for step in steps if step is not None]

    # --- what is to be done ---

    def _missing(self) -> Iterator[tuple[tuple[str, ...], int, int]]:
        """Rounds to play: for which strategies at once, seed, number of the budget. All strategies share the first."""
        budgets = self.plan.budgets
        for seed in range(self.plan.seeds):
            first = tuple(name for name in self.plan.strategies if not self._is_done(name, seed, 0))
            if first:
                yield first, seed, 0
            for name in self.plan.strategies:
                again = name in first
                for number in range(1, len(budgets)):
                    # what follows a batch that is chosen anew was found after another one
                    again = again or not self._is_done(name, seed, number)
                    if again:
                        yield (name,), seed, number
            if self.plan.full and self._read(FULL, seed, len(self._pool)) is None:
                yield (FULL,), seed, 0

    def _is_done(self, name: str, seed: int, number: int) -> bool:
        step = self._read(name, seed, self.plan.budgets[number])
        return step is not None and len(step.chosen) >= self._next(number)

    def _next(self, number: int) -> int:
        """How many pictures are chosen after this budget."""
        budgets = self.plan.budgets
        return budgets[number + 1] - budgets[number] if number + 1 < len(budgets) else 0

    def _points(self) -> Iterator[tuple[str, int]]:
        for name in self.plan.strategies:
            yield from ((name, size) for size in self.plan.budgets)
        if self.plan.full:
            yield FULL, len(self._pool)

    # --- a round ---

    def _first(self, seed: int) -> _State:
        """The first batch, by chance, corrected from what the model that is there already draws."""
        ids = chosen([Observation(one) for one in self._pool], "random", seed=seed, wanted=self.plan.budgets[0])
        model = self._open(*self._start) if self._start else None
        seen = look(model, self._pictures, [self._pool[one] for one in ids]) if model and model.labels.targets else {}
        actions = self._corrected(ids, seen)
        return _State(ids, actions, actions)

    def _state(self, name: str, seed: int, number: int, state: _State) -> _State:
        for size in self.plan.budgets[:number]:
            step = self._read(name, seed, size)
            assert step is not None, "rounds are played in order"
            state = state.then(step)
        return state

    def _everything(self) -> _State:
        """All pictures, drawn by hand."""
        actions = self._corrected(tuple(self._pool), {})
        return _State(tuple(self._pool), actions, actions)

    def _play(self, names: Sequence[str], seed: int, state: _State, wanted: int) -> Iterator[Row]:
        """Train once, measure, and let each strategy choose its next `wanted` pictures."""
        at = At(self._done, self._of, names[0], seed, len(state.labelled), "training")
        self._tell(at)
        scratch = self._folder / "rounds" / _file_name(names[0], seed, len(state.labelled))
        model, seconds = self._train(state.labelled, seed, scratch, at)
        self._tell(at._replace(done=self._done + _TRAINED_SHARE, doing="measuring"))
        measures = measured(model, self._pictures)
        rest = [item for one, item in self._pool.items() if one not in set(state.labelled)] if wanted else []
        seen = look(model, self._pictures, rest)
        for name in names:
            row = self._row(name, seed, state, measures, seconds)
            ids = chosen([one.observation for one in seen.values()], name, seed=seed, wanted=wanted)
            step = Step(row, ids, self._corrected(ids, seen))
            self._write(step)
            yield row
        shutil.rmtree(scratch)

    def _train(self, labelled: Sequence[int], seed: int, scratch: Path, at: At) -> tuple[Model, float]:
        request = self._request(write_round(self._pictures, labelled, scratch / "data"), scratch / "out", seed=seed)

        def follow(progress: Progress) -> None:
            share = progress.step / progress.steps if progress.steps else progress.seconds / self.plan.train_s
            self._tell(at._replace(done=self._done + _TRAINED_SHARE * min(share, 1.0)))

        begun = time.monotonic()
        trained = train(self.plan.trainer, request, on_event=follow)
        return self._open(trained.model, trained.card), round(time.monotonic() - begun, 1)

    def _request(self, data: Path, out: Path, *, seed: int) -> TrainRequest:
        base, card = self._start or (None, None)
        return TrainRequest(
            data=data,
            labels=self._pictures.manifest.labels,
            out=out,
            budget_s=self.plan.train_s,
            base=base,
            base_card=card,
            threads=self._machine.threads,
            device=self._machine.device,
            seed=seed,
            options=self.plan.options,
        )

    def _open(self, path: Path, card: ModelCard) -> Model:
        labels = self._pictures.manifest.labels
        threads, device = self._machine
        return open_model(path, card, labels, threshold=self.plan.threshold, device=device, threads=threads)

    def _corrected(self, ids: Sequence[int], seen: dict[int, Seen]) -> Actions:
        """What people do on these pictures, who are shown what was drawn on them, if anything was."""
        each = (correct(seen[one].drawn if one in seen else (), truth_on(self._pool[one])) for one in ids)
        return sum(each, start=Actions())

    def _row(self, name: str, seed: int, state: _State, measures: Measures, train_seconds: float) -> Row:
        batch = state.batch
        return Row(
            strategy=name,
            seed=seed,
            pictures=len(state.labelled),
            boxes=state.total.boxes,
            seconds=state.total.seconds(self.plan.times),
            batch=batch.pictures,
            batch_seconds=batch.seconds(self.plan.times),
            accepted=batch.accepted,
            moved=batch.moved,
            deleted=batch.deleted,
            added=batch.added,
            ap=measures.ap or 0.0,
            ap50=measures.ap50 or 0.0,
            train_seconds=train_seconds,
        )

    # --- what was found ---

    def _path(self, name: str, seed: int, size: int) -> Path:
        return self._folder / "steps" / f"{_file_name(name, seed, size)}.json"

    def _read(self, name: str, seed: int, size: int) -> Step | None:
        path = self._path(name, seed, size)
        return msgspec.json.decode(path.read_bytes(), type=Step) if path.is_file() else None

    def _write(self, step: Step) -> None:
        path = self._path(step.row.strategy, step.row.seed, step.row.pictures)
        path.parent.mkdir(exist_ok=True)
        replace_file(path, lambda fresh: _save(fresh, msgspec.json.encode(step)))


def begin(folder: Path, plan: Plan) -> None:
    """Note in `folder` what is simulated there. Raises SimulationError where that is something else already."""
    path = folder / PLAN
    if path.is_file():
        try:
            earlier = msgspec.json.decode(path.read_bytes(), type=Plan)
        except msgspec.MsgspecError as error:
            raise SimulationError(f"{path} cannot be read: {error}.", hint="Give another folder with -o.") from error
        why = plan.contradiction(earlier)
        if why:
            raise SimulationError(why, hint="Repeat the command that began it, or give another folder with -o.")
    replace_file(path, lambda fresh: _save(fresh, msgspec.json.format(msgspec.json.encode(plan))))


def chosen(observations: Sequence[Observation], strategy: str, *, seed: int, wanted: int) -> tuple[int, ...]:
    """The ids of the `wanted` pictures that `strategy` would have a person label first."""
    if not wanted:
        return ()
    pool = pool_of(observations)
    first = rank(pool, acquisition_of(strategy, seed=seed)).order()[:wanted]
    return tuple(int(one) for one in np.asarray(pool.task_ids)[first])


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


def _check_pictures(plan: Plan, pictures: Pictures) -> None:
    pool, held_out = pictures.manifest.on("train"), pictures.manifest.on("val")
    if plan.budgets[-1] > len(pool):
        raise SimulationError(
            f"A budget of {plan.budgets[-1]} pictures is more than the {len(pool)} that there are to choose from.",
            hint=f"{len(held_out)} more are held out. Give smaller budgets.",
        )
    if not any(item.drawn for item in held_out):
        raise SimulationError(
            f"There is nothing to measure with: {len(held_out)} pictures are held out, and nothing is drawn on them.",
            hint="Name a held-out file with --held-out, or hold out a larger share with --val-share.",
        )


def _file_name(strategy: str, seed: int, pictures: int) -> str:
    return f"{strategy.replace(':', '-')}.{seed}.{pictures}"


def _save(path: Path, content: bytes) -> None:
    path.write_bytes(content)

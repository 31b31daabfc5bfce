"""The loop played on a data set that is labelled already: does it pay to choose, and how much does it need?

For each seed: a first batch by chance, the same for all strategies; then rounds of train -> measure -> look at what is
left -> choose the next batch, each strategy on its own. Every round starts from the model that the loop started with.
What a round found is a file of its own, written in one step, so a simulation that was killed goes on.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

from labelloop.core.cards import ModelCard
from labelloop.core.decoding import from_json
from labelloop.core.errors import SimulationError
from labelloop.learning.annotator import Actions, correct
from labelloop.learning.measures import Measures
from labelloop.learning.pool import Observation, pool_of
from labelloop.learning.rounds import Model, Pictures, Seen, look, measured, open_model, truth_on, write_round
from labelloop.learning.select import rank
from labelloop.learning.simulation import FULL, Plan, Row, Step, acquisition_of, save
from labelloop.learning.trainers.base import Progress, TrainerRefused, TrainRequest, load_trainer
from labelloop.learning.trainers.process import run as train

_TRAINED_SHARE = 0.85
"""Of a round, for the progress; the rest is measuring and looking."""


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
        return step is not None and self._next(number) in (0, len(step.chosen))

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
        self._forget(names, seed, beyond=len(state.labelled))
        at = At(self._done, self._of, names[0], seed, len(state.labelled), "training")
        self._tell(at)
        scratch = self._folder / "rounds" / _file_name(names[0], seed, len(state.labelled))
        model, seconds = self._train(state.labelled, seed, scratch, at)
        self._tell(at._replace(done=self._done + _TRAINED_SHARE, doing="measuring"))
        measures = measured(model, self._pictures)
        labelled = set(state.labelled)
        rest = [item for one, item in self._pool.items() if one not in labelled] if wanted else []
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

    def _forget(self, names: Sequence[str], seed: int, *, beyond: int) -> None:
        """Steps that follow one that is played anew were found after other pictures."""
        for name in names:
            for size in self.plan.budgets:
                if size > beyond:
                    self._path(name, seed, size).unlink(missing_ok=True)

    def _read(self, name: str, seed: int, size: int) -> Step | None:
        path = self._path(name, seed, size)
        return from_json(path.read_bytes(), Step) if path.is_file() else None

    def _write(self, step: Step) -> None:
        path = self._path(step.row.strategy, step.row.seed, step.row.pictures)
        path.parent.mkdir(exist_ok=True)
        save(path, step)


def chosen(observations: Sequence[Observation], strategy: str, *, seed: int, wanted: int) -> tuple[int, ...]:
    """The ids of the `wanted` pictures that `strategy` would have a person label first."""
    if not wanted:
        return ()
    pool = pool_of(observations)
    first = rank(pool, acquisition_of(strategy, seed=seed)).order()[:wanted]
    return tuple(int(one) for one in np.asarray(pool.task_ids)[first])


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

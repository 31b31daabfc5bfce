"""One run of the learning loop: pull, train, evaluate, promote, then new predictions and a new order.

Each stage ends with a row that says which is next (store/runs), so a run goes on at its stage whoever takes it over;
the folder with its pictures and checkpoints is on one machine, and a worker elsewhere pulls again. Nothing is live
before `promote`, which is one statement: a run that dies anywhere leaves the old version or the new one, never half.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec

from labelloop.core.cards import ModelCard
from labelloop.core.errors import JobError, LabelloopError
from labelloop.core.regions import Prediction
from labelloop.core.settings import Settings
from labelloop.core.tasks import Task
from labelloop.jobs.at_work import AtWork
from labelloop.jobs.choose import Chooser
from labelloop.jobs.folder import Fetch, read_folder, write_folder
from labelloop.jobs.kinds import Held
from labelloop.jobs.patience import Interrupted, Patience
from labelloop.jobs.pull import pull
from labelloop.jobs.run_folder import RunFolder
from labelloop.jobs.training import COMPARED, Training
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import parse_filters
from labelloop.labelstudio.records import Project
from labelloop.learning.evaluate import evaluate, held_out
from labelloop.learning.evaluate_choices import evaluate_choices
from labelloop.learning.manifest import Manifest, options_of
from labelloop.learning.promote import Gate, Measured, Verdict, gate_of, judge
from labelloop.learning.trainers.base import Stopped, Trained, TrainerRefused, TrainRequest
from labelloop.learning.trainers.process import Limits
from labelloop.serving.models import add_model
from labelloop.serving.projects import Lens, View
from labelloop.store import schema
from labelloop.store.fits import Fits
from labelloop.store.jobs import Job, Options, Work
from labelloop.store.lineage import Lineage
from labelloop.store.loops import PRESSED, START
from labelloop.store.registry import ModelVersion
from labelloop.store.runs import Outcome, Point, Run, Stage, thinned

LOOK_S = 0.5
"""How long one step waits for the trainer or for the job that refreshes predictions, before it says how far it is."""

OUTCOMES: Mapping[str, Outcome] = {"promote": "promoted", "keep": "refused", "ask": "waits"}
FIRST = "first"
"""Where the counts of a run keep what its first trainer has made while a second one goes on from that."""

Reorder = Callable[[Client, int, View], None]
"""Writes the order of a project's tasks for the version of the view: jobs/order."""


class Parts(NamedTuple):
    """What a run works with. `predict(tasks, view)` is the serving path at bulk priority, `warm(version)` returns when
    the version is loaded here."""

    settings: Settings
    training: Training
    client: Client
    fetch: Fetch
    predict: Callable[[Sequence[Task], View], Sequence[Prediction]]
    warm: Callable[[ModelVersion], object]
    reorder: Reorder
    fits: Fits
    patience: Patience


class Retrain:
    """A run in the hands of one worker: call `advance` until it says False, then `close`."""

    def __init__(self, job: Job, run: Run, parts: Parts, held: Held) -> None:
        self._job = job
        self._run = run
        self._parts = parts
        self._held = held
        self._folder = RunFolder(parts.settings, job.id)
        self._trainer = AtWork(job.id)
        self._chooser = Chooser(parts.settings, parts.training, self._folder.path, held.tell)
        self._stages: Mapping[Stage, Callable[[], Stage]] = {
            "pull": self._pull,
            "train": self._train,
            "further": self._further,
            "evaluate": self._evaluate,
            "promote": self._promote,
            "refresh": self._refresh,
            "order": self._order,
        }

    def advance(self) -> bool:
        """Do a part of the stage. False when the run is done."""
        self._held.check()
        if self._run.stage != "done":
            following = self._stages[self._run.stage]()
            if following != self._run.stage:
                self._note(stage=following)
        if self._run.stage == "done" and self._run.ended_at is None:
            self._folder.tidy()  # first: nobody comes back for the files of a run that has ended
            self._note(ended_at=schema.now())
        return self._run.stage != "done"

    def close(self) -> None:
        """Stop what is at work; a training goes on from its checkpoint when the run does."""
        self._parts.patience.end()
        self._trainer.close()
        self._parts.client.close()

    # --- pull -------------------------------------------------------------------------------------------

    def _pull(self) -> Stage:
        base = self._chooser.base(self._run)
        if base is not None and base.card.task == "raw" and self._run.options.trainer == "auto":
            return self._delegate(base)
        asked = options_of(self._parts.settings)
        if self._run.options.annotators is not None:
            asked = msgspec.structs.replace(asked, annotators=self._run.options.annotators)
        manifest = pull(self._parts.client, self._project(), asked, ask=self._parts.patience)
        if not any(item.drawn or item.said for item in manifest.on("train")):
            done = {"choices": "made a choice about", "masks": "painted on"}.get(manifest.learns, "drawn a box on")
            return self._decline(
                f"There is nothing to learn from: nobody has {done} a {manifest.reads[:-1]} to train on."
            )
        self._folder.make_room()
        limit = self._parts.settings.media_max_pixels
        folder = write_folder(
            manifest, self._folder.data, self._parts.fetch, max_pixels=limit, progress=lambda *_: self._held.check()
        )
        if folder.manifest.digest != self._run.manifest:  # what was made of other annotations is of no use any more
            self._folder.forget_training()
        self._note(manifest=folder.manifest.digest, counts=counts_of(folder.manifest))
        for left in folder.manifest.left_out[:10]:
            self._held.tell("info", f"Task {left.task_id} is left out: {left.reason} {left.detail}")
        twin = self._twin()
        if twin is not None:
            return self._decline(
                f"Nothing has changed since run {twin.job_id}, which ended so: {twin.verdict} "
                "Another --budget, --trainer or model would make a difference."
            )
        return "train"

    def _delegate(self, base: ModelVersion) -> Stage:
        """A hosted model trains itself: its `fit` hears what the button in Label Studio says (jobs/fit)."""
        if self._run.reason != PRESSED:  # or it has heard that already
            project = self._project()
            about = {"id": project.id, "title": project.title, "label_config": project.label_config}
            self._parts.fits.add(base.name, project.id, [(START, {"action": START, "project": about})])
        why = f"{base.id} is code that trains itself: its fit is called with {START}. See: labelloop jobs list"
        self._held.tell("info", why)
        self._note(verdict=why, outcome="delegated")
        return "done"

    def _twin(self) -> Run | None:
        """An earlier run that did exactly this."""
        mine = self._run
        for run in self._parts.training.runs.of_project(self._job.project_id):
            same = (run.manifest, run.base, run.options) == (mine.manifest, mine.base, mine.options)
            if same and run.job_id != mine.job_id and run.outcome in ("promoted", "refused", "waits"):
                return run
        return None

    # --- train ------------------------------------------------------------------------------------------

    def _train(self) -> Stage:
        if not self._folder.holds(self._run.manifest):  # another machine began, or went on meanwhile
            return "pull"
        if self._trainer.idle:
            self._start(self._chooser.choose, "trained.json")
        try:
            trained = self._result()
        except TrainerRefused as reason:
            self._chooser.pass_over(self._run, reason)
            return "train"
        if trained is None:
            return "train"
        candidate = self._add(trained)
        self._held.tell("info", f"{self._run.trainer} has made {candidate.id}.")
        self._note(candidate=candidate.id)
        if self._chooser.further(self._run, candidate, spent_s=self._spent_s()) is None:
            return "evaluate"
        last = {
            "version": candidate.id,
            "trainer": self._run.trainer,
            "steps": self._steps(),
            "seconds": self._spent_s(),
        }
        self._note(counts={**self._run.counts, FIRST: last})
        return "further"

    def _further(self) -> Stage:
        """Another trainer goes on from the candidate. Whether that helps is seen on held-out pictures; if it fails, the
        candidate is what there was."""
        if not self._folder.holds(self._run.manifest):
            return "pull"
        first = self._run.counts[FIRST]
        made = self._parts.training.registry.catalogue().find(first["version"])

        def choose(run: Run) -> tuple[str, TrainRequest]:
            going = msgspec.structs.replace(run, trainer=first["trainer"])
            found = self._chooser.further(going, made, spent_s=first["seconds"])
            if found is None:
                raise TrainerRefused("Nobody can go on from it.")
            return found

        try:
            if self._trainer.idle:
                self._start(choose, "further.json", after=first["trainer"])
            trained = self._result()
        except LabelloopError as error:
            self._held.tell("warning", f"Nothing was made of {made.id}, so it stays as it is: {error}")
            self._settle(made, first["trainer"])
            return "evaluate"
        if trained is None:
            return "further"
        candidate = self._register(trained, parent=made)
        self._held.tell("info", f"{self._run.trainer} has made {candidate.id}.")
        self._note(candidate=candidate.id)
        return "evaluate"

    def _result(self) -> Trained | None:
        """What the trainer has made, None while it is at work. Raises what it raised."""
        ended = self._trainer.wait(LOOK_S)
        self._draw_curve()
        if not ended:
            return None
        try:
            return self._trainer.result()
        except Stopped as stopped:
            raise Interrupted from stopped

    def _start(self, choose: Callable[[Run], tuple[str, TrainRequest]], result: str, *, after: str = "") -> None:
        """`result` names the file that says that it has ended, `after` who trained before."""
        done = self._folder.path / result
        if self._trainer.take_up(done):
            return
        name, request = choose(self._run)
        begins = self._run.candidate if after else self._run.base
        self._held.tell("info", f"{name} trains {request.budget_s:g} s from {begins or 'nothing'}.")
        self._note(trainer=f"{after}, {name}" if after else name)
        limits = Limits(memory_bytes=self._run.options.memory_mb * 10**6)
        self._trainer.start(name, request, limits=limits, done=done)

    def _spent_s(self) -> float:
        return self._run.curve[-1].seconds if self._run.curve else 0.0

    def _steps(self) -> int:
        return self._run.curve[-1].step if self._run.curve else 0

    def _settle(self, version: ModelVersion, trainer: str) -> None:
        """This version is the candidate, whoever else went on from it."""
        counts = {name: value for name, value in self._run.counts.items() if name != FIRST}
        self._note(candidate=version.id, trainer=trainer, counts=counts)

    def _add(self, trained: Trained) -> ModelVersion:
        """The candidate in the registry. It serves nobody there: only a pointer at its very number would."""
        source = self._register(trained.source) if trained.source else None
        return self._register(trained, source=source.id if source else "")

    def _register(self, trained: Trained, *, source: str = "", parent: ModelVersion | None = None) -> ModelVersion:
        """`parent` is what it was made from, the run's base by default."""
        training, run = self._parts.training, self._run
        like = [version for version in (parent, self._chooser.base(run), self._chooser.trainable(run)) if version]
        # a name stands for one kind of model
        same = (version.name for version in like if version.card.engine == trained.card.engine)
        card: ModelCard = msgspec.structs.replace(trained.card, name=next(same, f"project-{self._job.project_id}"))
        version = add_model(training.registry, trained.model, card, self._parts.settings, trained=True)
        made = self._lineage(version, parent=parent.id if parent else run.base)
        training.lineages.record(msgspec.structs.replace(made, seconds=self._spent_s(), source=source))
        return version

    def _lineage(self, version: ModelVersion, *, parent: str) -> Lineage:
        run = self._run
        return Lineage(
            name=version.name,
            number=version.number,
            project_id=self._job.project_id,
            parent=parent,
            manifest=run.manifest,
            trainer=run.trainer.rpartition(", ")[2],
            seconds=0.0,
            by=run.reason,
            at=schema.now(),
            options=msgspec.to_builtins(run.options),
        )

    def _draw_curve(self) -> None:
        news = self._trainer.news()
        if not news:
            return
        before = self._run.counts.get(FIRST) or {"seconds": 0.0, "steps": 0}
        points = [
            Point(round(before["seconds"] + one.seconds, 2), before["steps"] + one.step, one.loss, one.metrics)
            for one in news
        ]
        self._note(curve=thinned((*self._run.curve, *points)))
        for one in news:
            if one.message:
                self._held.tell("info", one.message)

    # --- evaluate, promote ------------------------------------------------------------------------------

    def _evaluate(self) -> Stage:
        if not self._folder.holds(self._run.manifest):
            return "pull"
        training, catalogue = self._parts.training, self._parts.training.registry.catalogue()
        candidate, metrics = self._better_of_two(self._measure(catalogue.find(self._run.candidate)))
        serving = training.live(self._job.project_id)
        live = self._measure(serving) if serving is not None else None
        verdict = judge(candidate, live, self._gate())
        metrics = {"candidate": candidate.measures} | ({"live": live.measures} if live else {}) | metrics
        counts = {**self._run.counts, COMPARED: serving.id if serving is not None else ""}
        self._note(counts=counts, metrics=metrics, verdict=verdict.sentence + ".", outcome=OUTCOMES[verdict.decision])
        self._record(catalogue.find(self._run.candidate), metrics, verdict)
        self._held.tell("info", f"{self._run.candidate}: {verdict.sentence}.")
        return "promote" if verdict.promoted else "done"

    def _better_of_two(self, second: Measured) -> tuple[Measured, dict[str, Any]]:
        """Where two trainers had their turn, the second one's version if it is better than the first one's, as the gate
        sees it; and the measures of the one that is not taken, by its trainer."""
        first = self._run.counts.get(FIRST)
        if first is None:
            return second, {}
        catalogue = self._parts.training.registry.catalogue()
        versions = catalogue.find(first["version"]), catalogue.find(self._run.candidate)
        other = self._measure(versions[0])
        verdict = judge(second, other, msgspec.structs.replace(self._gate(), mode="auto"))
        name = self._run.trainer.rpartition(", ")[2]
        self._record(versions[1], {"candidate": second.measures, first["trainer"]: other.measures}, verdict)
        helps = "helps" if verdict.promoted else "does not help"
        self._held.tell("info", f"{name} after {first['trainer']} {helps}: {verdict.sentence}.")
        if verdict.promoted:
            self._settle(versions[1], self._run.trainer)
            return second, {first["trainer"]: other.measures}
        self._settle(versions[0], first["trainer"])
        return other, {name: second.measures}

    def _record(self, version: ModelVersion, metrics: Mapping[str, Any], verdict: Verdict) -> None:
        lineages = self._parts.training.lineages
        made = lineages.of(version.name, version.number) or self._lineage(version, parent=self._run.base)
        told = {"metrics": msgspec.to_builtins(metrics), "verdict": msgspec.to_builtins(verdict)}
        lineages.record(msgspec.structs.replace(made, **told))

    def _gate(self) -> Gate:
        options = self._run.options
        told = {"mode": options.promotion, "margin": options.margin, "min_pictures": options.min_held_out}
        told |= {"even_if_few": options.even_if_few}
        changes = {name: value for name, value in told.items() if value is not None}
        return msgspec.structs.replace(gate_of(self._parts.settings), **changes)

    def _measure(self, version: ModelVersion) -> Measured:
        self._parts.warm(version)
        manifest, view = read_folder(self._folder.data).manifest, self._view(version)
        if manifest.learns == "choices":
            return evaluate_choices(manifest, self._folder.data, view, self._ask)
        return evaluate(held_out(self._folder.data), view, self._ask)

    def _ask(self, tasks: Sequence[Task], view: View) -> Sequence[Prediction]:
        self._held.check()
        return self._parts.predict(tasks, view)

    def _promote(self) -> Stage:
        registry = self._parts.training.registry
        candidate = registry.catalogue().find(self._run.candidate)
        self._parts.warm(candidate)  # before anybody is sent to it
        compared, live = self._run.counts.get(COMPARED), self._live()
        if compared is not None and live not in (compared, candidate.id):
            self._held.tell("info", f"{live or 'Nothing'} went live meanwhile; {candidate.id} is compared with that.")
            return "evaluate"
        by = "the learning loop"
        registry.bind(self._job.project_id, candidate.id, reason=self._run.verdict, by=by, before=live or None)
        self._held.tell("info", f"{candidate.id} is live.")
        self._note(outcome="promoted")
        return "refresh"

    # --- after it ---------------------------------------------------------------------------------------

    def _refresh(self) -> Stage:
        """New predictions for tasks that nobody has touched, as a job of its own: to be seen, cancelled, resumed."""
        jobs = self._parts.training.jobs
        number = self._run.counts.get("refresh_job")
        if number is None:
            version = self._parts.training.registry.catalogue().find(self._run.candidate)
            options = Options(only_missing=True, filters=parse_filters(["total_annotations=0"]))
            work = Work(self._job.label_studio, self._job.project_id, version.id, self._view(version).name, options)
            found, _ = jobs.create(work)
            if not found.options.covers(options):  # a person has asked for a part of it: ours begins behind that
                self._trainer.pause(LOOK_S)
                return "refresh"
            number = found.id
            self._note(counts={**self._run.counts, "refresh_job": number})
        job = jobs.get(str(number))
        if not job.ended:
            self._trainer.pause(LOOK_S)
            return "refresh"
        if job.state != "done":
            self._held.tell("warning", f"New predictions: job {job.id} is {job.state}. {job.error}")
        return "order"

    def _order(self) -> Stage:
        version = self._parts.training.registry.catalogue().find(self._run.candidate)
        try:
            self._parts.reorder(self._parts.client, self._job.project_id, self._view(version))
        except LabelloopError as error:  # the new version is live; that tasks keep their old order undoes nothing
            hint = f"Try again: labelloop order {self._job.project_id}"
            self._held.tell("warning", f"Tasks keep the order that they have: {error} {hint}")
        if not self._run.options.keep_old:
            try:
                self._remove_old(self._view(version).name)
            except LabelloopError as error:
                self._held.tell("warning", f"Earlier predictions stay: {error}")
        return "done"

    def _remove_old(self, current: str) -> None:
        """Only predictions of this registry's models, the others are not ours to delete; and not before there are new
        ones. Label Studio forgets which version the project shows when another one is deleted: that is set again."""
        client, number, ask = self._parts.client, self._job.project_id, self._parts.patience
        if self._parts.training.jobs.get(str(self._run.counts["refresh_job"])).state != "done":
            raise JobError("Not all tasks have new ones.")
        ours = {version.name for version in self._parts.training.registry.catalogue().versions}
        for name in [row.model_version for row in ask(lambda: client.model_versions(number))]:
            if name and name != current and name.partition("@")[0] in ours:
                ask(partial(client.delete_model_version, number, name))
        ask(lambda: client.set_project(number, model_version=current))

    # --- shared -----------------------------------------------------------------------------------------

    def _live(self) -> str:
        """The id of what serves the project now, "" for nothing."""
        version = self._parts.training.live(self._job.project_id)
        return version.id if version is not None else ""

    def _project(self) -> Project:
        return self._parts.patience(lambda: self._parts.client.project(self._job.project_id))

    def _view(self, version: ModelVersion) -> View:
        catalogue = self._parts.training.registry.catalogue()
        said = catalogue.called(version, self._job.project_id)
        return Lens.shared(self._parts.settings, catalogue).view(version, self._project().label_config, said=said)

    def _decline(self, why: str) -> Stage:
        self._held.tell("info", why)
        self._note(verdict=why, outcome="declined")
        return "done"

    def _note(self, **values: Any) -> None:
        """Keep it in the row and here."""
        self._parts.training.runs.update(self._job.id, **values)
        run = self._parts.training.runs.find(self._job.id)
        if run is None:
            raise JobError(f"The run {self._job.id} is gone from the store.")
        self._run = run


def counts_of(manifest: Manifest) -> dict[str, Any]:
    """What a data set holds, in numbers."""
    by_label: dict[str, int] = dict.fromkeys(manifest.labels, 0)
    for item in manifest.items:
        for label in (*item.said, *(drawn.label for drawn in item.drawn)):
            by_label[label] += 1
    sides = {side: len(manifest.on(side)) for side in ("train", "val")}
    counts = {
        **sides,
        manifest.learns: sum(by_label.values()),
        "by_label": by_label,
        "left_out": len(manifest.left_out),
    }
    return counts if manifest.reads == "pictures" else {**counts, "reads": manifest.reads}

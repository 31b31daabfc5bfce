"""Runs of the learning loop: a fake Label Studio, real stores, workers, ONNX files and trainer processes.

The pictures all show the same: a model that sees the box where people drew it is right everywhere, and the trainer (of
`stub_trainers`) hands over a file that was made before.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from labelloop.app import Parts, assemble, close, training_of
from labelloop.core.cards import ModelCard
from labelloop.core.errors import JobError
from labelloop.core.settings import read_settings
from labelloop.jobs import choose
from labelloop.jobs.retrain import Retrain
from labelloop.jobs.run_folder import runs_folder, sweep
from labelloop.jobs.shown import show_serving
from labelloop.jobs.training import Training, summary
from labelloop.labelstudio.brush import encode_rle
from labelloop.serving.models import add_model
from labelloop.store.jobs import Job
from labelloop.store.loops import LoopOptions
from labelloop.store.runs import Run
from labelloop.testing import FakeLabelStudio
from learning import stub_trainers
from reference.running_server import Backend, jpeg
from reference.tiny_models import Thing, build_v8, ultralytics_metadata

LABELS = ("cat", "dog", "bird")
CONFIG = (
    '<View><Image name="img" value="$image"/><RectangleLabels name="box" toName="img">'
    '<Label value="cat"/><Label value="dog"/><Label value="bird"/></RectangleLabels></View>'
)
SIZE = (64, 64)
TRUTH = Thing((8, 8, 40, 40), 0, 0.9)
WRONG = Thing((40, 40, 60, 60), 1, 0.9)
ENOUGH = 40


def network(path: Path, *things: Thing) -> Path:
    """An ONNX file that sees the same things on every picture."""
    return build_v8(path, things, size_wh=SIZE, metadata=ultralytics_metadata(LABELS, size_wh=SIZE))


class Bench:
    """A project with pictures of which people annotated some, a server's parts with their worker, and the rows."""

    def __init__(self, studio: FakeLabelStudio, folder: Path) -> None:
        self.studio = studio
        self.folder = folder
        self.settings = read_settings(
            home=folder / "home",
            label_studio_url=studio.url,
            label_studio_token=studio.token,
            import_settle_s=0.3,
        )
        self.project = studio.add_project("parts", CONFIG)
        self.http = httpx.Client(base_url=studio.url, headers={"Authorization": f"Token {studio.token}"})
        self.tasks: list[int] = []
        self.good = network(folder / "good.onnx", TRUTH)
        self.bad = network(folder / "bad.onnx", WRONG)
        self.parts: Parts = assemble(self.settings)
        self.training: Training = training_of(self.parts.store)
        self.parts.store.registry.save_connection(studio.url, studio.token)

    def start(self) -> None:
        self.parts.jobs.start()

    def close(self) -> None:
        close(self.parts)
        self.http.close()

    def add_tasks(self, number: int) -> list[int]:
        first = len(self.tasks)
        pictures = [jpeg(*SIZE, seed=first + n) for n in range(number)]
        uris = [{"image": "data:image/jpeg;base64," + base64.b64encode(one).decode()} for one in pictures]
        self.tasks += self.studio.add_tasks(self.project, uris)
        return self.tasks[first:]

    def annotate(self, *tasks: int, painted: bool = False) -> None:
        left, top, right, bottom = (100 * side / SIZE[0] for side in TRUTH.xyxy)
        value = {"x": left, "y": top, "width": right - left, "height": bottom - top, "rotation": 0}
        result = {"id": "r", "from_name": "box", "to_name": "img", "type": "rectanglelabels", "original_width": SIZE[0]}
        result |= {"original_height": SIZE[1], "image_rotation": 0, "value": value | {"rectanglelabels": ["cat"]}}
        if painted:
            square = np.zeros(SIZE, bool)
            square[8:40, 8:40] = True
            code = {"format": "rle", "rle": encode_rle(square), "brushlabels": ["cat"]}
            result |= {"type": "brushlabels", "value": code}
        for task in tasks:
            answer = self.http.post(f"/api/tasks/{task}/annotations/", json={"result": [result]})
            answer.raise_for_status()

    def serve(self, file: Path) -> str:
        version = add_model(self.parts.store.registry, file, ModelCard(name="base"), self.settings)
        self.parts.store.registry.bind(self.project, version.id)
        return version.id

    def options(self, model: Path, **changes: Any) -> LoopOptions:
        told = {"do": "finish", "steps": 3, "model": str(model)} | changes.pop("told", {})
        return LoopOptions(**{"trainer": "obedient", "trainer_options": told, "budget_s": 20} | changes)

    def begin(self, model: Path, **changes: Any) -> Job:
        job, new = self.training.begin(
            self.project, self.studio.url, self.options(model, **changes), reason="the test asked"
        )
        assert new
        return job

    def finish(self, job: Job) -> tuple[Job, Run]:
        Backend.wait(lambda: self.training.jobs.get(job.id).ended, seconds=60)
        run = self.training.runs.find(job.id)
        assert run is not None
        return self.training.jobs.get(job.id), run

    def run(self, model: Path, **changes: Any) -> tuple[Job, Run]:
        return self.finish(self.begin(model, **changes))

    def live(self) -> str | None:
        version = self.training.registry.catalogue().of_project(self.project)
        return version.id if version else None

    def log(self, job: Job) -> str:
        return "\n".join(line.text for line in self.training.jobs.lines(job.id))


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    (tmp_path / "stub").mkdir()
    stub_trainers.install(tmp_path / "stub", monkeypatch)
    with FakeLabelStudio() as studio:
        bench = Bench(studio, tmp_path)
        try:
            yield bench
        finally:
            bench.close()


def test_a_better_model_goes_live_with_new_predictions_and_a_new_order(bench: Bench) -> None:
    before = bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    untouched = bench.add_tasks(5)
    bench.start()
    job, run = bench.run(bench.good)
    assert (job.state, run.outcome, run.stage) == ("done", "promoted", "done"), bench.log(job)
    assert (before, bench.live(), run.candidate) == ("base@1", "base@2", "base@2")
    assert "AP50 1.000 against 0.000" in run.verdict
    version = bench.studio.state.projects[bench.project].model_version
    assert version.startswith("base@2.")
    assert [[row["model_version"] for row in bench.studio.predictions(task)] for task in untouched] == [[version]] * 5
    assert not any(bench.studio.predictions(task) for task in bench.tasks[:ENOUGH]), "touched tasks stay as they are"
    assert [point.loss for point in run.curve] == [1, 1 / 2, 1 / 3]
    assert run.counts["train"] + run.counts["val"] == ENOUGH
    assert any("AP50" in line for line in summary(run))
    assert [path.name for path in runs_folder(bench.settings).joinpath(job.id).iterdir()] == ["log.txt"]


def test_a_model_that_is_not_better_stays_out(bench: Bench) -> None:
    bench.serve(bench.good)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, run = bench.run(bench.bad)
    assert (job.state, run.outcome, bench.live()) == ("done", "refused", "base@1")
    assert "not promoted" in run.verdict
    assert run.candidate == "base@2", "it can be looked at and promoted by hand"


def test_the_first_model_of_a_project_begins_from_nothing(bench: Bench) -> None:
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    _, run = bench.run(bench.good)
    assert (run.base, run.outcome, bench.live()) == ("", "promoted", f"project-{bench.project}@1")
    other = bench.studio.add_project("others", CONFIG)
    assert bench.training.registry.catalogue().of_project(other) is None, "it was made for one project"


@pytest.mark.slow
def test_the_second_model_begins_where_the_first_ended(bench: Bench) -> None:
    """The real trainers: `head` and `full` do not take what `scratch` has made, and `scratch` does."""
    pytest.importorskip("torch", reason="needs the extra train")
    options = LoopOptions(promotion="always", budget_s=60, trainer_options={"side": 64, "max_steps": 2})
    bench.start()
    for base in ("nothing", f"project-{bench.project}@1"):
        bench.annotate(*bench.add_tasks(ENOUGH))
        job, _ = bench.training.begin(bench.project, bench.studio.url, options, reason="the test asked")
        job, run = bench.finish(job)
        assert run.outcome == "promoted", bench.log(job)
        assert f"scratch trains 60 s from {base}." in bench.log(job)
        assert "a new one begins" not in bench.log(job)
    assert bench.live() == f"project-{bench.project}@2"


def test_an_exported_file_is_served_and_what_it_was_made_of_is_trained(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, run = bench.run(bench.good, told={"do": "export"})
    assert run.outcome == "promoted", bench.log(job)
    assert bench.live() == run.candidate == "base@2"
    made = bench.training.lineages.of("base", 2)
    assert made is not None
    # another kind of model, so under another name; it serves nobody
    assert (made.source, made.parent) == (f"project-{bench.project}@1", "base@1")
    assert "exported from project-" in made.summary[0]
    source = bench.training.registry.catalogue().find(made.source)
    assert (source.card.engine, source.trained) == ("plain", True)
    again, _ = bench.run(bench.good, told={"do": "export"}, budget_s=21)
    assert "begins with plain '7'" in bench.log(again)


def test_a_candidate_serves_nobody_who_follows_the_newest_version(bench: Bench) -> None:
    bench.serve(bench.good)
    bench.training.registry.bind(bench.project + 1, "base")
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    bench.run(bench.bad, promotion="always")
    catalogue = bench.training.registry.catalogue()
    assert bench.live() == "base@2"
    follower = catalogue.of_project(bench.project + 1)
    assert follower is not None
    assert follower.id == "base@1"
    assert catalogue.find("base").id == "base@1"


def test_what_waits_for_a_word_goes_live_with_it(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, run = bench.run(bench.good, promotion="ask")
    assert (run.outcome, bench.live()) == ("waits", "base@1")
    bench.training.approve(bench.project)
    job, run = bench.finish(job)
    assert (job.state, run.outcome, bench.live()) == ("done", "promoted", "base@2")
    with pytest.raises(JobError, match="No new version"):
        bench.training.approve(bench.project)


def test_nothing_to_learn_from_is_said(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.add_tasks(3)
    bench.start()
    job, run = bench.run(bench.good)
    assert (job.state, run.outcome) == ("done", "declined")
    assert "nobody has drawn a box" in run.verdict


def test_the_same_again_is_declined(bench: Bench) -> None:
    bench.serve(bench.good)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    first, _ = bench.run(bench.bad)
    _, again = bench.run(bench.bad)
    assert again.outcome == "declined"
    assert f"Nothing has changed since run {first.id}" in again.verdict
    _, other = bench.run(bench.bad, seed=1)
    assert other.outcome == "refused", "another seed is another training"


def test_too_little_is_no_ground_for_a_verdict(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(12))
    bench.start()
    _, run = bench.run(bench.good, min_held_out=12)
    assert (run.outcome, bench.live()) == ("refused", "base@1")
    assert "too little to tell" in run.verdict


def test_little_is_enough_for_who_says_so(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(12))
    bench.start()
    _, run = bench.run(bench.good, min_held_out=12, even_if_few=True)
    assert (run.outcome, bench.live()) == ("promoted", "base@2"), run.verdict


def test_a_trainer_that_fails_says_why_and_can_be_resumed(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, run = bench.run(bench.good, told={"do": "raise_theirs", "what": "value"})
    assert job.state == "failed"
    assert "seven" in job.error
    assert (run.stage, bench.live()) == ("train", "base@1")
    bench.training.runs.update(job.id, options=bench.options(bench.good))
    bench.training.jobs.resume(job.id)
    job, run = bench.finish(job)
    assert (job.state, run.outcome) == ("done", "promoted")


def test_a_trainer_that_refuses_says_why(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, _ = bench.run(bench.good, told={"refuse": "It likes circles. Draw circles."})
    assert job.state == "failed"
    assert "It likes circles" in job.error


def test_where_there_is_only_a_brush_a_first_model_cannot_draw(bench: Bench) -> None:
    bench.project = bench.studio.add_project("painted", CONFIG.replace("RectangleLabels", "BrushLabels"))
    bench.annotate(*bench.add_tasks(ENOUGH), painted=True)
    bench.start()
    job, run = bench.run(bench.good, trainer="auto")
    assert (job.state, run.counts["masks"]) == ("failed", ENOUGH)
    assert "there is only a brush" in job.error
    assert "<RectangleLabels>" in job.error


def test_a_trainer_that_refuses_after_a_closer_look_leaves_it_to_the_next(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "TRAINERS", {("boxes", "pictures"): (("shy", "obedient"), ("scratch",))})
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, run = bench.run(bench.good, trainer="auto")
    assert (run.outcome, run.trainer) == ("promoted", "obedient"), bench.log(job)
    assert "The trainer shy cannot do this: It has no neck." in bench.log(job)
    job, run = bench.run(bench.good, trainer="shy")
    assert job.state == "failed", "who was named is not replaced"
    assert "It has no neck" in job.error


@pytest.mark.parametrize(
    ("first", "second", "live", "loser"),
    [("bad", "good", "base@3", "obedient"), ("good", "bad", "base@2", "second"), ("good", "", "base@2", "")],
    ids=["it helps", "it does not help", "it fails"],
)
def test_a_second_trainer_goes_on_in_the_time_that_is_left_if_that_helps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, first: str, second: str, live: str, loser: str
) -> None:
    monkeypatch.setattr(choose, "TRAINERS", {("boxes", "pictures"): (("obedient",), ("scratch",))})
    monkeypatch.setattr(choose, "FURTHER", {"obedient": "second"})
    monkeypatch.setattr(choose, "LEAST_S", {"cpu": 10.0})
    monkeypatch.setattr(choose, "GENTLY", {"second": {"steps": 9, "rate": 1e-4}})
    bench.serve(network(bench.folder / "worse.onnx", WRONG._replace(score=0.8)))
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    does = {"model": str(getattr(bench, second))} if second else {"do": "leave"}
    job, run = bench.run(getattr(bench, first), trainer="auto", told={"second": does}, promotion="always")
    log = bench.log(job)
    assert (job.state, run.outcome, run.candidate, bench.live()) == ("done", "promoted", live, live), log
    assert "obedient trains 10 s from base@1." in log
    assert "second trains 20 s from base@2." in log
    assert "is told rate 0.0001 and 3 steps" in log, "gently, but for what a person has said"
    assert run.trainer == ("obedient, second" if loser == "obedient" else "obedient")
    assert set(run.metrics) - {"candidate", "live"} == ({loser} if loser else set())
    assert ("so it stays as it is" in log) == (not second)
    assert [path.name for path in runs_folder(bench.settings).joinpath(job.id).iterdir()] == ["log.txt"]
    if second:
        made = bench.training.lineages.of("base", 3)
        assert made is not None
        assert (made.parent, made.trainer, made.verdict["decision"]) == (
            "base@2",
            "second",
            "promote" if loser == "obedient" else "keep",
        )


def test_a_server_that_stops_while_the_second_trains_goes_on_there(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choose, "TRAINERS", {("boxes", "pictures"): (("obedient",), ("scratch",))})
    monkeypatch.setattr(choose, "FURTHER", {"obedient": "second"})
    monkeypatch.setattr(choose, "LEAST_S", {"cpu": 10.0})
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    does = {"model": str(bench.good), "steps": 4, "wait_at": 2}
    job = bench.begin(bench.bad, trainer="auto", told={"second": does})
    Backend.wait(lambda: "step 2" in bench.log(job).partition("second trains")[2], seconds=60)
    close(bench.parts)
    assert not bench.training.jobs.get(job.id).ended
    bench.parts = assemble(bench.settings)
    bench.start()
    job, run = bench.finish(job)
    log = bench.log(job)
    assert (run.outcome, bench.live()) == ("promoted", "base@2"), log
    assert run.trainer == "obedient, second"
    assert (log.count("obedient trains"), log.count("second trains")) == (1, 2)
    assert [point.step for point in run.curve if point.loss][-2:] == [3 + 3, 3 + 4], "on top of the first one's steps"


def test_a_small_budget_has_no_second_trainer(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "TRAINERS", {("boxes", "pictures"): (("obedient",), ("scratch",))})
    monkeypatch.setattr(choose, "FURTHER", {"obedient": "second"})
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job, run = bench.run(bench.good, trainer="auto", told={"second": {}})
    assert (run.outcome, run.trainer) == ("promoted", "obedient"), bench.log(job)
    assert "second" not in bench.log(job)


def test_a_run_that_is_cancelled_stops_its_trainer(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job = bench.begin(bench.good, told={"steps": 5, "wait_at": 2})
    Backend.wait(lambda: bool(bench.training.runs.of_project(bench.project)[0].curve), seconds=30)
    bench.training.jobs.cancel(job.id)
    job, run = bench.finish(job)
    assert (job.state, run.candidate) == ("cancelled", "")


def test_a_server_that_stops_goes_on_from_the_checkpoint(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    bench.start()
    job = bench.begin(bench.good, told={"steps": 4, "wait_at": 2})
    Backend.wait(lambda: bool(bench.training.runs.of_project(bench.project)[0].curve), seconds=30)
    close(bench.parts)
    assert not bench.training.jobs.get(job.id).ended
    bench.parts = assemble(bench.settings)
    bench.start()
    job, run = bench.finish(job)
    assert run.outcome == "promoted", bench.log(job)
    assert [point.step for point in run.curve if point.loss and point.step][-2:] == [3, 4], "not from the start"


def test_old_predictions_can_go(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    (task,) = bench.add_tasks(1)
    body = {"task": task, "result": [], "score": 0.5, "model_version": "base@1.old"}
    bench.http.post("/api/predictions", json=body).raise_for_status()
    bench.start()
    _, run = bench.run(bench.good, keep_old=False)
    assert run.outcome == "promoted"
    assert [row["model_version"].partition(".")[0] for row in bench.studio.predictions(task)] == ["base@2"]
    assert bench.studio.state.projects[bench.project].model_version.startswith("base@2.")


def test_a_rollback_lets_label_studio_show_what_serves_again(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    (task,) = bench.add_tasks(1)
    registry, loops = bench.parts.store.registry, bench.training.loops
    bench.start()
    bench.run(bench.good)
    assert bench.studio.state.projects[bench.project].model_version.startswith("base@2.")
    registry.rollback(bench.project)
    missing = show_serving(bench.settings, registry, loops, bench.project)
    assert "Label Studio has no predictions of base@1." in missing
    name = missing.partition(";")[0].rpartition(" ")[2]
    body = {"task": task, "result": [], "score": 0.5, "model_version": name}
    bench.http.post("/api/predictions", json=body).raise_for_status()
    assert f"shows the predictions of {name}" in show_serving(bench.settings, registry, loops, bench.project)
    assert bench.studio.state.projects[bench.project].model_version == name
    nowhere = bench.settings.model_copy(update={"label_studio_url": "http://127.0.0.1:1"})
    assert "still shows" in show_serving(nowhere, registry, loops, bench.project)


def test_predictions_of_others_are_not_removed(bench: Bench) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    (task,) = bench.add_tasks(1)
    body = {"task": task, "result": [], "score": 0.5, "model_version": "imported by hand"}
    bench.http.post("/api/predictions", json=body).raise_for_status()
    bench.start()
    bench.run(bench.good, keep_old=False)
    assert "imported by hand" in {row["model_version"] for row in bench.studio.predictions(task)}


def test_a_choice_that_a_person_makes_meanwhile_is_not_overwritten(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.serve(bench.bad)
    bench.annotate(*bench.add_tasks(ENOUGH))
    chosen = add_model(bench.parts.store.registry, bench.good, ModelCard(name="chosen"), bench.settings)
    judged = Retrain._evaluate

    def and_then_somebody_chooses(self: Retrain) -> Any:
        stage = judged(self)
        bench.parts.store.registry.bind(bench.project, chosen.id)
        return stage

    monkeypatch.setattr(Retrain, "_evaluate", and_then_somebody_chooses)
    bench.start()
    job, run = bench.run(bench.good)
    assert (job.state, run.outcome, bench.live()) == ("done", "refused", chosen.id), bench.log(job)
    assert f"{chosen.id} went live meanwhile" in bench.log(job)


def test_what_dead_runs_left_is_swept(bench: Bench) -> None:
    bench.serve(bench.bad)
    stray = runs_folder(bench.settings) / "0000"
    (stray / "data").mkdir(parents=True)
    job = bench.begin(bench.good)
    alive = runs_folder(bench.settings) / job.id
    alive.mkdir()
    assert sweep(bench.settings, bench.training) == 1
    assert alive.is_dir()
    assert not stray.exists()

"""Which tasks a job takes, what becomes of those that fail, and how it goes on after a stop."""

from __future__ import annotations

import base64
import re
import threading
from typing import Any

import pytest

from jobs.desk import Desk, refusal, to_the_end
from labelloop.core.errors import JobError, JobLost, LabelConfigError, ModelFailed
from labelloop.core.pictures import Picture
from labelloop.core.regions import Region
from labelloop.jobs.patience import Cancelled, Interrupted
from labelloop.jobs.shown import not_shown
from labelloop.labelstudio.filters import parse_filters
from labelloop.serving.projects import Lens
from labelloop.testing import FakeEngine
from labelloop.testing.engine import middle_box
from reference.running_server import CONFIG


def give(desk: Desk, task: int, version: str) -> None:
    row = {"result": [], "score": 0.5, "model_version": version}
    desk.studio.state.add_prediction(desk.studio.state.tasks[task], row, touch=False)


def test_only_tasks_without_this_version_are_taken(desk: Desk) -> None:
    tasks = desk.add_tasks(25)
    give(desk, tasks[0], desk.version)
    give(desk, tasks[1], "other@1")
    give(desk, tasks[2], f"big-{desk.version}")
    job = desk.job()
    desk.run(job)
    assert desk.progress(job).stored == 24
    assert desk.versions()[:3] == [
        [desk.version],
        ["other@1", desk.version],
        [f"big-{desk.version}", desk.version],
    ], "Label Studio's filter compares parts of names"


def test_all_replaces_what_this_version_said_before(desk: Desk) -> None:
    tasks = desk.add_tasks(12)
    give(desk, tasks[4], desk.version)
    give(desk, tasks[5], "other@1")
    old = desk.studio.predictions(tasks[4])[0]["id"]
    job = desk.job(only_missing=False)
    desk.run(job)
    assert desk.versions()[4:6] == [[desk.version], ["other@1", desk.version]]
    assert desk.studio.predictions(tasks[4])[0]["id"] != old
    assert desk.progress(job).stored == 12


def test_all_leaves_what_says_the_same_where_it_is(desk: Desk) -> None:
    """Only a task whose prediction differs, or that has two, is written; deleting costs Label Studio its time."""
    tasks = desk.add_tasks(12)
    desk.run(desk.job())
    before = {task: desk.studio.predictions(task)[0]["id"] for task in tasks}
    desk.studio.state.predictions[tasks[3]][0]["score"] = 0.25  # as `labelloop order` does
    give(desk, tasks[7], desk.version)
    imports = desk.imports()
    job = desk.job(only_missing=False)
    desk.run(job)
    after = {task: [row["id"] for row in desk.studio.predictions(task)] for task in tasks}
    renewed = {task for task in tasks if after[task] != [before[task]]}
    assert renewed == {tasks[3], tasks[7]}
    assert desk.versions() == [[desk.version]] * 12
    assert desk.imports() > imports
    assert (desk.progress(job).stored, desk.progress(job).skipped) == (2, 10)
    assert "say what is there already" in desk.log(job)


def test_a_project_that_names_no_predictions_names_these(desk: Desk) -> None:
    desk.tasks = desk.studio.add_tasks(desk.project, [{"image": "data:,x"}])
    project = desk.studio.state.projects[desk.project]
    job = desk.job()
    desk.run(job)
    assert project.model_version == "", "Label Studio refuses a version without any prediction, and there is none"
    desk.add_tasks(3)
    desk.run(desk.store.jobs.resume(job.id))
    assert project.model_version == desk.version
    assert f"now it names {desk.version}" in desk.log(job)
    assert "by themselves" not in desk.log(job)


@pytest.mark.parametrize(
    ("shows", "names", "said"),
    [
        (True, "older@1", "Annotators still get the predictions of older@1. To give them these, .*labelloop order"),
        (True, "the title of a backend", ""),
        (False, "", "The project does not show predictions to annotators. Switch it on: http.*/settings/annotation"),
    ],
    ids=["an earlier version", "a backend", "none, on purpose"],
)
def test_what_a_project_names_stays(desk: Desk, shows: bool, names: str, said: str) -> None:
    tasks = desk.add_tasks(2)
    give(desk, tasks[0], "older@1")
    project = desk.studio.state.projects[desk.project]
    project.model_version, project.show_collab_predictions = names, shows
    desk.store.registry.save_connection(desk.studio.url, desk.studio.token)
    job = desk.job()
    desk.run(job)
    assert project.model_version == names
    assert re.fullmatch(f"{said}.*" if said else "", not_shown(desk.store.registry, job))


@pytest.mark.parametrize(
    ("expression", "taken"),
    [
        ("data.city=Oslo", [1]),
        ("data.city~o", [1, 2]),
        ("data.city != Oslo", [0, 2]),
        ("total_predictions=1", [0]),
        ("total_predictions<1", [1, 2]),
        (
            '{"conjunction": "and", "items": [{"filter": "filter:tasks:data.city", "operator": "equal", "type": "String", "value": "Rome"}]}',
            [2],
        ),
    ],
)
def test_filters(desk: Desk, expression: str, taken: list[int]) -> None:
    cities = ["Bern", "Oslo", "Rome"]
    desk.tasks = desk.studio.add_tasks(desk.project, ({"image": desk.uri, "city": city} for city in cities))
    give(desk, desk.tasks[0], "other@1")
    desk.run(desk.job(filters=parse_filters([expression])))
    assert [number for number, found in enumerate(desk.versions()) if desk.version in found] == taken


def test_a_limit_counts_over_resumptions(desk: Desk) -> None:
    desk.add_tasks(40)
    job = desk.job(limit=25)
    with desk.open(job) as work:
        assert work.advance()
    assert desk.run(job).total == 25
    assert sum(map(len, desk.versions())) == 25
    assert desk.versions()[:25] == [[desk.version]] * 25


def test_a_resumed_job_goes_on_at_its_page(desk: Desk) -> None:
    desk.add_tasks(45)
    predicted: list[int] = []

    class Counting(FakeEngine):
        def predict(self, batch: Any) -> list[tuple[Region, ...]]:
            predicted.append(len(batch))
            return super().predict(batch)

    desk.engine = Counting()
    desk.studio.state.projects[desk.project].model_version = "theirs"  # nothing but pages between two stops
    job = desk.job()
    for _ in range(3):
        with desk.open(job) as work:
            assert work.advance()
    desk.run(job)
    assert desk.versions() == [[desk.version]] * 45
    # a model is warmed up with one picture; pages that were predicted ahead are kept
    assert sum(predicted) <= 45 + 4


def test_tasks_imported_meanwhile_are_taken_and_deleted_ones_do_not_shift_the_rest(desk: Desk) -> None:
    tasks = desk.add_tasks(100)  # more than are read ahead of what is stored
    job = desk.job()
    with desk.open(job) as work:
        assert work.advance()
        desk.delete(*tasks[:15])
        desk.add_tasks(7)
        to_the_end(work)
    assert desk.versions() == [[desk.version]] * 92


def test_failed_tasks_are_listed_and_tried_again_alone(desk: Desk) -> None:
    desk.tasks = desk.studio.add_tasks(
        desk.project, ({"image": desk.uri if n % 5 else f"data:,{n}"} for n in range(20))
    )
    job = desk.job()
    desk.run(job)
    found = desk.failures(job)
    assert [failure.task_id for failure in found] == desk.tasks[::5]
    assert all(failure.code.startswith("media") and failure.message for failure in found)
    assert (desk.progress(job).stored, desk.progress(job).failed) == (16, 4)
    for task in desk.tasks[::5][:3]:
        desk.studio.state.tasks[task].data = {"image": desk.uri}
    before = desk.imports()
    again = desk.store.jobs.resume(job.id, failed=True)
    assert (again.run, again.only_failed) == (2, True)
    desk.run(again)
    assert desk.imports() == before + 1
    assert (desk.progress(job).stored, desk.progress(job).failed) == (19, 1)
    assert [len(found) for found in desk.versions()].count(1) == 19


def test_failed_tasks_that_were_deleted_or_predicted_meanwhile_are_left_alone(desk: Desk) -> None:
    desk.tasks = desk.studio.add_tasks(desk.project, ({"image": "data:,x"} for _ in range(3)))
    job = desk.job()
    desk.run(job)
    give(desk, desk.tasks[0], desk.version)
    desk.delete(desk.tasks[1])
    for task in (desk.tasks[0], desk.tasks[2]):
        desk.studio.state.tasks[task].data = {"image": desk.uri}
    desk.run(desk.store.jobs.resume(job.id, failed=True))
    found = desk.progress(job)
    assert (found.stored, found.failed, found.skipped) == (1, 0, 2)
    assert desk.versions() == [[desk.version], [desk.version]]


def test_pictures_that_label_studio_cannot_give_for_a_moment_are_asked_for_again(desk: Desk) -> None:
    addresses = [desk.studio.add_upload(desk.project, f"{n}.jpg", b"") for n in range(3)]
    for upload in desk.studio.state.uploads.values():
        upload.content = base64.b64decode(desk.uri.partition(",")[2])
    desk.tasks = desk.studio.add_tasks(desk.project, ({"image": address} for address in addresses))
    refused = []

    def around(_ask: Any, path: str, answer: Any) -> Any:
        if path.startswith("/data/upload") and len(refused) < 12:
            refused.append(path)
            return refusal(503)
        return answer()

    desk.studio.around = around
    job = desk.job()
    desk.run(job)
    assert refused
    assert desk.progress(job).stored == 3


def test_label_studio_may_go_away_and_come_back(desk: Desk) -> None:
    desk.add_tasks(30)
    job = desk.job()
    back = threading.Event()
    once = threading.Lock()

    def check() -> None:
        # called by each thread of the job that waits
        if "Trying again" in desk.log(job):
            with once:
                if not back.is_set():
                    desk.studio.start()
                    back.set()

    with desk.open(job, check=check) as work:
        assert work.advance()
        desk.studio.stop()
        to_the_end(work)
    assert back.is_set(), "the case is not made"
    assert desk.versions() == [[desk.version]] * 30


def test_a_changed_label_config_ends_the_job_before_it_stores_another_version(desk: Desk) -> None:
    desk.add_tasks(3)
    job = desk.job()
    desk.studio.state.projects[desk.project].label_config = CONFIG.replace(
        'value="Car"', 'value="Auto" predicted_values="car"'
    )
    with pytest.raises(LabelConfigError, match="Start a new job"), desk.open(job):
        pass


def test_a_model_that_maps_to_nothing_ends_the_job_at_once(desk: Desk) -> None:
    desk.studio.state.projects[desk.project].label_config = CONFIG.replace('value="Car"', 'value="Auto"')
    config = desk.studio.state.projects[desk.project].label_config
    desk.version = Lens().view(desk.model, config).name
    desk.add_tasks(3)
    with pytest.raises(LabelConfigError, match="predicted_values"), desk.open(desk.job()):
        pass


def test_a_model_that_does_not_load_ends_the_job(desk: Desk) -> None:
    class Broken(FakeEngine):
        def predict(self, batch: Any) -> list[tuple[Region, ...]]:
            raise ValueError("no memory")

    desk.engine = Broken()
    desk.add_tasks(3)
    with pytest.raises(ModelFailed, match="no memory"), desk.open(desk.job()):
        pass


def test_a_model_that_fails_on_one_picture_fails_one_task(desk: Desk) -> None:
    seen = []

    def find(picture: Picture) -> tuple[Region, ...]:
        seen.append(1)
        if len(seen) == 4:
            raise ValueError("odd picture")
        return middle_box(picture)

    desk.engine = FakeEngine(find, max_batch=1)
    desk.add_tasks(10)
    job = desk.job()
    desk.run(job)
    assert [failure.code for failure in desk.failures(job)] == ["model-failed"]
    assert desk.progress(job).stored == 9


def test_no_token_says_what_to_do(desk: Desk) -> None:
    desk.settings = desk.settings.model_copy(update={"label_studio_url": "http://elsewhere:1"})
    with pytest.raises(JobError, match="LABEL_STUDIO_API_KEY"), desk.open(desk.job()):
        pass


def test_a_worker_that_lost_its_job_writes_nothing_more(desk: Desk) -> None:
    desk.add_tasks(40)
    job = desk.job()
    with desk.open(job) as work:
        assert work.advance()
        stored = desk.imports()
        thief = desk.store.workers.register()
        current = desk.store.jobs.get(job.id)
        assert desk.store.jobs.claim(current, thief)
        with pytest.raises(JobLost):
            to_the_end(work)
    assert desk.imports() == stored


@pytest.mark.parametrize("how", ["cancel", "stop"])
def test_waiting_for_label_studio_can_be_ended(desk: Desk, how: str) -> None:
    desk.add_tasks(10)
    job = desk.job()
    stopped = []

    def check() -> None:
        if stopped:
            raise Interrupted

    def around(_ask: Any, path: str, answer: Any) -> Any:
        if not path.endswith("/predictions"):
            return answer()
        if how == "cancel":
            desk.store.jobs.cancel(job.id)
        else:
            stopped.append(1)
        return refusal(503)

    desk.studio.around = around
    with desk.open(job, check=check) as work, pytest.raises(Cancelled if how == "cancel" else Interrupted):
        to_the_end(work)


def test_a_cancelled_job_does_not_finish_the_page_that_it_predicts(desk: Desk) -> None:
    desk.add_tasks(10)
    job = desk.job()
    looking, go_on = threading.Event(), threading.Event()

    def find(picture: Picture) -> tuple[Region, ...]:
        if picture.size == (32, 24):  # not the grey one when the model is loaded
            looking.set()
            assert go_on.wait(20)
        return middle_box(picture)

    desk.engine = FakeEngine(find, max_batch=1)
    with desk.open(job) as work:
        assert looking.wait(20)
        desk.store.jobs.cancel(job.id)
        with pytest.raises(Cancelled):
            to_the_end(work)
        go_on.set()
    assert not any(desk.versions())
    desk.store.jobs.end(job.id, "cancelled", owner=desk.store.jobs.get(job.id).owner)
    desk.run(desk.store.jobs.resume(job.id))
    assert desk.versions() == [[desk.version]] * 10

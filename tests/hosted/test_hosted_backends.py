"""Backends of both generations behind `labelloop start`, asked over HTTP as Label Studio asks."""

from __future__ import annotations

import base64
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from labelloop.testing import FakeLabelStudio
from reference.interpreters import interpreter
from reference.running_server import jpeg
from reference.stand import BACKENDS, BOXES, WORDS, Caller, Stand, recording
from reference.waiting import wait

PICTURE = "data:image/jpeg;base64," + base64.b64encode(jpeg(320, 240)).decode()
pytestmark = pytest.mark.slow  # each starts a server, most also the workflow engine

Begin = Callable[..., Caller]


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path / "home")


@pytest.fixture
def begin(stand: Stand) -> Iterator[Begin]:
    """Start a backend: `begin("event_listener", "--with", "a=b")`."""
    with ExitStack() as stack:
        yield lambda name, *options: stack.enter_context(stand.serving(str(BACKENDS / name), *options))


def notes(results: list[dict[str, Any]]) -> list[str]:
    """What the event listener says about itself."""
    return results[0]["result"][0]["meta"]["text"]


def annotated(text: str, choice: str, *, skipped: bool = False) -> dict[str, Any]:
    result = [{"from_name": "mood", "to_name": "text", "type": "choices", "value": {"choices": [choice]}}]
    return {"data": {"text": text}, "annotations": [{"id": 1, "result": result, "was_cancelled": skipped}]}


# --- second generation ----------------------------------------------------------------------------------


def test_a_model_response_through_the_recordings(begin: Begin, shared: Path) -> None:
    caller = begin("event_listener", "--with", "flavour=sweet", "SHADE=dark")
    body = recording(shared, "predict_open_task")
    assert caller.setup(body["label_config"]) == "NewModel-v0.0.1"  # built before the first task, to know its name
    results = caller.replay(body)
    assert [one["model_version"] for one in results] == ["NewModel-v0.0.1"]
    assert results[0]["score"] == 0.7
    assert results[0]["result"][0]["value"]["rectanglelabels"] == ["Car"]
    assert {"builds 1", "flavour sweet", "shade dark"} <= set(notes(results))
    batch = recording(shared, "predict_batch_dm_action")
    results = caller.replay(batch)
    assert len(results) == len(batch["tasks"])
    assert "builds 1" in notes(results), "one instance for a project and label config, built once"


def test_a_task_comes_whole_and_a_prompt_as_it_was_sent(begin: Begin, shared: Path) -> None:
    caller = begin("event_listener")
    (task,) = recording(shared, "predict_open_task")["tasks"]
    (said,) = caller.predict([task | {"annotations": [{"id": 1}, {"id": 2}]}])
    assert "annotations 2" in notes([said])
    context = recording(shared, "predict_interactive_keypoint")["params"]["context"]
    (said,) = caller.predict([task], context=context)
    assert said["result"][0]["value"]["x"] == context["result"][0]["value"]["x"]


def test_a_whole_project_is_predicted_under_the_name_that_the_model_gives_itself(stand: Stand) -> None:
    with FakeLabelStudio() as studio:
        project = studio.add_project("boxes", BOXES)
        tasks = studio.add_tasks(project, [{"image": PICTURE}] * 3)
        stand.environment |= {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.token}
        with stand.serving(str(BACKENDS / "event_listener"), "--with", "flavour=sweet") as caller:
            caller.studio = studio
            for command in ("connect", "doctor"):
                said = stand.run(command, str(project), "--backend-url", caller.url)
                assert said.returncode == 0, said.stdout
                assert "writes regions by itself" in said.stdout
            said = stand.run("prelabel", str(project))
            assert said.returncode == 0, said.stdout + said.stderr
            stored = [studio.predictions(task) for task in tasks]
            assert [[one["model_version"] for one in rows] for rows in stored] == [["NewModel-v0.0.1"]] * 3
            assert "flavour sweet" in notes(stored[0])
            (job,) = caller.jobs("prelabel")
            assert job["version"] == caller.setup(project=project) == "NewModel-v0.0.1"


def test_extra_params_of_the_model_page_win_over_with(begin: Begin) -> None:
    caller = begin("event_listener", "--with", "flavour=sweet")
    caller.setup(extra_params='{"flavour": "sour"}')
    assert "flavour sour" in notes(caller.predict([{"id": 1, "data": {"image": "x"}}]))


def test_fit_hears_events_in_order_as_a_job_and_its_version_is_shown(begin: Begin, shared: Path) -> None:
    caller = begin("event_listener")
    event = recording(shared, "webhook_annotation_created")
    config = event["project"]["label_config"]
    assert caller.setup(config) == "NewModel-v0.0.1"
    assert caller.http.post("/webhook", json=event).status_code == 201
    assert caller.http.post("/webhook", json=recording(shared, "webhook_tasks_created")).status_code == 201
    several = recording(shared, "webhook_annotations_created_bulk")
    assert caller.http.post("/webhook", json=several).status_code == 201
    gone = recording(shared, "webhook_annotations_deleted")
    gone["annotations"] = [{"id": event["annotation"]["id"]}, {"id": 10_001}]
    assert caller.http.post("/webhook", json=gone).status_code == 201
    answer = caller.http.post("/webhook", json=recording(shared, "webhook_start_training")).json()
    assert answer["status"] == "accepted"
    # bumped by each annotation, by two that are gone and by the button, and no setup took that back
    heard = [event["annotation"]["id"], *(one["id"] for one in several["annotation"])]
    wait(lambda: caller.setup(config) == f"NewModel-v0.0.{len(heard) + 4}")
    (said,) = caller.predict([{"id": 1, "data": {"image": "x"}}], config)
    assert said["model_version"] == f"NewModel-v0.0.{len(heard) + 4}"
    created = [["ANNOTATION_CREATED", number, 1] for number in heard]
    assert len(created) > 2
    # bare ids; what is known of the first is the task that it was on
    deleted = [["ANNOTATION_DELETED", heard[0], event["annotation"]["task"]], ["ANNOTATION_DELETED", 10_001, 1]]
    assert f"heard {[*created, *deleted, ['START_TRAINING', None, 1]]}" in notes([said])
    wait(lambda: {job["state"] for job in caller.jobs()} == {"done"})


def test_the_loop_leaves_training_to_a_model_that_trains_itself(stand: Stand) -> None:
    with FakeLabelStudio() as studio:
        project = studio.add_project("boxes", BOXES)
        studio.add_tasks(project, [{"image": PICTURE}])
        stand.environment |= {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.token}
        with stand.serving(str(BACKENDS / "event_listener")) as caller:
            caller.studio = studio
            assert caller.setup(project=project) == "NewModel-v0.0.1"
            said = stand.run("train", str(project))
            assert said.returncode == 0, said.stdout + said.stderr
            assert "code that trains itself" in said.stdout
            wait(lambda: caller.setup(project=project) == "NewModel-v0.0.2")


def test_what_a_model_keeps_survives_a_restart(stand: Stand, shared: Path) -> None:
    event = recording(shared, "webhook_annotation_created")
    config = event["project"]["label_config"]
    with stand.serving(str(BACKENDS / "event_listener")) as caller:
        caller.setup(config)
        caller.http.post("/webhook", json=event)
        wait(lambda: caller.setup(config) == "NewModel-v0.0.2")
    with stand.serving(str(BACKENDS / "event_listener")) as caller:
        assert caller.setup(config) == "NewModel-v0.0.2"
        assert "heard [['ANNOTATION_CREATED'" in " ".join(
            notes(caller.predict([{"id": 1, "data": {"image": "x"}}], config))
        )


def test_predictions_go_on_while_fit_works_and_a_kill_of_all_loses_no_event(
    stand: Stand, shared: Path, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    body = recording(shared, "webhook_start_training")
    config = body["project"]["label_config"]
    arguments = (str(BACKENDS / "event_listener"), "--with", f"GATE={gate}")
    with stand.serving(*arguments) as caller:
        caller.setup(config)
        caller.http.post("/webhook", json=body)
        with gate.open("w"):  # opens when fit waits there
            assert caller.predict([{"id": 1, "data": {"image": "x"}}], config)[0]["result"]
            caller.process.send_signal(signal.SIGKILL)
            caller.process.wait(30)
    with stand.serving(*arguments) as caller:
        with gate.open("w") as writing:  # the event is heard again
            writing.write("go on")
        wait(lambda: caller.setup(config) == "NewModel-v0.0.2")


def test_an_event_that_kills_the_model_each_time_is_given_up_and_the_next_is_heard(
    begin: Begin, shared: Path, tmp_path: Path
) -> None:
    deaths = tmp_path / "deaths"
    caller = begin("event_listener", "--with", "DIES_OF=START_TRAINING", f"DEATHS={deaths}")
    event = recording(shared, "webhook_annotation_created")
    caller.http.post("/webhook", json=recording(shared, "webhook_start_training"))
    wait(deaths.exists)
    caller.http.post("/webhook", json=event)
    wait(lambda: any(job["state"] == "failed" for job in caller.jobs()))
    assert deaths.read_text() == "xxx"
    assert caller.setup(event["project"]["label_config"]) == "NewModel-v0.0.2"


# --- first generation -----------------------------------------------------------------------------------


def test_a_text_classifier_learns_from_what_label_studio_once_sent_along(begin: Begin) -> None:
    pytest.importorskip("sklearn")
    caller = begin("text_classifier")
    first = caller.setup(WORDS)
    tasks = [{"id": 1, "data": {"text": "sun and joy"}}, {"id": 2, "data": {"text": "rain and grief"}}]
    assert [len(one["result"]) for one in caller.predict(tasks, WORDS)] == [1, 1]
    completions = [annotated(f"sun {n} joy", "good") for n in range(5)]
    completions += [annotated(f"rain {n} grief", "bad") for n in range(5)]
    completions += [annotated("rain", "good", skipped=True)]
    body = {"annotations": completions, "project": "1.1795176116", "label_config": WORDS, "params": {}}
    assert caller.http.post("/train", json=body).json()["status"] == "accepted"
    version = wait(lambda: (now := caller.setup(WORDS)) != first and now)
    results = caller.predict(tasks, WORDS)
    assert [one["result"][0]["value"]["choices"] for one in results] == [["good"], ["bad"]]
    assert {one["model_version"] for one in results} == {version}
    assert 0.5 < results[0]["score"] <= 1  # NumPy's number, written as JSON


def test_a_detector_learns_from_the_annotated_tasks_of_its_project(stand: Stand) -> None:
    with FakeLabelStudio() as studio:
        project = studio.add_project("boxes", BOXES)
        (task,) = studio.add_tasks(project, [{"image": PICTURE}])
        value = {"x": 40, "y": 50, "width": 6, "height": 8, "rotation": 0, "rectanglelabels": ["Car"]}
        region = {"id": "a", "from_name": "label", "to_name": "image", "type": "rectanglelabels", "value": value}
        region |= {"original_width": 320, "original_height": 240, "image_rotation": 0}
        stand.environment |= {"LABEL_STUDIO_URL": studio.url, "LABEL_STUDIO_API_KEY": studio.token}
        options = ("--with", "device=cuda:0", "score_threshold=0.25")
        with stand.serving(str(BACKENDS / "box_detector"), *options) as caller:
            caller.studio = studio
            first = caller.setup(project=project)
            tasks = [{"id": task, "data": {"image": PICTURE}}]
            (said,) = caller.predict(tasks, project=project)
            (drawn,) = said["result"]  # the label Zebra, which the config does not have, is left out
            assert (drawn["value"]["x"], drawn["original_width"], drawn["score"]) == (10, 320, 0.25)
            assert drawn["id"] == "cuda:0-1"
            annotate = f"{studio.url}/api/tasks/{task}/annotations/"
            headers = {"Authorization": f"Token {studio.token}"}
            assert httpx.post(annotate, json={"result": [region]}, headers=headers).status_code == 201
            event = {"action": "START_TRAINING", "project": {"id": project, "label_config": BOXES}}
            assert caller.http.post("/webhook", json=event).json()["status"] == "accepted"
            wait(lambda: caller.setup(project=project) != first)
            assert caller.predict(tasks, project=project)[0]["result"][0]["value"]["x"] == 40


def test_where_label_studio_is_can_stand_in_with(stand: Stand) -> None:
    """As the tutorials write it: pictures are fetched there then, by us."""
    with FakeLabelStudio() as studio:
        project = studio.add_project("boxes", BOXES)
        url = studio.add_upload(project, "a.jpg", jpeg(64, 48))
        told = ("--with", f"LABEL_STUDIO_HOSTNAME={studio.url}", f"LABEL_STUDIO_API_KEY={studio.token}", "device=cpu")
        with stand.serving(str(BACKENDS / "box_detector"), *told) as caller:
            caller.studio = studio
            (said,) = caller.predict([{"id": 1, "data": {"image": url}}], project=project)
    assert said["result"][0]["original_width"] == 64


def test_a_task_that_kills_the_model_fails_alone(begin: Begin) -> None:
    caller = begin("box_detector", "--with", "poison=poisonous")
    tasks = [{"id": n, "data": {"image": "data:,poisonous" if n == 2 else PICTURE}} for n in range(4)]
    results = caller.predict(tasks)
    assert [len(one.get("result", ())) for one in results] == [1, 1, 0, 1]
    assert "died" in caller.http.get("/api/failures").text


def test_a_picture_that_is_not_there_fails_one_task_with_the_reason(begin: Begin) -> None:
    caller = begin("box_detector")
    results = caller.predict(
        [{"id": 1, "data": {"image": PICTURE}}, {"id": 2, "data": {"image": "/data/upload/1/no.jpg"}}]
    )
    assert [len(one.get("result", ())) for one in results] == [1, 0]


def test_check_says_what_a_backend_is(stand: Stand, tmp_path: Path) -> None:
    folder = tmp_path / "not" / "there"
    said = stand.run("start", "event_listener", "--root-dir", str(BACKENDS), "--check", "--model-dir", str(folder))
    assert said.returncode == 0, said.stderr
    assert "NewModel, generation 2" in said.stdout
    assert folder.is_dir(), "the model may write there"
    said = stand.run("start", str(BACKENDS / "box_detector"), "--check")
    assert "MeanBox, generation 1.0" in said.stdout
    assert "some cannot" in said.stdout
    assert said.returncode == 0, "it looks into the label config, which Label Studio gives"


def test_check_fails_where_the_model_cannot_be_built(stand: Stand, tmp_path: Path) -> None:
    model = (
        "from label_studio_ml.model import LabelStudioMLBase\nclass Model(LabelStudioMLBase):\n    def setup(self):\n"
    )
    (tmp_path / "model.py").write_text(f"{model}        open('no weights')\n")
    said = stand.run("start", str(tmp_path), "--check")
    assert said.returncode == 1
    assert "FileNotFoundError" in said.stderr
    said = stand.run("models", "add", f"{tmp_path}/model.py:Other")
    assert said.returncode == 1
    assert "has no class Other" in said.stderr
    assert "It has: Model" in said.stderr
    assert "mmdetection, mmocr" in stand.run("init", "x", "--from", "mmdetektion").stderr


def test_init_makes_a_backend_that_starts(stand: Stand, tmp_path: Path) -> None:
    said = stand.run("init", "mine", "--root-dir", str(tmp_path))
    assert said.returncode == 0, said.stderr
    assert "already" in stand.run("init", "mine", "--root-dir", str(tmp_path)).stderr
    assert "NewModel" in stand.run("start", str(tmp_path / "mine"), "--check").stdout
    (tmp_path / "mine" / "weights.bin").write_text("dear")
    script = f"{BACKENDS / 'box_detector' / 'detector.py'}:MeanBox"
    assert stand.run("create", "mine", "--root-dir", str(tmp_path), "--force", "--script", script).returncode == 0
    assert "MeanBox" in stand.run("start", str(tmp_path / "mine"), "--check").stdout
    assert (tmp_path / "mine" / "weights.bin").read_text() == "dear"
    official = "label_studio_ml/examples/mmdetection/mmdetection.py"  # as the tutorials have it
    assert stand.run("init", "theirs", "--root-dir", str(tmp_path), "--from", official).returncode == 0
    assert "runtime: openmmlab" in (tmp_path / "theirs" / "requirements.txt").read_text()


# --- two at a time --------------------------------------------------------------------------------------

VERSIONED = """
import shape_tools
from label_studio_ml.model import LabelStudioMLBase

class Model(LabelStudioMLBase):
    def predict(self, tasks, context=None, **kwargs):
        x = shape_tools.where()
        value = {"x": x, "y": 1, "width": 2, "height": 2, "rotation": 0, "rectanglelabels": ["Car"]}
        region = {"from_name": "label", "to_name": "image", "type": "rectanglelabels", "original_width": 9, "original_height": 9}
        return [{"result": [dict(region, value=value)], "score": 0.5} for _ in tasks]
"""


def test_backends_whose_dependencies_clash_live_behind_one_server(stand: Stand, tmp_path: Path) -> None:
    """The same package in two versions, in two environments, of two Pythons where there are two."""
    for name, x in (("old", 11), ("new", 22)):
        python = Path(interpreter("3.8") if name == "old" else interpreter("3.11"))
        env = tmp_path / f"env-{name}"
        assert os.spawnl(os.P_WAIT, str(python), str(python), "-m", "venv", "--without-pip", str(env)) == 0
        (site,) = env.glob("lib/python3*/site-packages")
        (site / "shape_tools.py").write_text(f"__version__ = '{x}'\ndef where(): return {x}\n")
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.py").write_text(VERSIONED)
        said = stand.run("models", "add", str(tmp_path / name), "--python", str(env / "bin" / "python"))
        assert said.returncode == 0, said.stderr
    for project, name in ((1, "old"), (2, "new")):
        assert stand.run("models", "use", str(project), name).returncode == 0
    with stand.serving(command="serve") as caller:
        for project, x in ((1, 11), (2, 22)):
            (said,) = caller.predict([{"id": 1, "data": {"image": "x"}}], project=project)
            assert said["result"][0]["value"]["x"] == x

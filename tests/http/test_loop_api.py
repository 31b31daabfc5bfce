"""The learning loop over HTTP: its state, switching it, training now, and the Start Training button."""

from __future__ import annotations

import pytest

from labelloop.app import training_of
from labelloop.jobs.training import Training
from labelloop.store.loops import LoopOptions
from reference.running_server import Backend, Start

STUDIO = "http://127.0.0.1:8080"
PROJECT = 7
START = {"action": "START_TRAINING", "project": {"id": PROJECT, "title": "streets"}}


@pytest.fixture
def backend(start: Start) -> Backend:
    return start()


@pytest.fixture
def training(backend: Backend) -> Training:
    backend.parts.store.registry.save_connection(STUDIO, "token")
    return training_of(backend.parts.store)


@pytest.mark.usefixtures("training")
def test_a_loop_is_switched_on_changed_and_seen(backend: Backend) -> None:
    address = f"/api/projects/{PROJECT}/loop"
    assert backend.http.get(address).json()["error"] == "loop-not-found"
    body = {"enabled": True, "options": {"min_new": 5, "budget_s": 15}}
    assert backend.http.put(address, json=body).json()["enabled"]
    backend.http.put(address, json={"options": {"min_new": 6}}).raise_for_status()
    state = backend.http.get(address).json()
    assert (state["enabled"], state["options"]["min_new"], state["options"]["budget_s"]) == (True, 6, 15)
    assert state["next"] == "0 of 6 new annotations."


@pytest.mark.usefixtures("training")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"enabled": "yes"}, "true or false"),
        ({"options": {"min_new": 0}}, "cannot run like that"),
        ({"options": {"minnew": 5}}, "minnew"),
        ({"options": [1]}, "object"),
        ({"options": {"trainer": "command", "trainer_options": {"command": "rm -rf /"}}}, "--with"),
    ],
    ids=["not a switch", "impossible", "a slip", "not an object", "a program to run"],
)
def test_what_cannot_be_is_refused(backend: Backend, body: dict[str, object], says: str) -> None:
    answer = backend.http.put(f"/api/projects/{PROJECT}/loop", json=body)
    assert answer.status_code == 400
    assert says in answer.text


def test_a_form_of_a_foreign_page_changes_nothing(backend: Backend, training: Training) -> None:
    answer = backend.http.post(f"/api/projects/{PROJECT}/train", content="{}")
    assert answer.status_code == 400
    assert training.unfinished(PROJECT) is None


def test_training_now_is_one_run_however_often_it_is_asked_for(backend: Backend, training: Training) -> None:
    first = backend.http.post(f"/api/projects/{PROJECT}/train", json={"options": {"budget_s": 9}})
    again = backend.http.post(f"/api/projects/{PROJECT}/train", json={})
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["job"] == again.json()["job"]
    (run,) = backend.http.get(f"/api/projects/{PROJECT}/runs").json()["runs"]
    assert (run["job_id"], run["stage"], run["options"]["budget_s"]) == (first.json()["job"], "pull", 9)
    loop = training.loops.get(PROJECT)
    assert (loop.enabled, loop.options) == (False, LoopOptions()), "once is not for ever"


def test_training_needs_a_label_studio(backend: Backend) -> None:
    answer = backend.http.post(f"/api/projects/{PROJECT}/train", json={})
    assert answer.status_code == 409
    assert "labelloop connect" in answer.json()["hint"]


def test_start_training_says_what_comes_of_it(backend: Backend, training: Training) -> None:
    accepted = backend.http.post("/webhook", json=START)
    assert (accepted.status_code, accepted.json()["status"]) == (201, "accepted")
    job, _ = training.begin(PROJECT, STUDIO, training.loops.get(PROJECT).options, reason="the trigger")
    running = backend.http.post("/webhook", json=START).json()
    assert (running["status"], running["job"]) == ("running", job.id)


def test_start_training_of_an_unconnected_project_says_what_is_missing(backend: Backend) -> None:
    answer = backend.http.post("/webhook", json=START).json()
    assert answer["status"] == "declined"
    assert "labelloop connect 7" in answer["message"]

"""Rollback and history over HTTP: the next prediction carries the version that was put back."""

from __future__ import annotations

from labelloop.core.cards import ModelCard
from labelloop.core.settings import read_settings
from labelloop.serving.models import add_model
from reference.running_server import Backend, Start, jpeg


def assigned(backend: Backend, model: str) -> None:
    answer = backend.http.put("/api/projects/1/model", json={"model": model})
    assert answer.status_code == 200, answer.text


def version_now(backend: Backend) -> str:
    import base64

    picture = "data:image/jpeg;base64," + base64.b64encode(jpeg()).decode()
    (result,) = backend.predict([{"id": 1, "data": {"image": picture}}]).json()["results"]
    return str(result["model_version"]).partition(".")[0]


def test_a_rollback_puts_back_what_answered_before(start: Start) -> None:
    backend = start(models=("cars", "dogs"))
    for name in ("cars@1", "dogs@1"):
        assigned(backend, name)
        backend.wait(lambda name=name: version_now(backend) == name)
    answer = backend.http.post("/api/projects/1/rollback")
    assert (answer.status_code, answer.json()) == (200, {"project": 1, "model": "cars@1", "instead_of": "dogs@1"})
    assert version_now(backend) == "cars@1", "the model is still in memory, so at once"
    refused = backend.http.post("/api/projects/1/rollback")
    assert (refused.status_code, refused.json()["error"]) == (400, "model")
    assert "nothing before cars@1" in refused.json()["message"]


def test_the_history_tells_every_move(start: Start) -> None:
    backend = start(models=("cars", "dogs"))
    assigned(backend, "cars@1"), assigned(backend, "dogs")
    backend.http.post("/api/projects/1/rollback")
    rows = backend.http.get("/api/projects/1/history").json()["history"]
    assert [(row["from"], row["to"], row["rollback"], row["reason"], row["by"]) for row in rows] == [
        ("dogs@1", "cars@1", True, "rolled back", "JSON API"),
        ("cars@1", "dogs", False, "assigned", "JSON API"),
        (None, "cars@1", False, "assigned", "JSON API"),
    ]
    assert backend.http.get("/api/projects/2/history").json() == {"project": 2, "history": []}


def test_another_process_rolls_back_and_the_server_follows(start: Start) -> None:
    backend = start(models=("cars", "dogs"))
    for name in ("cars@1", "dogs@1"):
        assigned(backend, name)
        backend.wait(lambda name=name: version_now(backend) == name)
    from labelloop.serving.models import open_registry

    open_registry(read_settings(home=backend.home)).rollback(1)
    backend.wait(lambda: version_now(backend) == "cars@1")


def test_numbers_that_no_project_has_are_refused(start: Start) -> None:
    backend = start()
    for method, path in (("POST", "rollback"), ("GET", "history")):
        assert backend.http.request(method, f"/api/projects/{2**63}/{path}").status_code == 400
    assert backend.http.post("/api/projects/9/rollback").status_code == 400
    assert backend.http.get("/api/projects/9/rollback").status_code == 405


def test_a_candidate_serves_nobody_by_being_there(start: Start) -> None:
    """Training adds a version to the very model that a project follows by name."""
    backend = start()
    before = version_now(backend)
    settings = read_settings(home=backend.home)
    card = ModelCard(name="cars", engine="empty", labels=backend.engine.classes, score_threshold=0.5)
    assert add_model(backend.parts.store.registry, None, card, settings, trained=True).id == "cars@2"
    backend.parts.projects.refresh()
    assert version_now(backend) == before == "cars@1"

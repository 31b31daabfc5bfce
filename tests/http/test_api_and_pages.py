"""Our own side: the JSON API, the page at /, uploads."""

from __future__ import annotations

import pickle
from pathlib import Path

from reference.running_server import CONFIG


def test_programs_get_json_and_people_get_a_page(start) -> None:
    backend = start()
    backend.setup(4)
    assert backend.http.get("/").json()["status"] == "UP"
    page = backend.http.get("/", headers={"Accept": "text/html,*/*"})
    assert page.headers["content-type"].startswith("text/html")
    assert "cars@1" in page.text
    assert "http://" not in page.text.replace("http://127.0.0.1", ""), "no address outside"


def test_the_page_escapes_what_strangers_wrote(start) -> None:
    backend = start()
    backend.setup(4, config=CONFIG.replace("Car", "&lt;script&gt;alert(1)&lt;/script&gt;"))
    page = backend.http.get("/", headers={"Accept": "text/html"}).text
    assert "<script>" not in page
    assert "alert(1)" in page


def test_what_maps_to_nothing_is_listed(start) -> None:
    backend = start()
    backend.setup(4, config=CONFIG.replace("Car", "Cart"))
    row = backend.http.get("/api/projects/4").json()
    assert row["classes_without_label"] == ["car"]
    assert row["labels_without_class"] == ["Cart"]
    assert backend.http.get("/api/projects/99").status_code == 404


def test_assigning_by_api(start) -> None:
    backend = start(models=("cars", "dogs"))
    assert backend.http.put("/api/projects/4/model", json={"model": "dogs"}).json()["model"] == "dogs@1"
    assert backend.setup(4).startswith("dogs@1.")
    missing = backend.http.put("/api/projects/4/model", json={"model": "dog"})
    assert missing.status_code == 404
    assert missing.json()["hint"] == "Did you mean dogs?"


def test_a_form_from_a_foreign_page_changes_nothing(start) -> None:
    backend = start()
    answer = backend.http.put(
        "/api/projects/4/model", content=b'{"model": "cars"}', headers={"Content-Type": "text/plain"}
    )
    assert answer.status_code == 400
    assert backend.parts.store.registry.catalogue().bindings == {}


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/labelloop-bomb"),))  # type: ignore[return-value]


def test_an_upload_is_read_as_onnx_and_never_unpickled(start) -> None:
    backend = start()
    Path("/tmp/labelloop-bomb").unlink(missing_ok=True)
    headers = {"Content-Type": "application/octet-stream"}
    answer = backend.http.put("/api/models/evil", content=pickle.dumps(Bomb()), headers=headers)
    assert answer.status_code == 400
    assert not Path("/tmp/labelloop-bomb").exists()
    assert [version.name for version in backend.parts.store.registry.catalogue().versions] == ["cars"]


def test_an_uploaded_model_is_served(start, shared: Path) -> None:
    backend = start()
    headers = {"Content-Type": "application/octet-stream"}
    content = (shared / "data" / "models" / "nanodet_m_320.onnx").read_bytes()
    answer = backend.http.put("/api/models/nano", content=content, headers=headers)
    assert answer.status_code == 201, answer.text
    assert answer.json()["model"] == "nano@1"
    assert backend.http.put("/api/projects/4/model", json={"model": "nano"}).status_code == 200
    assert backend.setup(4).startswith("nano@1.")


def test_unknown_addresses_and_methods_are_plain(start) -> None:
    backend = start()
    assert backend.http.get("/nothing").status_code == 404
    assert backend.http.get("/predict").status_code == 405
    assert 'path="other"' in backend.http.get("/metrics").text

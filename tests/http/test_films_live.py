"""Films through `/predict`: short ones are answered with tracks, longer ones are left to a job."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.regions import Size
from labelloop.core.settings import read_settings
from labelloop.labelstudio.video import decode_track
from labelloop.serving.models import add_model
from labelloop.testing import FakeLabelStudio
from labelloop.video.lifespans import boxes_by_frame
from reference.film_scene import FILM_CONFIG, HEIGHT, SIDE, WIDTH, ColourEngine, SquareEngine, across, write_scene
from reference.running_server import Backend, Start

CONFIG = FILM_CONFIG.format(rate=25)


@pytest.fixture
def serve(start: Start, tmp_path: Path) -> Callable[..., Backend]:
    def serve(engine: SquareEngine | None = None, **settings: Any) -> Backend:
        backend = start(engine=engine or SquareEngine(), local_files_root=tmp_path, **settings)
        backend.parts.store.registry.bind(1, "cars", reason="test")
        backend.parts.projects.refresh()
        return backend

    return serve


def task(path: Path, number: int = 7) -> dict[str, Any]:
    return {"id": number, "data": {"video": f"/data/local-files/?d={path.name}"}}


def test_a_short_film_is_answered_with_tracks(serve: Callable[..., Backend], tmp_path: Path) -> None:
    backend = serve()
    version = backend.setup(1, config=CONFIG)
    answer = backend.predict([task(write_scene(tmp_path / "a.mp4"))], config=CONFIG).json()
    (found,) = answer["results"]
    assert found["model_version"] == version
    (item,) = found["result"]
    assert item["value"]["labels"] == ["Red"]
    (region,) = decode_track(item, size=Size(WIDTH, HEIGHT))
    boxes = boxes_by_frame(region.shape)
    assert set(boxes) == set(range(1, 51))
    left, top = across(25)
    assert boxes[25].xyxy == pytest.approx((left, top, left + SIDE, top + SIDE), abs=5)


def test_a_longer_film_is_a_jobs_and_not_stored_as_done(serve: Callable[..., Backend], tmp_path: Path) -> None:
    engine = SquareEngine()
    backend = serve(engine, film_live_s=1.5)
    films = [
        task(write_scene(tmp_path / name, frames=frames), number)
        for number, (name, frames) in enumerate([("long.mp4", 50), ("short.mp4", 30)], start=1)
    ]
    long, short = backend.predict(films, config=CONFIG).json()["results"]
    assert "result" not in long
    assert "The film lasts 2 s" in long["error"]
    assert "labelloop prelabel" in long["error"]
    assert len(short["result"]) == 1
    assert engine.looked < 35


def test_a_film_beside_a_bad_one_and_one_without_a_name(serve: Callable[..., Backend], tmp_path: Path) -> None:
    backend = serve()
    (tmp_path / "bad.mp4").write_bytes(b"no film at all")
    tasks = [task(tmp_path / "bad.mp4", 1), {"id": 2, "data": {}}, task(write_scene(tmp_path / "good.mp4"), 3)]
    bad, nameless, good = backend.predict(tasks, config=CONFIG).json()["results"]
    assert "is no film" in bad["error"]
    assert "no 'video'" in nameless["error"]
    assert len(good["result"]) == 1


def test_a_film_that_label_studio_keeps_is_fetched_once(
    serve: Callable[..., Backend], studio: FakeLabelStudio, tmp_path: Path
) -> None:
    data = write_scene(tmp_path / "a.mp4").read_bytes()
    uri = studio.add_upload(studio.add_project("films", CONFIG), "film.mp4", data)
    backend = serve(label_studio_url=studio.url, label_studio_token=studio.token)
    for number in (1, 2):
        (found,) = backend.predict([{"id": number, "data": {"video": uri}}], config=CONFIG).json()["results"]
        assert len(found["result"]) == 1
    assert sum("film.mp4" in path for path in studio.paths()) == 1
    (kept,) = (path for path in (backend.home / "cache" / "films").iterdir() if not path.suffix)
    assert kept.read_bytes() == data


def test_who_hangs_up_ends_the_work(serve: Callable[..., Backend], tmp_path: Path) -> None:
    import httpx

    begun = threading.Event()
    engine = SquareEngine(at=lambda count: begun.set() if count > 5 else None)
    backend = serve(engine)
    film = task(write_scene(tmp_path / "a.mp4", frames=1000))
    body = {"tasks": [film], "project": "1.1", "label_config": CONFIG, "params": {}}

    def ask() -> None:
        with pytest.raises(httpx.HTTPError), httpx.Client(base_url=backend.url, trust_env=False) as http:
            http.post("/predict", json=body, timeout=httpx.Timeout(30, read=1.0))

    caller = threading.Thread(target=ask)
    caller.start()
    assert begun.wait(30)
    caller.join()
    backend.wait(
        lambda: not any(thread.name.startswith("film") and _is_busy(backend) for thread in threading.enumerate())
    )
    assert engine.looked < 1000


def _is_busy(backend: Backend) -> bool:
    return backend.parts.predictor._in_flight > 0


# --- a classifier -----------------------------------------------------------------------------------------------------

TIMELINE = """<View><TimelineLabels name="when" toName="film"><Label value="Red" predicted_values="red"/>
<Label value="Blue" predicted_values="blue" score_threshold="{threshold}"/><Label value="Nobody's"/></TimelineLabels>
<Video name="film" value="$video" frameRate="{rate}"/></View>"""


@pytest.mark.parametrize(("rate", "red", "blue"), [(25, (11, 60), (31, 100)), (50, (21, 120), (61, 200))])
def test_stretches_that_show_a_class_are_on_the_timeline(
    start: Start, tmp_path: Path, rate: int, red: tuple[int, int], blue: tuple[int, int]
) -> None:
    backend = start(engine=ColourEngine(), models=(), local_files_root=tmp_path)
    card = ModelCard(name="colours", engine="empty", task="classify", labels=ColourEngine.classes)
    add_model(backend.parts.store.registry, None, card, read_settings(home=backend.home))
    backend.parts.store.registry.bind(1, "colours", reason="test")
    backend.parts.projects.refresh()
    ways = {
        "red": lambda n: (20, 20) if 10 < n <= 60 and n != 33 else None,
        "blue": lambda n: (200, 100) if n > 30 else None,
    }
    film = task(write_scene(tmp_path / "a.mp4", frames=100, ways=ways))
    config = TIMELINE.format(rate=rate, threshold=0.3)
    version = backend.setup(1, config=config)
    (answer,) = backend.predict([film], config=config).json()["results"]
    assert answer["model_version"] == version
    said = [(item["type"], item["value"]["timelinelabels"], item["value"]["ranges"]) for item in answer["result"]]
    assert said == [
        ("timelinelabels", ["Red"], [{"start": red[0], "end": red[1]}]),
        ("timelinelabels", ["Blue"], [{"start": blue[0], "end": blue[1]}]),
    ]
    assert {(item["from_name"], item["to_name"]) for item in answer["result"]} == {("when", "film")}
    assert len({item["id"] for item in answer["result"]}) == 2
    assert [item["score"] for item in answer["result"]] == pytest.approx([0.9, 0.9])
    strict = TIMELINE.format(rate=rate, threshold=0.95)
    assert backend.setup(1, config=strict) != version, "another threshold draws something else"
    (answer,) = backend.predict([film], config=strict).json()["results"]
    assert [item["value"]["timelinelabels"] for item in answer["result"]] == [["Red"]]


# --- a drawn box ------------------------------------------------------------------------------------------------------


def drawn(*keys: tuple[int, bool], rate: float = 25, fps: float = 25) -> dict[str, Any]:
    """What the editor sends: boxes around the red square on some frames."""
    sequence = []
    for frame, enabled in keys:
        left, top = across(round((frame - 0.5) / rate * fps + 0.5))
        percent = {"x": left / WIDTH, "y": top / HEIGHT, "width": SIDE / WIDTH, "height": SIDE / HEIGHT}
        sequence.append({"frame": frame, "enabled": enabled, "rotation": 0} | {k: 100 * v for k, v in percent.items()})
    value = {"framesCount": 100, "duration": 4, "sequence": sequence, "labels": ["Blue"]}
    return {
        "id": "d1",
        "from_name": "box",
        "to_name": "film",
        "type": "videorectangle",
        "origin": "manual",
        "value": value,
    }


@pytest.mark.parametrize("rate", [25, 24], ids=str)
@pytest.mark.parametrize("frame", [1, 40, 100])
def test_a_drawn_box_is_followed_both_ways(
    serve: Callable[..., Backend], tmp_path: Path, frame: int, rate: float
) -> None:
    engine = SquareEngine()
    backend = serve(engine)
    frame = min(frame, 100 * rate // 25)
    film = task(write_scene(tmp_path / "a.mp4", frames=100, background=3))
    context = {"result": [drawn((frame, True), rate=rate)]}
    answer = backend.predict([film], config=FILM_CONFIG.format(rate=rate), context=context).json()
    (item,) = answer["results"][0]["result"]
    assert (item["from_name"], item["value"]["labels"], item["value"]["framesCount"]) == ("box", ["Blue"], 4 * rate)
    assert engine.looked <= 1  # to warm up; no model is asked
    (region,) = decode_track(item, size=Size(WIDTH, HEIGHT))
    boxes = boxes_by_frame(region.shape)
    assert set(boxes) == set(range(1, 4 * rate + 1))
    for number, box in boxes.items():
        left, top = across(round((number - 0.5) / rate * 25 + 0.5))
        assert box.xyxy == pytest.approx((left, top, left + SIDE, top + SIDE), abs=11), number
    own = next(key for key in item["value"]["sequence"] if key["frame"] == frame)
    assert own["x"] == pytest.approx(context["result"][0]["value"]["sequence"][0]["x"], abs=1e-3)
    assert len(item["value"]["sequence"]) < 25


def test_a_drawn_box_ends_where_the_thing_is_lost(serve: Callable[..., Backend], tmp_path: Path) -> None:
    ways = {"red": lambda n: across(n) if 20 <= n <= 60 else None}
    film = task(write_scene(tmp_path / "a.mp4", frames=100, ways=ways, background=3))
    context = {"result": [drawn((40, True))]}
    (found,) = serve().predict([film], config=CONFIG, context=context).json()["results"]
    (region,) = decode_track(found["result"][0], size=Size(WIDTH, HEIGHT))
    boxes = boxes_by_frame(region.shape)
    assert min(boxes) == pytest.approx(20, abs=2)
    assert max(boxes) == pytest.approx(60, abs=2)


def test_what_a_person_ended_stays_ended(serve: Callable[..., Backend], tmp_path: Path) -> None:
    film = task(write_scene(tmp_path / "a.mp4", frames=100, background=3))
    context = {"result": [drawn((40, True), (50, False))]}
    (found,) = serve().predict([film], config=CONFIG, context=context).json()["results"]
    (region,) = decode_track(found["result"][0], size=Size(WIDTH, HEIGHT))
    assert set(boxes_by_frame(region.shape)) == set(range(1, 51))
    assert [key["frame"] for key in found["result"][0]["value"]["sequence"]][-2:] == [40, 50]


@pytest.mark.parametrize("result", [[], [{"type": "videorectangle"}], [drawn() | {"to_name": "other"}]], ids=str)
def test_a_smart_tool_always_gets_a_result(
    serve: Callable[..., Backend], tmp_path: Path, result: list[dict[str, Any]]
) -> None:
    film = task(write_scene(tmp_path / "a.mp4"))
    (found,) = serve().predict([film], config=CONFIG, context={"result": result}).json()["results"]
    assert found["result"] == []


def test_a_box_on_no_frame_is_an_error_of_its_own(serve: Callable[..., Backend], tmp_path: Path) -> None:
    film = task(write_scene(tmp_path / "a.mp4"))
    (found,) = serve().predict([film], config=CONFIG, context={"result": [drawn()]}).json()["results"]
    assert found["result"] == []
    assert "on no frame" in found["error"]

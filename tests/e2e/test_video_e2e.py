"""Films against the real Label Studio and a real browser: interpolation is its own, and what we make plays."""

from __future__ import annotations

import http.server
import json
import random
import threading
import time
from collections.abc import Iterator
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.sync_api import Browser

from labelloop.core.regions import Size
from labelloop.jobs.film_convert import interpolate_export, reduce_export
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.video import video_results
from labelloop.media.film_writer import FilmWriter
from labelloop.runtimes.label_studio import LabelStudio
from reference.films import numbered, turned, write

pytestmark = pytest.mark.e2e

XML = """<View><Labels name="names" toName="video"><Label value="Car"/><Label value="Dog"/></Labels>
<Video name="video" value="$video" framerate="25"/><VideoRectangle name="box" toName="video"/></View>"""


def drawn(rng: random.Random, name: str) -> dict[str, Any]:
    """What people draw: several lifespans, turned boxes, key frames beside each other, a last one that stays on."""
    frames = rng.randrange(30, 200)
    chosen = sorted(rng.sample(range(1, frames + 1), rng.randrange(1, 9)))
    sequence = [
        {
            "frame": frame,
            "enabled": rng.random() < 0.75,
            "rotation": rng.choice([0, 0, rng.uniform(-200, 400), 350]),
            "x": rng.uniform(0, 60),
            "y": rng.choice([10, rng.uniform(0, 60)]),
            "width": rng.uniform(1, 40),
            "height": rng.choice([20, rng.uniform(1, 40)]),
            "time": rng.choice([frame / 25, frame / 25, 0.5, round(frame / 29.97, 4)]),
        }
        for frame in chosen
    ]
    if rng.random() < 0.2:
        rng.shuffle(sequence)
    value = {"framesCount": frames, "duration": rng.choice([frames / 25, 0, 7.013]), "sequence": sequence}
    value["labels"] = rng.choice([["Car"], ["Dog", "Car"], []])
    return {
        "id": name,
        "from_name": "box",
        "to_name": "video",
        "type": "videorectangle",
        "origin": "manual",
        "value": value,
    }


@pytest.fixture(scope="module")
def exports(label_studio: LabelStudio) -> Iterator[tuple[list[Any], list[Any]]]:
    """The same project without and with interpolate_key_frames."""
    rng = random.Random("films")
    headers = {"Authorization": f"Token {label_studio.token}"}
    with (
        Client(label_studio.url, label_studio.token) as client,
        httpx.Client(base_url=label_studio.url, headers=headers, timeout=60, trust_env=False) as api,
    ):
        project = client.create_project(f"films {time.time_ns()}", XML).id
        tasks = [
            {
                "data": {"video": f"/{number}.mp4"},
                "annotations": [{"result": [drawn(rng, f"{number}-{part}") for part in range(4)]}],
            }
            for number in range(15)
        ]
        client.import_tasks(project, tasks)

        def export(**query: str) -> list[Any]:
            answer = api.get(f"/api/projects/{project}/export", params={"exportType": "JSON", **query})
            answer.raise_for_status()
            return answer.json()

        yield export(), export(interpolate_key_frames="true")
        client.delete_project(project)


def tracks(tasks: list[Any]) -> dict[str, dict[str, Any]]:
    return {item["id"]: item for task in tasks for row in task["annotations"] for item in video_results(row["result"])}


def test_interpolation_is_the_one_of_label_studio(exports: tuple[list[Any], list[Any]], tmp_path: Path) -> None:
    plain, theirs = exports
    written = interpolate_export(plain, tmp_path / "ours.json")
    assert written.problems == ()
    ours, expected = tracks(json.loads((tmp_path / "ours.json").read_text())), tracks(theirs)
    assert ours.keys() == expected.keys()
    assert len(expected) == 60
    frames = 0
    for name, track in expected.items():
        mine = ours[name]
        assert {**mine, "value": None} == {**track, "value": None}
        assert mine["value"]["labels"] == track["value"]["labels"]
        for row, said in zip(mine["value"]["sequence"], track["value"]["sequence"], strict=True):
            assert row == pytest.approx(said, abs=1e-6), name
            frames += 1
    assert frames > 2000
    assert written.boxes == frames


def test_what_is_reduced_is_taken_back(
    exports: tuple[list[Any], list[Any]], label_studio: LabelStudio, tmp_path: Path
) -> None:
    """Dense tracks, reduced, imported as predictions: Label Studio drops what breaks its rules, and drops nothing."""
    _, dense = exports
    reduce_export(dense, tmp_path / "few.json", min_iou=0.9, size=Size(1280, 720))
    few = json.loads((tmp_path / "few.json").read_text())
    assert sum(len(t["value"]["sequence"]) for t in tracks(few).values()) < 0.2 * sum(
        len(t["value"]["sequence"]) for t in tracks(dense).values()
    )
    with Client(label_studio.url, label_studio.token) as client:
        project = client.create_project(f"films back {time.time_ns()}", XML).id
        try:
            ids = client.import_tasks(project, [{"video": "/x.mp4"}] * len(few)).task_ids or tuple(
                row["id"] for row in client.tasks(project, include=("id",)).tasks
            )
            items = [
                {"task": number, "result": task["annotations"][0]["result"], "score": 0.5, "model_version": "films@1"}
                for number, task in zip(ids, few, strict=True)
            ]
            assert client.import_predictions(project, items).created == len(few)
        finally:
            client.delete_project(project)


# --- the browser ------------------------------------------------------------------------------------------------------

LOAD = """async (address) => {
  const video = document.createElement('video');
  video.muted = true;
  const loaded = new Promise((done, failed) => {
    video.onloadeddata = done;
    video.onerror = () => failed(new Error(video.error.message));
  });
  video.src = address;
  await loaded;
  const {duration, videoWidth, videoHeight} = video;
  return {duration, videoWidth, videoHeight};
}"""

LOOK = """async ([address, times, wanted]) => {
  const video = document.createElement('video');
  video.muted = true;
  video.src = URL.createObjectURL(await (await fetch(address)).blob());  // our small server knows no ranges
  await new Promise((done, failed) => { video.onloadeddata = done; video.onerror = () => failed(new Error(video.error.message)); });
  const canvas = document.createElement('canvas');
  canvas.width = video.videoWidth; canvas.height = video.videoHeight;
  const pen = canvas.getContext('2d');
  const seen = [];
  for (const [at, time] of times.entries()) {
    await new Promise((done) => { video.onseeked = done; video.currentTime = time; });
    let number = 0;
    for (let tries = 0; tries < 250; tries++) {  // a busy machine has sought before it shows what it found
      pen.drawImage(video, 0, 0);
      const row = [];
      for (let bit = 0; bit < 8; bit++) row.push(pen.getImageData((2 * bit + 1) * canvas.width / 16, canvas.height / 4, 1, 1).data[0]);
      number = row.reduce((sum, value, bit) => sum + (value > 128 ? 1 << bit : 0), 0);
      if (number === wanted[at]) break;
      await new Promise((done) => setTimeout(done, 20));
    }
    const red = Array.from(pen.getImageData(canvas.width / 4, canvas.height * 3 / 4, 1, 1).data.slice(0, 3));
    seen.push({number, red});
  }
  return seen;
}"""


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        return


@pytest.fixture
def site(tmp_path: Path) -> Iterator[str]:
    """The test's folder over HTTP: from a file:// page a browser may not look at the pixels of a film."""
    (tmp_path / "index.html").write_text("<!doctype html><title>films</title>")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(_Quiet, directory=str(tmp_path)))
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def evaluate(browser: Browser, site: str, script: str, argument: Any) -> Any:
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{site}/index.html")
        return page.evaluate(script, argument)


@pytest.mark.browser
def test_the_films_that_are_made_play_in_a_browser(browser: Browser, site: str, tmp_path: Path) -> None:
    fps = Fraction(30000, 1001)
    with FilmWriter(tmp_path / "film.mp4", Size(161, 97), fps=fps) as writer:
        for number in range(1, 91):
            writer.add(numbered(number, width=161, height=97))
    told = evaluate(browser, site, LOAD, f"{site}/film.mp4")
    assert (told["videoWidth"], told["videoHeight"]) == (162, 98)
    assert told["duration"] == pytest.approx(90 / float(fps), abs=0.02)


@pytest.mark.browser
def test_a_browser_shows_the_frame_and_the_colours_that_were_written(
    browser: Browser, site: str, tmp_path: Path
) -> None:
    with FilmWriter(tmp_path / "film.mp4", Size(160, 96), fps=Fraction(25)) as writer:
        for number in range(1, 91):
            writer.add(numbered(number))
    wanted = [1, 2, 26, 25, 89, 90, 3]
    seen = evaluate(browser, site, LOOK, [f"{site}/film.mp4", [(one - 0.5) / 25 for one in wanted], wanted])
    assert [one["number"] for one in seen] == wanted
    for one in seen:
        assert one["red"] == pytest.approx([200, 30, 30], abs=8)


@pytest.mark.browser
@pytest.mark.parametrize("quarters", [1, 3])
def test_a_browser_turns_a_film_as_we_do(browser: Browser, site: str, tmp_path: Path, quarters: int) -> None:
    from labelloop.media.film import describe

    path = turned(write(tmp_path / "film.mp4", range(25)), quarters)
    told = evaluate(browser, site, LOAD, f"{site}/film.mp4")
    assert Size(told["videoWidth"], told["videoHeight"]) == describe(path).size == Size(96, 160)

"""Tracks that a model made, in the hands of a person: a real Label Studio, a real Chromium, a real film and detector."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pytest
from playwright.sync_api import Browser, Page

from labelloop.app import open_worker
from labelloop.core.cards import ModelCard
from labelloop.core.regions import Box, Interval, MediaKey, Prediction, Region, Size, Whole
from labelloop.core.settings import read_settings
from labelloop.engines.labels import COCO
from labelloop.jobs.film_tracks import film_tasks, placed
from labelloop.jobs.quality import Question, measure
from labelloop.jobs.submit import work_of
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.video import decode_track
from labelloop.labelstudio.wire import encode_prediction
from labelloop.runtimes.label_studio import LabelStudio
from labelloop.serving.models import add_model, open_store
from labelloop.store.jobs import Options
from labelloop.video.interpolate import pivoted
from labelloop.video.lifespans import boxes_by_frame
from reference.running_server import Start

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

RATE = 29.97
FILM = Size(1280, 720)
COLOURS = {"Person": (0x0F, 0x8A, 0x5F), "Dog": (0xD2, 0x40, 0x2A)}
CONFIG = f"""<View><Labels name="kinds" toName="film">
<Label value="Person" predicted_values="person" background="#0F8A5F"/>
<Label value="Dog" predicted_values="dog" background="#D2402A"/></Labels>
<Video name="film" value="$video" frameRate="{RATE}"/><VideoRectangle name="box" toName="film"/></View>"""

READY = "() => { const film = document.querySelector('video'); return film && film.readyState >= 2; }"
PLACE = """() => {
  const {x, y, width, height} = document.querySelector('.lsf-video-canvas__view').getBoundingClientRect();
  return [x, y, width, height];
}"""


class Filmed(NamedTuple):
    """A project with one film that was pre-annotated by a job."""

    client: Client
    project: int
    task: int


@pytest.fixture(scope="module")
def filmed(label_studio: LabelStudio, shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Filmed]:
    film, model = shared / "data" / "video" / "woman_and_dog.mp4", shared / "data" / "models" / "yolox_nano_416.onnx"
    if not film.is_file() or not model.is_file():
        pytest.skip("the shared film or model is not there")
    settings = read_settings(
        home=tmp_path_factory.mktemp("home"),
        label_studio_url=label_studio.url,
        label_studio_token=label_studio.token,
        film_every=2,
    )
    store = open_store(settings)
    add_model(store.registry, model, ModelCard(name="nano", labels=COCO), settings)
    with Client(label_studio.url, label_studio.token) as client:
        project = client.create_project("a woman and a dog", CONFIG).id
        (task,) = client.upload_files(project, [film]).task_ids
        work = work_of(client, settings, store.registry, project, "nano", Options())
        job, _ = store.jobs.create(work)
        # in a thread of its own: playwright keeps an event loop in this one, which the workflow engine does not bear
        with open_worker(settings) as worker, ThreadPoolExecutor(1) as pool:
            pool.submit(worker.run, until_idle=True).result()
        assert store.jobs.get(job.id).state == "done"
        client.set_project(project, model_version=work.version)
        yield Filmed(client, project, task)
        client.delete_project(project)


@contextmanager
def opened(browser: Browser, label_studio: LabelStudio, project: int, task: int, *, regions: int) -> Iterator[Page]:
    """A film's task, with all that is drawn on it."""
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(f"{label_studio.url}/user/login/")
        page.fill("input[name=email]", label_studio.email)
        page.fill("input[name=password]", label_studio.password)
        page.click("button[type=submit]")
        page.wait_for_url(lambda url: "/user/login" not in url)
        page.goto(f"{label_studio.url}/projects/{project}/data?task={task}")
        page.wait_for_function(f"() => document.querySelectorAll('.lsf-outliner-item').length >= {regions}")
        page.wait_for_function(READY)
        page.wait_for_load_state("networkidle")
        yield page


@pytest.fixture
def window(browser: Browser, label_studio: LabelStudio, filmed: Filmed) -> Iterator[Page]:
    """The film's task, open."""
    with opened(browser, label_studio, filmed.project, filmed.task, regions=3) as page:
        yield page


def tracks(result: list[Any]) -> dict[str, tuple[str | None, dict[int, Box]]]:
    """Label and boxes by frame of each track of a stored result, by its id."""
    found = {}
    for item in result:
        (region,) = decode_track(item, size=FILM)
        found[item["id"]] = (region.label, boxes_by_frame(region.shape))
    return found


def on_screen(page: Page, box: Box) -> np.ndarray:
    """The box [4] on the screen: the film is shown as large as fits, in the middle."""
    left, top, width, height = page.evaluate(PLACE)
    scale = min(width / FILM.width, height / FILM.height, 1.0)
    corner = np.array([left + (width - FILM.width * scale) / 2, top + (height - FILM.height * scale) / 2])
    return np.array(box.xyxy) * scale + np.tile(corner, 2)


def outline_share(page: Page, box: Box, colour: tuple[int, int, int]) -> float:
    """How much of the outline of `box` is drawn on the screen in this colour."""
    screen = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
    near = cv2.dilate((np.abs(screen - colour).max(axis=2) < 60).astype(np.uint8), np.ones((5, 5), np.uint8))
    x0, y0, x1, y1 = on_screen(page, box)
    steps = np.linspace(0.05, 0.95, 30)
    x, y = x0 + (x1 - x0) * steps, y0 + (y1 - y0) * steps
    flat = np.full(30, 1.0)
    points = [(x, y0 * flat), (x, y1 * flat), (x0 * flat, y), (x1 * flat, y)]
    return float(np.mean([near[row.round().astype(int), column.round().astype(int)] for column, row in points]))


def wait_for_outline(page: Page, box: Box, colour: tuple[int, int, int]) -> float:
    """The same once it is drawn, or at last: the editor draws when it has time."""
    until = time.monotonic() + 60
    while (share := outline_share(page, box, colour)) < 0.6 and time.monotonic() < until:
        page.wait_for_timeout(500)
    return share


def shown_frame(page: Page) -> int:
    """The frame that the editor says it shows: "57 of 290"."""
    found = re.search(r"(\d+)\s+of\s+(289|290)", page.inner_text("body"))
    assert found is not None
    return int(found[1])


def test_the_film_plays_with_its_tracks_and_a_persons_key_frame_comes_back(window: Page, filmed: Filmed) -> None:
    (prediction,) = filmed.client.predictions(filmed.task)
    made = tracks(prediction["result"])
    assert sorted(label or "" for label, _ in made.values()) == ["Dog", "Dog", "Person"]
    for label, boxes in made.values():
        if 1 in boxes:
            there = wait_for_outline(window, boxes[1], COLOURS[label or ""])
            left, top, right, bottom = boxes[1].xyxy
            aside = outline_share(window, Box((left + 350, top - 40, right + 350, bottom - 40)), COLOURS[label or ""])
            assert there > 0.6, f"{there:.0%} of the outline of the {label} is drawn"
            assert aside < 0.3, f"{aside:.0%} of an outline where there is none"

    window.click("[aria-label='Play']")
    window.wait_for_function("() => document.querySelector('video').currentTime > 0.5")
    window.evaluate("() => document.querySelector('video').pause()")
    window.wait_for_function("() => document.querySelector('video').paused")
    name = next(name for name, (label, _) in made.items() if label == "Person")
    frame = shown_frame(window)
    assert frame > 10
    person = made[name][1][frame]
    assert wait_for_outline(window, person, COLOURS["Person"]) > 0.6

    x0, y0, x1, y1 = on_screen(window, person)
    x, y = (x0 + x1) / 2 - 20, (y0 + y1) / 2
    window.mouse.click(x, y)
    window.mouse.move(x, y)
    window.mouse.down()
    window.mouse.move(x + 30, y + 5, steps=4)
    window.mouse.move(x + 40, y + 10, steps=4)
    window.mouse.up()
    with window.expect_response(lambda answer: f"/api/tasks/{filmed.task}/annotations" in answer.url) as sent:
        window.click("[data-testid=bottombar-submit-button]")
    assert sent.value.status == 201

    row = filmed.client.task(filmed.task)
    (annotation,) = row["annotations"]
    assert annotation["parent_prediction"] == prediction["id"]
    said = tracks(annotation["result"])
    before, after = (key_frames(one["result"], name) for one in (prediction, annotation))
    assert frame in after
    assert after - before == {frame} - before, "the film may have stopped at a frame that was a key frame already"
    moved = np.array(pivoted(said[name][1][frame])) - np.array(pivoted(person))
    scale = (x1 - x0) / (person.xyxy[2] - person.xyxy[0])
    assert moved == pytest.approx([40 / scale, 10 / scale, 0, 0], abs=6)
    for other in set(made) - {name}:
        # to a browser this film is a frame longer: its sound is, and what is there at the end stays to the end
        assert set(said[other][1]) - {290} == set(made[other][1])

    report = measure(filmed.client, filmed.client.project(filmed.project), Question(mistakes=False), live=None)
    (quality,) = report.versions
    assert (quality.regions.accepted, quality.regions.changed, quality.regions.missed) == (len(made) - 1, 1, 0)
    assert next(one.regions.changed for one in quality.classes if one.label == "Person") == 1
    assert quality.regions.edit_iou is not None
    assert 0.5 < quality.regions.edit_iou < 1

    (film,), problems = film_tasks([row], size_of=lambda _: FILM)
    assert problems == []
    drawn = {(one.id, one.frame): one.box for one in placed(film)}
    assert drawn[name, frame].xyxy == pytest.approx(said[name][1][frame].xyxy)


def key_frames(result: list[Any], name: str) -> set[int]:
    return {key["frame"] for item in result if item["id"] == name for key in item["value"]["sequence"]}


TIMELINE = f"""<View><TimelineLabels name="when" toName="film"><Label value="Running" predicted_values="run"/>
<Label value="Resting" predicted_values="rest"/></TimelineLabels>
<Choices name="what" toName="film"><Choice value="Sports" predicted_values="sports"/></Choices>
<Labels name="kinds" toName="film"><Label value="Dog"/></Labels>
<Video name="film" value="$video" frameRate="{RATE}"/><VideoRectangle name="box" toName="film" smart="true"/></View>"""


def test_stretches_are_on_the_timeline_and_no_smart_tool_asks_about_films(
    browser: Browser, label_studio: LabelStudio, shared: Path, start: Start
) -> None:
    """What a classifier says is taken, shown and submitted unchanged. A box that is drawn with Auto-Annotation on is not
    sent to the model: when it is, docs/video.md has to say so."""
    film, key = shared / "data" / "video" / "woman_and_dog.mp4", MediaKey("video")
    if not film.is_file():
        pytest.skip("the shared film is not there")
    labels = build_label_map(parse_config(TIMELINE), ["run", "rest", "sports"], task="classify")
    said = (
        Region(Whole(), label="sports", score=0.8, media=key),
        Region(Interval(11, 60), label="run", score=0.9, media=key),
        Region(Interval(40, 289), label="rest", score=0.7, media=key),
    )
    with Client(label_studio.url, label_studio.token) as client:
        project = client.create_project("a timeline", TIMELINE).id
        (task,) = client.upload_files(project, [film]).task_ids
        item = encode_prediction(Prediction(said, {key: FILM}, "colours@1", 0.5), labels, task_id=task)
        assert client.import_predictions(project, [{"task": task, **item}]).created == 1
        client.set_project(project, model_version="colours@1")
        client.add_backend(project, start().url, title="asked by smart tools", is_interactive=True)
        with opened(browser, label_studio, project, task, regions=2) as page:
            shown = [text.split("\n") for text in page.locator(".lsf-outliner-item").all_inner_texts()]
            assert [words[1] for words in shown] == ["Running", "Resting"]
            asked: list[str] = []
            page.on("request", lambda request: asked.append(request.url))
            page.locator("[data-testid=bottombar-auto-annotation-toggle]").check(force=True)
            page.locator(".lsf-label:has-text('Dog')").click()
            left, top, width, height = page.evaluate(PLACE)
            page.mouse.move(left + width * 0.7, top + height * 0.3)
            page.mouse.down()
            page.mouse.move(left + width * 0.75, top + height * 0.4, steps=4)
            page.mouse.move(left + width * 0.85, top + height * 0.6, steps=4)
            page.mouse.up()
            page.wait_for_function("() => document.querySelectorAll('.lsf-outliner-item').length >= 3")
            with page.expect_response(lambda answer: f"/api/tasks/{task}/annotations" in answer.url) as sent:
                page.click("[data-testid=bottombar-submit-button]")
            assert sent.value.status == 201
            assert not [url for url in asked if "interactive" in url]
        (annotation,) = client.task(task)["annotations"]
        client.delete_project(project)
    values = [one["value"] for one in annotation["result"]]
    assert {"choices": ["Sports"]} in values
    stretches = [value for value in values if "ranges" in value]
    assert stretches == [
        {"ranges": [{"start": 11, "end": 60}], "timelinelabels": ["Running"]},
        {"ranges": [{"start": 40, "end": 289}], "timelinelabels": ["Resting"]},
    ]
    assert [value["labels"] for value in values if "sequence" in value] == [["Dog"]]

"""What a person sees: a real Chromium looks at a real Label Studio with predictions made by labelloop."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import cv2
import httpx
import msgspec
import numpy as np
import pytest
from playwright.sync_api import Page

from labelloop.core.outlines import bounding_box, contains, corners
from labelloop.core.regions import Box, MediaKey, Prediction, Region, Size
from labelloop.demo.project import PictureTask, picture_tasks
from labelloop.demo.run import Demo
from labelloop.engines.own import region_of
from labelloop.labelstudio import wire
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import parse_config
from labelloop.labelstudio.labelmap import build_label_map
from labelloop.labelstudio.wire import decode_regions
from reference.waiting import wait

pytestmark = [pytest.mark.e2e, pytest.mark.browser]

GREEN_RGB = np.array((0x0F, 0x8A, 0x5F))
"""The colour of the label "Text" in the demo's label config."""

ALL_SHOWN = """(lines) => {
  const fields = [...document.querySelectorAll('input, textarea')].map((field) => field.value);
  const shown = [document.body.innerText, ...fields].join('\\n');
  return lines.every((line) => shown.includes(line));
}"""

LARGEST_IMAGE = """() => {
  const area = (image) => image.getBoundingClientRect().width * image.getBoundingClientRect().height;
  const images = [...document.querySelectorAll('img')].filter((image) => image.complete && image.naturalWidth > 0);
  const largest = images.sort((a, b) => area(b) - area(a))[0];
  const {x, y, width, height} = largest.getBoundingClientRect();
  return {x, y, width, height, naturalWidth: largest.naturalWidth};
}"""


@pytest.fixture
def client(demo: Demo) -> Iterator[Client]:
    with Client(demo.label_studio.url, demo.label_studio.personal_access_token) as client:
        yield client


def find_task(client: Client, demo: Demo, name: str) -> PictureTask:
    return next(task for task in picture_tasks(client, demo.project, demo.scenario) if task.picture.name == name)


def open_task(page: Page, demo: Demo, task: PictureTask, *, regions: int) -> None:
    page.goto(f"{demo.label_studio.url}/projects/{demo.project.id}/data?task={task.id}")
    page.wait_for_function("n => document.querySelectorAll('.lsf-outliner-item').length >= n", arg=regions)
    page.wait_for_load_state("networkidle")


def stored_regions(client: Client, demo: Demo, task: PictureTask) -> list[Region]:
    (prediction,) = client.predictions(task.id)
    return decode_regions(prediction["result"], parse_config(demo.scenario.label_config))


@pytest.mark.parametrize("name", ["sign-bakery.jpg", "sign-street.jpg"], ids=["upright boxes", "turned boxes"])
def test_a_person_who_opens_a_task_sees_every_box_at_its_place_with_its_text(
    page: Page, demo: Demo, client: Client, name: str
) -> None:
    task = find_task(client, demo, name)
    lines = demo.scenario.texts[name]
    open_task(page, demo, task, regions=len(lines))

    items = page.locator(".lsf-outliner-item").all_inner_texts()
    assert len(items) == len(lines)
    assert all("Text" in item for item in items)
    page.wait_for_function(ALL_SHOWN, arg=list(lines))

    regions = stored_regions(client, demo, task)
    assert len(regions) == len(lines)
    page.wait_for_function("() => document.querySelector('canvas') !== null")
    for region in regions:
        assert isinstance(region.shape, Box)
        left, top, right, bottom = region.shape.xyxy
        elsewhere = Box((left, top - 70, right, bottom - 70), region.shape.angle_deg)
        there, not_there = edge_share(page, region.shape), edge_share(page, elsewhere)
        # thin lines blend with what is behind them, so not every point has the full colour
        assert there > 0.6, f"{there:.0%} of the outline of {region.text!r} is drawn"
        assert not_there < 0.3, f"{not_there:.0%} of an outline where there is none"


def edge_share(page: Page, box: Box) -> float:
    """How much of the outline of `box` (pixels of the picture) is drawn on the screen in the label's colour."""
    image: dict[str, Any] = page.evaluate(LARGEST_IMAGE)
    scale = image["width"] / image["naturalWidth"]
    screen = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR_RGB).astype(int)
    green = (np.abs(screen - GREEN_RGB).max(axis=2) < 60).astype(np.uint8)
    near = cv2.dilate(green, np.ones((5, 5), np.uint8))  # the outline is 1 to 2 px wide
    ring = np.array([*corners(box), corners(box)[0]]) * scale + (image["x"], image["y"])
    steps = np.linspace(0, 1, 25)[:, None]
    points = np.concatenate([start + (end - start) * steps for start, end in pairwise(ring)])
    x, y = points.round().astype(int).T
    return float(near[y, x].mean())


PICTURE_WH = Size(480, 320)
RING_RGB, SQUARE_RGB = (0xD0, 0x02, 0x1B), (0x00, 0x44, 0xFF)
MASKS = (
    '<View><Image name="img" value="$image"/>'
    '<BrushLabels name="brush" toName="img"><Label value="ring" background="#d0021b"/></BrushLabels>'
    '<PolygonLabels name="outline" toName="img"><Label value="square" background="#0044ff"/></PolygonLabels></View>'
)


def painted(draw: Callable[[Any], object]) -> Any:
    canvas = np.zeros((PICTURE_WH.height, PICTURE_WH.width), np.uint8)
    draw(canvas)
    return canvas


def draw_ring(canvas: Any) -> None:
    cv2.circle(canvas, (120, 160), 90, 1, -1)
    cv2.circle(canvas, (120, 160), 40, 0, -1)


def test_a_person_sees_one_mask_painted_and_one_as_an_outline_where_they_belong(
    page: Page, demo: Demo, client: Client
) -> None:
    ring = painted(draw_ring)
    square = painted(lambda canvas: cv2.rectangle(canvas, (280, 60), (429, 199), 1, -1))
    key, grey = MediaKey("image"), np.full((PICTURE_WH.height, PICTURE_WH.width, 3), 200, np.uint8)
    uri = "data:image/png;base64," + base64.b64encode(cv2.imencode(".png", grey)[1].tobytes()).decode()
    project = client.create_project("masks", MASKS)
    (task,) = client.import_tasks(project.id, [{"data": {"image": uri}}]).task_ids
    found = [region_of({"mask": ring, "label": "ring"}), region_of({"mask": square, "label": "square"})]
    regions = tuple(msgspec.structs.replace(one, media=key, score=0.9) for one in found if one is not None)
    labels = build_label_map(parse_config(MASKS), ["ring", "square"], task="segment")
    said = wire.encode_prediction(Prediction(regions, {key: PICTURE_WH}, "own@1", 0.5), labels, task_id=task)
    assert client.import_predictions(project.id, [{**said, "task": task}]).created == 1

    page.goto(f"{demo.label_studio.url}/projects/{project.id}/data?task={task}")
    page.wait_for_function("n => document.querySelectorAll('.lsf-outliner-item').length >= n", arg=2)
    items = page.locator(".lsf-outliner-item")
    wait(lambda: [text.split()[1:2] for text in items.all_inner_texts()] == [["ring"], ["square"]])
    # what is painted is decoded after the list of regions is there
    wait(lambda: overlap(page, ring, RING_RGB) > 0.9 and overlap(page, square, SQUARE_RGB) > 0.9)

    paint(page, (300, 270), (400, 270))
    with page.expect_response(lambda answer: f"/api/tasks/{task}/annotations" in answer.url) as sent:
        page.click("[data-testid=bottombar-submit-button]")
    assert sent.value.status == 201
    (annotation,) = client.task(task)["annotations"]
    read = {one.id: one for one in decode_regions(annotation["result"], parse_config(MASKS))}
    kept = next(one for one in read.values() if one.label == "ring" and contains(one.shape, (40, 160)))
    assert (kept.shape, kept.id) == (regions[0].shape, said["result"][0]["id"]), "as it was sent, to the pixel"
    stroke = next(one.shape for one in read.values() if one.label == "ring" and one.id != kept.id)
    assert contains(stroke, (350, 270))
    around = bounding_box(stroke)
    assert around is not None
    assert around.xyxy[0] == pytest.approx(300, abs=40)
    assert around.xyxy[2] == pytest.approx(400, abs=40)
    client.delete_project(project.id)


def paint(page: Page, start: tuple[int, int], end: tuple[int, int]) -> None:
    """A stroke of the brush under the first label, from one place of the picture to another."""
    image: dict[str, Any] = page.evaluate(LARGEST_IMAGE)
    scale = image["width"] / image["naturalWidth"]
    page.locator(".lsf-label", has_text="ring").click()
    for number, (x, y) in enumerate((start, end)):
        page.mouse.move(image["x"] + x * scale, image["y"] + y * scale, steps=5)
        if number == 0:
            page.mouse.down()
    page.mouse.up()
    page.wait_for_function("n => document.querySelectorAll('.lsf-outliner-item').length >= n", arg=3)


def overlap(page: Page, mask: Any, rgb: tuple[int, int, int]) -> float:
    """IoU of a mask of the picture and what is tinted on the screen: where `rgb` was laid over its grey, by whatever
    share, the screen lies between the two colours."""
    image: dict[str, Any] = page.evaluate(LARGEST_IMAGE)
    screen = cv2.imdecode(np.frombuffer(page.screenshot(), np.uint8), cv2.IMREAD_COLOR_RGB)
    left, top, width, height = (round(image[name]) for name in ("x", "y", "width", "height"))
    shown = cv2.resize(screen[top : top + height, left : left + width], PICTURE_WH).astype(float)
    away, towards = shown - 200.0, np.array(rgb) - 200.0
    share = away @ towards / (towards @ towards)
    beside = np.abs(away - share[:, :, None] * towards).max(axis=2)
    tinted = (share > 0.15) & (beside < 25)
    return float((tinted & (mask > 0)).sum() / (tinted | (mask > 0)).sum())


def test_what_a_person_submits_is_the_prediction(page: Page, demo: Demo, client: Client) -> None:
    task = find_task(client, demo, "sign-platform.jpg")
    lines = demo.scenario.texts[task.picture.name]
    open_task(page, demo, task, regions=len(lines))
    with page.expect_response(lambda answer: f"/api/tasks/{task.id}/annotations" in answer.url) as sent:
        page.click("[data-testid=bottombar-submit-button]")
    assert sent.value.status == 201

    row = client.task(task.id)
    (annotation,), (prediction,) = row["annotations"], row["predictions"]
    said = decode_regions(annotation["result"], parse_config(demo.scenario.label_config))
    assert tuple(region.text for region in said) == lines
    assert annotation["parent_prediction"] == prediction["id"]


def test_start_training_in_the_settings_begins_a_run_that_says_what_came_of_it(page: Page, demo: Demo) -> None:
    with httpx.Client(base_url=demo.backend_url, trust_env=False, timeout=30) as api:
        # others may have annotated, then it trains; importing torch on a busy machine may take the half of this
        short = {"enabled": False, "options": {"budget_s": 30}}
        assert api.put(f"/api/projects/{demo.project.id}/loop", json=short).is_success
    page.goto(f"{demo.label_studio.url}/projects/{demo.project.id}/settings/ml")
    page.wait_for_selector(".lsf-backend-card")
    page.click('[aria-label="Machine learning model options"]')
    page.click('.lsf-main-menu__item:has-text("Start Training")')
    with page.expect_response(lambda answer: answer.url.rstrip("/").endswith("/train")) as sent:
        page.locator('button:has-text("Start Training")').last.click()
    assert sent.value.ok

    with httpx.Client(base_url=demo.backend_url, trust_env=False, timeout=30) as api:
        run = wait(lambda: next(iter(api.get(f"/api/projects/{demo.project.id}/runs").json()["runs"]), None))
        assert run["reason"] == "somebody pressed Start Training"
        ended = wait(lambda: ended_run(api, demo.project.id), seconds=300)
        state = api.get(f"/api/projects/{demo.project.id}/loop").json()
    assert ended["job_id"] == run["job_id"]
    assert ended["outcome"] in ("declined", "refused"), "one picture or two are too little to tell"
    assert ended["verdict"], "a person can read why"
    assert state["enabled"] is False, "one training was asked for, not a loop"


def ended_run(api: httpx.Client, project: int) -> dict[str, Any] | None:
    state = api.get(f"/api/projects/{project}/loop").json()
    assert state["job"]["state"] not in ("failed", "cancelled"), state["job"]["error"]
    run: dict[str, Any] = state["run"]
    return run if run["ended_at"] else None

"""Take the pictures of the README: a real Label Studio with predictions by labelloop, in headless Chromium.

    make screenshot

starts the demo on free ports in a temporary folder and writes docs/images/*.png.
"""

from __future__ import annotations

import io
import shutil
import sys
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from labelloop.core.settings import read_settings
from labelloop.demo.project import picture_tasks
from labelloop.demo.run import Demo, Options, running
from labelloop.labelstudio.client import Client

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VIEW = {"width": 1440, "height": 900}
LIMIT_BYTES = 300_000

SHOTS = {"ocr.png": "receipt-cafe.jpg", "ocr-turned.png": "receipt-garden.jpg"}
"""File in docs/images -> the demo's picture that it shows."""


def main() -> None:
    program = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if program is None:
        sys.exit(f"No Chromium ({', '.join(CHROMIUM)}): make chromium")
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        options = Options(home=read_settings().home, folder=Path(folder), port=0, label_studio_port=0)
        with running(options, tell=print) as demo, sync_playwright() as playwright:
            flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-color-profile=srgb"]
            browser = playwright.chromium.launch(executable_path=program, args=flags)
            page = browser.new_page(viewport=VIEW)
            log_in(page, demo)
            for name, picture in SHOTS.items():
                open_task(page, demo, picture)
                save(page, IMAGES / name)
            browser.close()


def log_in(page: Page, demo: Demo) -> None:
    page.set_default_timeout(60_000)
    page.goto(f"{demo.label_studio.url}/user/login/")
    page.fill("input[name=email]", demo.label_studio.email)
    page.fill("input[name=password]", demo.label_studio.password)
    page.click("button[type=submit]")
    page.wait_for_url(lambda url: "/user/login" not in url)


def open_task(page: Page, demo: Demo, picture: str) -> None:
    """Open the task of a picture, with its regions and their texts on the page."""
    with Client(demo.label_studio.url, demo.label_studio.personal_access_token) as client:
        tasks = picture_tasks(client, demo.project, demo.scenario)
    task = next(task.id for task in tasks if task.picture.name == picture)
    page.goto(f"{demo.label_studio.url}/projects/{demo.project.id}/data?task={task}")
    page.wait_for_selector(".lsf-outliner-item")
    page.wait_for_load_state("networkidle")
    collapse = page.locator(".lsf-tabs-panel__toggle[data-tooltip=Collapse]")
    if collapse.count() > 1:  # Info above, Regions below: give all the room to Regions
        collapse.first.click()
    page.mouse.move(VIEW["width"] / 2, VIEW["height"] - 40)
    page.wait_for_timeout(1500)  # panels slide into place


def save(page: Page, path: Path) -> None:
    """A palette of 256 colours saves two thirds of the bytes; "maximum coverage" keeps the colours of few pixels."""
    shot = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    palette = shot.quantize(256, method=Image.Quantize.MAXCOVERAGE, kmeans=3, dither=Image.Dither.NONE)
    palette.save(path, optimize=True)
    size = path.stat().st_size
    print(f"{path.name}: {size / 1000:.0f} kB")
    if size > LIMIT_BYTES:
        sys.exit(f"{path} has {size} bytes, more than {LIMIT_BYTES}")


if __name__ == "__main__":
    main()

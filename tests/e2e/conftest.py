"""A real Label Studio, a real demo and a real browser, each started once for all tests that want it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from labelloop.core.settings import read_settings
from labelloop.demo.run import Demo, Options, running
from labelloop.runtimes import label_studio as runtime
from labelloop.runtimes import venvs
from labelloop.runtimes.label_studio import LabelStudio
from reference.running_server import start

__all__ = ["start"]

CHROMIUM = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def home() -> Path:
    """The data folder in which the Label Studio runtime lies."""
    found = read_settings().home
    state = venvs.check(found, "label-studio").state
    if state != "ready":
        pytest.skip(f"the Label Studio runtime in {found} is {state}; `make runtime` makes it")
    return found


@pytest.fixture(scope="session")
def label_studio(home: Path) -> Iterator[LabelStudio]:
    """An empty Label Studio: url, email, password, token (legacy), personal_access_token."""
    with runtime.start(home) as server:
        yield server


@pytest.fixture(scope="session")
def demo(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Label Studio and labelloop with the demo's pictures, pre-annotated."""
    options = Options(home=home, folder=tmp_path_factory.mktemp("demo"), port=0, label_studio_port=0)
    with running(options, tell=print) as up:
        yield up


@pytest.fixture(scope="module")  # playwright keeps an event loop in this thread, which asynchronous tests do not bear
def browser() -> Iterator[Browser]:
    """The distribution's Chromium, headless."""
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        pytest.skip(f"no Chromium ({', '.join(CHROMIUM)}); `make chromium` installs it")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Browser, demo: Demo) -> Iterator[Page]:
    """A window in which the demo's user is logged in."""
    with browser.new_context(viewport={"width": 1440, "height": 900}) as context:
        window = context.new_page()
        window.set_default_timeout(60_000)
        window.goto(f"{demo.label_studio.url}/user/login/")
        window.fill("input[name=email]", demo.label_studio.email)
        window.fill("input[name=password]", demo.label_studio.password)
        window.click("button[type=submit]")
        window.wait_for_url(lambda url: "/user/login" not in url)
        yield window

"""The documents are executed: console blocks against real parts, their output compared; Python blocks as they are.

A page's blocks run in order in one folder, with one LABELLOOP_HOME. Where a page speaks of http://127.0.0.1:9090 a real
server stands behind it, and behind http://127.0.0.1:8080 a fake Label Studio. `…` in what a page shows stands for
anything. A `json` block below a `curl` is its answer; one below "`NAME.json`:" is that file.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import structlog
from documents import PAGES, Block, blocks, parse, spans, table

import labelloop.app
from labelloop.app import assemble, create_app
from labelloop.cli import main
from labelloop.core.settings import read_settings
from labelloop.core.settings import table as settings_table
from labelloop.testing import FakeLabelStudio, LoopbackServer
from reference.running_server import Backend, jpeg
from reference.tiny_models import Thing, build_v8, build_yolox, ultralytics_metadata

BACKEND, STUDIO, TOKEN = "http://127.0.0.1:9090", "http://127.0.0.1:8080", "YOUR_TOKEN"
CONFIG = (
    '<View><Image name="photo" value="$image"/><RectangleLabels name="things" toName="photo">'
    '<Label value="car"/></RectangleLabels></View>'
)
NAMES = ("car", "dog", "cat")
THING = [Thing((80, 80, 240, 240), 0, 0.9)]
SIZE = (320, 320)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the pages speak of, and nothing of the user's own settings."""
    for _, environment, _, _ in settings_table():
        for alias in environment.split(", "):
            monkeypatch.delenv(alias, raising=False)
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(labelloop.app, "REFRESH_S", 0.05)
    build_v8(tmp_path / "cars.onnx", THING, size_wh=SIZE, metadata=ultralytics_metadata(NAMES, size_wh=SIZE))
    build_v8(tmp_path / "unnamed.onnx", THING, size_wh=SIZE, metadata={})
    build_yolox(tmp_path / "odd.onnx", THING, size_wh=SIZE, last="Identity", decoded=True)
    (tmp_path / "decoded.yaml").write_text("family: yolox-decoded\n")
    (tmp_path / "names.txt").write_text("\n".join(NAMES))
    return tmp_path


class Stage:
    """The two servers behind the addresses that pages use."""

    def __init__(self, studio: FakeLabelStudio, server: LoopbackServer, upload: str) -> None:
        self.studio = studio
        self.upload = upload
        self.http = httpx.Client(base_url=server.url, trust_env=False, timeout=30)
        self._real = {BACKEND: server.url, STUDIO: studio.url, TOKEN: studio.personal_access_token}

    def to_real(self, text: str) -> str:
        for shown, real in self._real.items():
            text = text.replace(shown, real)
        return text.replace("/data/upload/1/street.jpg", self.upload)

    def to_shown(self, text: str) -> str:
        for shown, real in self._real.items():
            text = text.replace(real, shown)
        return text

    def settle(self) -> None:
        """Label Studio asks for project 1, as it does all the time, and the models become warm."""
        Backend.wait(lambda: self.http.get("/ready").status_code == 200)
        body = {
            "project": self.studio.state.projects[1].uid,
            "schema": CONFIG,
            "hostname": self.studio.url,
            "access_token": self.studio.token,
        }
        self.http.post("/setup", json=body).raise_for_status()


@pytest.fixture
def silence(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The server shares our process: its log would stand between the lines of the commands, each of which sets up logs
    anew."""
    before = structlog.get_config()
    monkeypatch.setattr("labelloop.core.logs.configure_logs", lambda **_options: None)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.configure(**before)


@pytest.fixture
def stage(folder: Path, silence: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    with FakeLabelStudio() as studio:
        project = studio.add_project("Street", CONFIG)
        upload = studio.add_upload(project, "street.jpg", jpeg(640, 640))
        studio.add_tasks(project, [{"image": upload}])
        token = studio.personal_access_token
        settings = read_settings(label_studio_url=studio.url, label_studio_token=token, jobs=False)
        with LoopbackServer(create_app(settings, assemble(settings)), lifespan="on") as server:
            monkeypatch.setenv("LABELLOOP_PORT", str(server.port))  # the command line's idea of where the backend is
            running = Stage(studio, server, upload)
            yield running
            running.http.close()


# --- console blocks ---------------------------------------------------------------------------------


def run(line: str) -> str:
    """What one command prints, errors included."""
    environment, words = parse(line)
    if words[0] == "labelloop":
        return _labelloop(words, environment)
    if words[0] == "cat":
        return "".join(Path(name).read_text() for name in words[1:])
    if words[0] == "curl":
        if not shutil.which("curl"):
            pytest.skip("curl is not installed")
        done = subprocess.run(["curl", "--noproxy", "*", *words[1:]], capture_output=True, text=True, timeout=30)
        return done.stdout + done.stderr
    raise AssertionError(f"{words[0]} is not run here: make it an `sh` block")


def _labelloop(words: list[str], environment: dict[str, str]) -> str:
    output = io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", words)
        for key, value in environment.items():
            patch.setenv(key, value)
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output), contextlib.suppress(SystemExit):
            main()
    return output.getvalue()


def steps(block: Block) -> Iterator[tuple[str, str]]:
    """(command, expected output) of a console block."""
    assert block.text.startswith("$ "), f"line {block.line}: a console block begins with a command"
    for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        command, _, expected = part.partition("\n")
        yield command, expected


def same_text(shown: str, printed: str) -> bool:
    pattern = ".*?".join(map(re.escape, _tidy(shown).split("…")))
    return re.fullmatch(pattern, _tidy(printed), re.DOTALL) is not None


def _tidy(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


def same_value(shown: Any, answered: Any) -> bool:
    """Whether a JSON answer is the one shown."""
    if isinstance(shown, dict) and isinstance(answered, dict):
        return shown.keys() == answered.keys() and all(same_value(shown[key], answered[key]) for key in shown)
    if isinstance(shown, list) and isinstance(answered, list):
        return len(shown) == len(answered) and all(map(same_value, shown, answered))
    if isinstance(shown, str) and isinstance(answered, str):
        return same_text(shown, answered)
    if isinstance(shown, float) and isinstance(answered, float):
        return shown == pytest.approx(answered, abs=1e-6)
    return bool(shown == answered)


def play(page: Path, stage: Stage | None) -> int:
    """Run a page; returns how many commands it has."""
    count, answer = 0, ""
    for block in blocks(page):
        if block.language == "json":
            if file := re.search(r"`([\w-]+\.json)`:$", block.before):
                assert stage is not None
                Path(file[1]).write_text(stage.to_real(block.text))
            else:
                assert same_value(json.loads(block.text), json.loads(answer)), f"{page.name}:{block.line}: {answer}"
        if block.language != "console":
            continue
        for command, expected in steps(block):
            if stage is not None and ("curl" in command or "doctor" in command):
                stage.settle()
            printed = run(command if stage is None else stage.to_real(command))
            answer = printed if stage is None else stage.to_shown(printed)
            count += 1
            if not command.startswith("curl"):
                assert same_text(expected, answer), f"{page.name}:{block.line}: {command}\n{answer}"
    return count


def console_text(page: Path) -> str:
    return "".join(block.text for block in blocks(page) if block.language == "console")


WITH_COMMANDS = [page for page in PAGES if console_text(page)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=lambda page: page.name)
def test_commands_print_what_the_page_shows(page: Path, request: pytest.FixtureRequest) -> None:
    needs_servers = BACKEND in console_text(page) or STUDIO in console_text(page)
    assert play(page, request.getfixturevalue("stage") if needs_servers else None)


def test_pages_with_commands_are_found() -> None:
    assert {"api.md", "cli.md", "connection.md", "engines.md", "store.md"} <= {page.name for page in WITH_COMMANDS}


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a … c", "a b c", True),
        ("a\n…\nd", "a\nb\nc\nd", True),
        ("a b", "a c", False),
        ("a", "a b", False),
    ],
)
def test_how_output_is_compared(shown: str, printed: str, same: bool) -> None:
    assert same_text(shown, printed) is same


# --- the rest ---------------------------------------------------------------------------------------


SNIPPETS = [(page, block) for page in PAGES for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize(("page", "block"), SNIPPETS, ids=[f"{page.name}:{block.line}" for page, block in SNIPPETS])
def test_python_snippets_run(page: Path, block: Block) -> None:
    code = compile("\n" * block.line + block.text, str(page), "exec")
    exec(code, {"__name__": "snippet"})


def test_every_call_that_a_page_names_is_answered(stage: Stage) -> None:
    calls = [spans(row[0])[0] for name in ("api.md", "http.md") for row in table(PAGES[0].parent / name, "call")]
    assert len(calls) > 15
    unknown = []
    for call in calls:
        method, path = call.split()
        # streamed: live events have no end
        with stage.http.stream(method, path.replace("{name}", "cars").replace("{project}", "1")) as answer:
            if answer.status_code == 405 or (answer.status_code == 404 and answer.read() == b"Not Found"):
                unknown.append(call)
    assert not unknown

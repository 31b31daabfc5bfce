"""What the documents name exists, and what exists is named: commands, options, settings, files, metrics, links."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import pkgutil
import re
import runpy
import tomllib
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer
import yaml
from documents import (
    ALL,
    DOCS,
    PAGES,
    ROOT,
    WITH_README,
    anchors,
    blocks,
    code_spans,
    labelloop_commands,
    links,
    spans,
    table,
    tables,
)

import labelloop
from labelloop.cli import app
from labelloop.core.cards import InputSpec, ModelCard
from labelloop.core.errors import LabelloopError
from labelloop.core.metrics import Metrics
from labelloop.core.settings import table as settings_table
from labelloop.engines.detect.recognise import FAMILIES
from labelloop.http.quality import PARAMETERS
from labelloop.jobs.quality_report import ClassQuality, Mistake, Mistakes, Regions, Report, Tab, VersionQuality
from labelloop.serving.models import read_card

PACKAGE = Path(labelloop.__file__).parent
FOLDERS = sorted(path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
STRANGE_OPTIONS = {"--add-host", "--preload"}
"""Options of other programs."""


def name(page: Path) -> str:
    return page.name


every_page = pytest.mark.parametrize("page", WITH_README, ids=name)


# --- commands ---------------------------------------------------------------------------------------


@lru_cache
def root() -> Any:
    return typer.main.get_command(app)


def options(command: Any) -> set[str]:
    return {"--help"} | {word for parameter in command.params for word in [*parameter.opts, *parameter.secondary_opts]}


def all_options(command: Any) -> set[str]:
    below = getattr(command, "commands", {}).values()
    return options(command).union(*map(all_options, below))


def complaints(words: list[str]) -> Iterator[str]:
    command, words = root(), list(words)
    while getattr(command, "commands", None) and words and not words[0].startswith("-"):
        if words[0] in ("COMMAND", "…"):
            return
        if words[0] not in command.commands:
            yield f"there is no command {words[0]!r}"
            return
        command = command.commands[words.pop(0)]
    known = options(command)
    yield from (f"there is no option {word}" for word in words if word[0] == "-" and word.split("=")[0] not in known)


@every_page
def test_every_command_and_option_exists(page: Path) -> None:
    wrong = [f"labelloop {' '.join(words)}: {what}" for words in labelloop_commands(page) for what in complaints(words)]
    assert not wrong


@every_page
def test_every_option_in_running_text_exists(page: Path) -> None:
    named = {re.split("[ =]", span)[0] for span in code_spans(page) if span.startswith("--")}
    assert named <= all_options(root()) | STRANGE_OPTIONS


def test_a_wrong_command_is_noticed() -> None:
    assert list(complaints(["modles", "list"])) == ["there is no command 'modles'"]
    assert list(complaints(["models", "add", "x.onnx", "--lables", "coco"])) == ["there is no option --lables"]
    assert not list(complaints(["models", "add", "x.onnx", "--labels=coco"]))


def test_every_command_is_on_its_page() -> None:
    def leaves(command: Any, path: str) -> Iterator[str]:
        below = getattr(command, "commands", None)
        for word, child in (below or {}).items():
            yield from leaves(child, f"{path} {word}")
        if not below:
            yield path

    assert sorted(spans(row[0])[0] for row in table(DOCS / "cli.md", "command")) == sorted(leaves(root(), "labelloop"))


def test_every_option_of_serve_is_on_its_page() -> None:
    named = {span for row in table(DOCS / "cli.md", "option") for span in spans(row[0])}
    assert named == {word for word in options(root().commands["serve"]) if word.startswith("--")} - {"--help"}


# --- settings ---------------------------------------------------------------------------------------


def test_the_table_of_settings_is_current() -> None:
    page = (DOCS / "settings.md").read_text()
    assert runpy.run_path(str(ROOT / "scripts/write_settings.py"))["render"](page) == page, (
        "docs/settings.md is stale: run python scripts/write_settings.py"
    )


@every_page
def test_every_setting_exists(page: Path) -> None:
    text = page.read_text()
    known = {alias for _, environment, _, _ in settings_table() for alias in environment.split(", ")}
    misspelt = set(re.findall(r"There is no setting (LABELLOOP_\w+)\.", text))  # examples of what happens then
    named = set(re.findall(r"LABELLOOP_[A-Z][A-Z0-9_]*[A-Z0-9]\b", text))
    assert named - {"LABELLOOP_SHARED"} - misspelt <= known


# --- files, links -----------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_folder_has_a_page_that_lists_its_files(folder: str) -> None:
    named = {spans(row[0])[0] for row in table(DOCS / f"{folder}.md", "file")}
    there = {path.relative_to(PACKAGE / folder).as_posix() for path in (PACKAGE / folder).rglob("*.py")}
    there = {path for path in there if not path.startswith("migrations/")}
    assert named - there == set(), "these are gone"
    assert {path for path in there if not path.endswith("__init__.py")} - named == set(), "these are not on the page"


@pytest.mark.parametrize("page", ALL, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    broken = []
    for link in links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(link)
    assert not broken


def test_the_index_leads_to_every_page() -> None:
    index = DOCS / "index.md"
    assert {path.name for path in PAGES} - {link.partition("#")[0] for link in links(index)} == {"index.md"}


# --- tables that repeat what the code says ----------------------------------------------------------


def test_every_metric_is_on_the_page() -> None:
    rows = {spans(row[0])[0]: set(spans(row[1])) for row in table(DOCS / "api.md", "metric")}
    there = {
        f"{family.name}_total" if family.type == "counter" else family.name for family in Metrics().registry.collect()
    }
    assert rows.keys() == there


def test_every_error_code_is_on_the_page() -> None:
    for module in pkgutil.walk_packages(labelloop.__path__, "labelloop."):  # an error is known once it is imported
        if not module.name.endswith("__main__") and ".migrations" not in module.name:
            importlib.import_module(module.name)

    def tree(kind: type[LabelloopError]) -> Iterator[str]:
        if kind.__module__.startswith("labelloop."):
            yield kind.code
        for child in kind.__subclasses__():
            yield from tree(child)

    assert sorted({spans(row[0])[0] for row in table(DOCS / "api.md", "code")}) == sorted(set(tree(LabelloopError)))


def test_every_key_of_the_quality_report_is_on_the_page() -> None:
    kinds = (Report, VersionQuality, ClassQuality, Regions, Mistakes, Mistake, Tab)
    there = {field.name for kind in kinds for field in msgspec.structs.fields(kind)}
    cells = [cell for row in table(DOCS / "api.md", "key") for cell in row]
    named = {word for cell in cells for span in spans(cell) for word in re.findall(r"\w+", span)}
    assert named == there | {"overlooked", "swapped", "misplaced"}


def test_every_parameter_of_the_quality_report_is_on_the_page() -> None:
    assert {spans(row[0])[0] for row in table(DOCS / "api.md", "parameter")} == set(PARAMETERS)


def test_every_family_is_on_the_page() -> None:
    assert {spans(row[0])[0] for row in table(DOCS / "engines.md", "family")} == FAMILIES.keys()


def test_every_field_of_the_card_is_on_the_page_and_in_the_example(tmp_path: Path) -> None:
    fields = {field.name for field in msgspec.structs.fields(ModelCard)} - {"input"}
    fields |= {f"input.{field.name}" for field in msgspec.structs.fields(InputSpec)}
    assert {spans(row[0])[0] for row in table(DOCS / "engines.md", "field")} == fields
    (example,) = [block.text for block in blocks(DOCS / "engines.md") if block.language == "yaml"]
    (tmp_path / "card.yaml").write_text(example)
    assert read_card(tmp_path / "card.yaml", name="x").input.size_wh == (640, 640)
    written = yaml.safe_load(example)
    assert written.keys() | {f"input.{key}" for key in written["input"]} == fields - {"sha256", "host"} | {"input"}


def test_the_entry_points_in_the_examples_are_those_that_are_looked_up() -> None:
    pages = (DOCS / "engines.md", DOCS / "learning.md")
    examples = [block.text for page in pages for block in blocks(page) if block.language == "toml"]
    shown = {group for example in examples for group in tomllib.loads(example)["project"]["entry-points"]}
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    assert shown == ours.keys()


def test_the_compose_file_uses_settings_that_exist() -> None:
    (example,) = [block.text for block in blocks(DOCS / "troubleshooting.md") if block.language == "yaml"]
    services = yaml.safe_load(example)["services"]
    known = {alias for _, environment, _, _ in settings_table() for alias in environment.split(", ")}
    assert services["labelloop"]["environment"].keys() <= known
    (alias,) = services["labelloop"]["networks"]["default"]["aliases"]
    assert "." in alias


# --- messages ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Texts:
    pieces: tuple[str, ...]

    def has(self, message: str) -> bool:
        """Whether each part of `message` between two … stands in one text of the code."""
        parts = [part.strip(" .") for part in message.split("…")]
        return all(any(part in piece for piece in self.pieces) for part in parts if part)


@lru_cache
def texts() -> Texts:
    """Every text in the code; the fake Label Studio's are what the real one was seen to say."""
    trees = [ast.parse(path.read_text()) for path in PACKAGE.rglob("*.py")]
    values = [node.value for tree in trees for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return Texts(tuple({value for value in values if isinstance(value, str)}))


def test_every_message_that_people_search_for_is_one_that_they_can_meet() -> None:
    page = DOCS / "troubleshooting.md"
    headings = re.findall(r"^### (.+)$", page.read_text(), re.MULTILINE)
    messages = [quoted for heading in headings for quoted in re.findall(r'"([^"]+)"', heading)]
    messages += [span for rows in tables(page) if rows[0][0] == "message" for row in rows[1:] for span in spans(row[0])]
    assert len(messages) > 25
    assert [message for message in messages if not texts().has(message)] == []

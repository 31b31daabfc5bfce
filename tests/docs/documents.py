"""The project's Markdown as blocks, tables, headings and links, for the tests beside this file."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
WITH_README = [ROOT / "README.md", *PAGES]
ALL = [*sorted(ROOT.glob("*.md")), *PAGES, *sorted((ROOT / "benchmarks").glob("*.md"))]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ASSIGNMENT = re.compile(r"[A-Z][A-Z0-9_]*=")
_PREFIXES = (("docker", "compose", "exec", "labelloop"),)


class Block(NamedTuple):
    """A fenced block. `before` is the last line of prose above it, `line` its line number in the file."""

    language: str
    text: str
    before: str
    line: int


class Command(NamedTuple):
    """`environment` are the assignments in front; `words` begin with the program."""

    environment: dict[str, str]
    words: list[str]


def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    return [
        Block(found[1], found[2], text[: found.start()].rstrip().rpartition("\n")[2], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]  # fmt: skip


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def code_spans(page: Path) -> list[str]:
    return re.findall(r"`([^`\n]+)`", prose(page))


def tables(page: Path) -> Iterator[list[list[str]]]:
    """Each table as rows of cells, the heading first."""
    rows: list[list[str]] = []
    for line in [*prose(page).splitlines(), ""]:
        if line.startswith("|"):
            rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))])
        elif rows:
            yield [rows[0], *rows[2:]]
            rows = []


def table(page: Path, first: str) -> list[list[str]]:
    """The rows of the table whose first heading is `first`."""
    found = [rows[1:] for rows in tables(page) if rows[0][0] == first]
    assert len(found) == 1, f"{page.name} has {len(found)} tables that begin with {first!r}"
    return found[0]


def spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def anchors(page: Path) -> set[str]:
    """What GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    return [target for target in found if not re.match(r"[a-z]+:", target)]


def parse(line: str) -> Command:
    """One line of a shell, without redirections."""
    words = shlex.split(line.removeprefix("$ "), comments=True)
    environment = {}
    while words and _ASSIGNMENT.match(words[0]):
        name, _, value = words.pop(0).partition("=")
        environment[name] = value
    for prefix in _PREFIXES:
        if tuple(words[: len(prefix)]) == prefix:
            words = words[len(prefix) :]
    if words:
        words[0] = words[0].rpartition("/")[2]
    return Command(environment, words)


def labelloop_commands(page: Path) -> list[list[str]]:
    """The words after `labelloop`, of every command that the page names: in blocks and in running text."""
    lines = [span for span in code_spans(page) if re.search(r"(^|/| )labelloop ", span)]
    for block in blocks(page):
        if block.language in ("console", "sh", ""):
            lines += [line for line in block.text.splitlines() if block.language != "console" or line.startswith("$ ")]
    commands = [parse(line).words for line in lines if "labelloop " in line]
    return [words[1:] for words in commands if words and words[0] == "labelloop"]

"""The floors: imports only go down, never to a neighbour; importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import labelloop

PACKAGE = Path(labelloop.__file__).parent

FLOORS = {
    "core": 0,
    "compat": 0,
    "labelstudio": 1,
    "media": 1,
    "store": 1,
    "formats": 1,
    "runtimes": 1,
    "video": 1,
    "engines": 2,
    "serving": 3,
    "learning": 4,
    "jobs": 5,
    "connection": 5,
    "http": 6,
    "app": 7,
    "demo": 8,
    "testing": 8,
    "cli": 9,
}


def modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        if "migrations" not in path.parts:
            yield path.relative_to(PACKAGE).parts[0].removesuffix(".py"), path


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            # `from labelloop import core` names a folder as much as `from labelloop.core import errors`
            names = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "labelloop" else [node.module]
            )
            yield from ((node.lineno, name) for name in names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            yield node.lineno, "relative"
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)


def test_every_folder_has_a_floor() -> None:
    assert {name for name, _ in modules()} - {"__init__", "__main__"} <= FLOORS.keys()


def test_imports_only_go_down() -> None:
    wrong = []
    for folder, path in modules():
        for line, name in imports_of(path):
            target = name.split(".")[1] if name.startswith("labelloop.") else None
            if target not in FLOORS or folder not in FLOORS or target == folder:
                continue
            if FLOORS[target] >= FLOORS[folder]:
                wrong.append(f"{path.relative_to(PACKAGE)}:{line} imports {name}")
    assert not wrong


def test_imports_are_absolute() -> None:
    assert not [f"{path}:{line}" for _, path in modules() for line, name in imports_of(path) if name == "relative"]


def test_one_file_reads_the_environment() -> None:
    allowed = {"core/settings.py"}
    readers = {
        str(path.relative_to(PACKAGE))
        for _, path in modules()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and node.attr in ("environ", "getenv")
        and isinstance(node.value, ast.Name)
        and node.value.id == "os"
    }
    # runtimes hand an environment on to the programs they start; compat runs in those, and is no part of this process
    assert {name for name in readers if not name.startswith(("runtimes/", "compat/"))} <= allowed


def test_one_file_does_percent_arithmetic_and_one_knows_urls_of_label_studio() -> None:
    text = {str(path.relative_to(PACKAGE)): path.read_text() for _, path in modules()}
    assert {
        name
        for name, source in text.items()
        if "original_width" in source and not name.startswith(("testing/", "compat/"))
    } <= {"labelstudio/wire.py"}


def test_importing_labelloop_is_light() -> None:
    heavy = ("av", "scipy", "cv2", "onnxruntime", "sqlalchemy", "torch", "rapidocr", "starlette", "alembic", "httpx")
    code = f"import labelloop, labelloop.cli, sys; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

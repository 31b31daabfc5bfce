"""What runs in other people's interpreters needs Python 3.8 and its standard library, and nothing else."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import labelloop.compat
from reference.interpreters import interpreter

FAR_SIDE = Path(labelloop.compat.__file__).parent
FILES = sorted(FAR_SIDE.rglob("*.py"))

OPTIONAL = {"numpy", "PIL"}
"""Used where that interpreter has them, inside a try or a function."""


def imported_at_import(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FAR_SIDE).as_posix())
def test_importing_needs_the_standard_library_alone(path: Path) -> None:
    stand_ins = {path.stem for path in (FAR_SIDE / "names").glob("*")}
    roots = {name.partition(".")[0] for name in imported_at_import(ast.parse(path.read_text()))}
    assert roots <= set(sys.stdlib_module_names) | stand_ins


def test_it_compiles_on_python_3_8() -> None:
    code = "import sys\nfor path in sys.argv[1:]: compile(open(path).read(), path, 'exec')"
    subprocess.run([interpreter("3.8"), "-c", code, *map(str, FILES)], check=True)

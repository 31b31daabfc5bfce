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


NEWER = {
    "removeprefix", "removesuffix", "is_relative_to", "randbytes", "lcm", "nextafter", "unparse", "to_thread",
    "waitstatus_to_exitcode", "bit_count", "pairwise", "orig_argv", "aclosing", "get_annotations", "add_note", "cbrt",
    "exp2", "batched", "sumprod",
}  # fmt: skip
"""Methods and functions of 3.9 and later whose names mean nothing else."""
NEWER_OF = {("functools", "cache"), ("os", "pidfd_open"), ("sys", "stdlib_module_names"), ("sys", "exception")}
NEWER_MODULES = {"graphlib", "zoneinfo", "tomllib"}
NEWER_KEYWORDS = {("zip", "strict"), ("dataclass", "slots"), ("dataclass", "kw_only"), ("TemporaryDirectory", "delete")}
GENERIC = {
    "list",
    "dict",
    "tuple",
    "set",
    "frozenset",
    "type",
    "Callable",
    "Iterator",
    "Iterable",
    "OrderedDict",
    "deque",
}
"""What can be indexed by types from 3.9 on; in annotations, which are never evaluated here, it always can."""


def too_new(tree: ast.Module) -> Iterator[str]:
    """What a file uses that Python 3.8 does not have, as far as names show it."""
    nodes = list(evaluated(tree))
    for node in nodes:
        where = f"line {getattr(node, 'lineno', 0)}: "
        if isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner, node.attr) in NEWER_OF or node.attr in NEWER:
                yield f"{where}{node.attr}"
        elif isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            yield from (f"{where}{name}({k.arg}=)" for k in node.keywords if (name, k.arg) in NEWER_KEYWORDS)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
            yield from (f"{where}import {name}" for name in names if name.partition(".")[0] in NEWER_MODULES)
        elif isinstance(node, ast.Subscript):
            name = node.value.id if isinstance(node.value, ast.Name) else getattr(node.value, "attr", "")
            if name in GENERIC:
                yield f"{where}{name}[…] where it is evaluated"


def evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those of annotations."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from evaluated(child)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(FAR_SIDE).as_posix())
def test_it_has_nothing_that_python_3_8_lacks(path: Path) -> None:
    """Also where no such Python is at hand."""
    tree = ast.parse(path.read_text(), feature_version=(3, 8))
    assert list(too_new(tree)) == []
    futures = {alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    said = [getattr(node, field, None) for node in ast.walk(tree) for field in ("annotation", "returns")]
    evaluated_now = [ast.unparse(one) for one in said if one and not isinstance(one, ast.Name | ast.Constant)]
    assert "annotations" in futures or evaluated_now == []


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("'x'.removeprefix('y')", "removeprefix"),
        ("import functools\nfunctools.cache", "cache"),
        ("list(zip(a, b, strict=True))", "zip(strict=)"),
        ("from zoneinfo import ZoneInfo", "zoneinfo"),
        ("kept = dict[str, int]()", "dict[…]"),
        ("class A(OrderedDict[str, int]): ...", "OrderedDict[…]"),
    ],
    ids=["a method", "a function", "a keyword", "a module", "a generic type", "a generic base"],
)
def test_what_is_newer_is_noticed(text: str, says: str) -> None:
    assert says in " ".join(too_new(ast.parse(text)))

"""Types that several threads use for the first time at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src/labelloop"

FIRST_USES = """
import sys, threading, types
import msgspec
from labelloop.core.decoding import convert, from_json
sys.setswitchinterval(1e-6)
for number in range(200):
    module = sys.modules[f"shapes{number}"] = types.ModuleType(f"shapes{number}")
    exec('''
from __future__ import annotations
import msgspec
class Inner(msgspec.Struct):
    a: int
    c: dict[str, int] | None = None
class Outer(msgspec.Struct):
    x: tuple[Inner, ...]
    y: dict[int, list[int]]
''', module.__dict__)
    kind, begin, found = module.Outer, threading.Barrier(4), []
    def use(text='{"x": [{"a": 1, "c": {}}], "y": {"1": [1]}}'):
        begin.wait()
        found.append(%s)
    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    assert [one.x[0].a for one in found] == [1] * 4
"""


def outcome(expression: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", FIRST_USES % expression], capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    "expression",
    ["from_json(text, kind)", "convert(msgspec.json.decode(text) | {'y': {1: [1]}}, kind)"],
)
def test_threads_may_use_a_type_for_the_first_time_together(expression: str) -> None:
    done = outcome(expression)
    assert done.returncode == 0, done.stderr


def test_nobody_decodes_into_types_without_making_them_ready() -> None:
    """compat/ lives in processes of its own, with one thread."""
    allowed = {SOURCE / "core/decoding.py"}
    files = [file for file in SOURCE.rglob("*.py") if file not in allowed and "compat" not in file.parts]
    for file in files:
        for number, line in enumerate(file.read_text().splitlines(), 1):
            careless = "msgspec.convert(" in line or ("decode(" in line and "type=" in line and "msgspec" in line)
            assert not careless, f"{file}:{number}: use labelloop.core.decoding"

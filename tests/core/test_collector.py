"""What is put aside from the garbage collector, and when: each case in a process of its own, which has one collector."""

from __future__ import annotations

import subprocess
import sys

import pytest

CASES = {
    "what is there at the start": (
        "collector.keep_short()",
        "gc.get_freeze_count() > 1000",
    ),
    "what a long look found is put aside": (
        "gc.callbacks.append(collector.PutAside(longest_s=-1.0)); before = gc.get_freeze_count(); gc.collect()",
        "before == 0 and gc.get_freeze_count() > 1000",
    ),
    "what a short look found stays": (
        "gc.callbacks.append(collector.PutAside(longest_s=1e9)); gc.collect()",
        "gc.get_freeze_count() == 0",
    ),
    "a look at the young alone does not count": (
        "gc.callbacks.append(collector.PutAside(longest_s=-1.0)); gc.collect(1)",
        "gc.get_freeze_count() == 0",
    ),
    "it ends": (
        "gc.callbacks.append(collector.PutAside(longest_s=-1.0, most_times=1)); gc.collect(); "
        "before = gc.get_freeze_count(); new = [[] for _ in range(1000)]; gc.collect()",
        "gc.get_freeze_count() <= before",
    ),
    "what was imported later": (
        "collector.keep_short(); before = gc.get_freeze_count(); new = [[] for _ in range(1000)]; collector.has_grown()",
        "gc.get_freeze_count() >= before + 1000",
    ),
    "nor is it without end": (
        "collector.keep_short(); [collector.has_grown() for _ in range(collector.MOST_TIMES)]; "
        "before = gc.get_freeze_count(); new = [[] for _ in range(1000)]; collector.has_grown()",
        "gc.get_freeze_count() <= before",
    ),
    "nothing where nobody asked": (
        "collector.has_grown()",
        "gc.get_freeze_count() == 0",
    ),
    "what nobody has any more is freed": (
        "import weakref; kept = type('Kept', (), {})(); seen = weakref.ref(kept); collector.keep_short(); del kept",
        "seen() is None",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_put_aside(case: str) -> None:
    does, holds = CASES[case]
    program = f"import gc\nfrom labelloop.core import collector\n{does}\nassert {holds}, gc.get_freeze_count()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr

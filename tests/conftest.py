"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of designs, recordings and test data beside the project; tests that need it skip where it is absent."""
    path = Path(os.environ.get("LABELLOOP_SHARED", ROOT.parent / "shared"))
    if not path.is_dir():
        pytest.skip(f"no shared data at {path}; set LABELLOOP_SHARED")
    return path

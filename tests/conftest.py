"""Fixtures that several folders of tests share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from reference.postgres_server import postgres_server, postgres_url

__all__ = ["postgres_server", "postgres_url", "shared"]

ROOT = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("LABELLOOP_SHARED", ROOT.parent / "shared"))


def pytest_configure(config: pytest.Config) -> None:
    """To the product every LABELLOOP_… that is no setting is a typing error; the processes that run tests for this one
    still have to be told."""
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        os.environ.pop("LABELLOOP_SHARED", None)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of designs, recordings and test data beside the project; tests that need it skip where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"no shared data at {SHARED}; set LABELLOOP_SHARED")
    return SHARED

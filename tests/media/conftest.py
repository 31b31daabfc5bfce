"""Servers that the test stops, and a loader that looks names up in a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from media_site import FakeOrigin, Names, Site

from labelloop.core.settings import Settings
from labelloop.media.load import MediaLoader


@pytest.fixture
def sites() -> Iterator[Callable[..., Site]]:
    with ExitStack() as stack:

        def make(address: str = "127.0.0.1") -> Site:
            site = Site(address)
            stack.callback(site.close)
            return site

        yield make


@pytest.fixture
def studio(sites: Callable[..., Site]) -> Site:
    """The place of Label Studio."""
    return sites()


@pytest.fixture
def other(sites: Callable[..., Site]) -> Site:
    """Some other server."""
    return sites()


@pytest.fixture
def make_loader(tmp_path: Path, studio: Site) -> Iterator[Callable[..., MediaLoader]]:
    with ExitStack() as stack:

        def make(origin: FakeOrigin | None = None, *, no_origin: bool = False, **given: Any) -> MediaLoader:
            extra = {name: given.pop(name) for name in ("resolve", "observe") if name in given}
            given.setdefault("media_timeout_s", 5.0)
            settings = Settings(home=tmp_path / "home", **given)
            found = None if no_origin else origin or FakeOrigin(studio.url)
            loader = MediaLoader(
                settings, lambda project: found, resolve=extra.pop("resolve", Names()), retries_s=(0.0, 0.0), **extra
            )
            stack.callback(loader.close)
            return loader

        yield make

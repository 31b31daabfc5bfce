"""Whose address and token are used, and when a private address is trusted."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelloop.core.settings import read_settings
from labelloop.serving.origins import Origins


def origins(
    tmp_path: Path, *, saved: list[tuple[str, str]] | None = None, trust: bool = False, **settings: str
) -> Origins:
    return Origins(read_settings(home=tmp_path, **settings), lambda: saved or [], trust_setup=trust)


@pytest.mark.parametrize(
    ("settings", "saved", "handed", "url", "authorization"),
    [
        ({}, [], None, None, None),
        ({}, [], ("http://in", "handed"), "http://in", "Token handed"),
        ({}, [("http://in", "saved")], ("http://in", "handed"), "http://in", "Token saved"),
        ({}, [("http://out", "saved")], ("http://in", "handed"), "http://out", "Token saved"),
        ({"label_studio_url": "http://own"}, [], ("http://in", "handed"), "http://own", "Token handed"),
        ({"label_studio_url": "http://own"}, [("http://own", "saved")], None, "http://own", "Token saved"),
        ({"label_studio_token": "own"}, [], ("http://in", "handed"), "http://in", "Token own"),
        ({"label_studio_url": "http://own", "label_studio_token": "own"}, [("http://x", "s")], ("http://in", "h"), "http://own", "Token own"),
        ({"label_studio_url": "http://own"}, [], None, "http://own", None),
    ],
    ids=["nothing known", "only /setup", "connect saved a token", "connect knows another name", "own address, handed token",
         "own address, saved token", "own token, handed address", "settings win", "no token"],
)  # fmt: skip
def test_order(tmp_path: Path, settings, saved, handed, url, authorization) -> None:
    known = origins(tmp_path, saved=saved, trust=True, **settings)
    if handed:
        known.remember(7, *handed)
    origin = known.of(7)
    assert (origin and origin.base_url) == url
    assert (origin and origin.authorization()) == authorization


def test_the_name_of_setup_is_another_name_of_the_same_server(tmp_path: Path) -> None:
    known = origins(tmp_path, label_studio_url="http://own")
    known.remember(7, "https://public.example/", "t")
    origin = known.of(7)
    assert origin is not None
    assert origin.public_urls == ("https://public.example",)


@pytest.mark.parametrize(
    ("trust", "settings", "saved", "expected"),
    [(False, {}, [], False), (True, {}, [], True), (False, {"label_studio_url": "http://in"}, [], True), (False, {}, [("http://in", "t")], True)],
    ids=["a stranger could have called /setup", "only Label Studio can call", "the operator said so", "connect saved it"],
)  # fmt: skip
def test_who_is_trusted(tmp_path: Path, trust, settings, saved, expected) -> None:
    known = origins(tmp_path, trust=trust, saved=saved, **settings)
    known.remember(7, "http://in", "t")
    origin = known.of(7)
    assert origin is not None
    assert origin.trusted is expected


def test_what_connect_saves_reaches_a_running_server(tmp_path: Path) -> None:
    saved: list[tuple[str, str]] = []
    known = Origins(read_settings(home=tmp_path), lambda: saved, trust_setup=False)
    assert known.of(None) is None
    saved.append(("http://new", "token"))
    known.reload()
    origin = known.of(None)
    assert origin is not None
    assert origin.base_url == "http://new"


def test_an_address_that_a_stranger_could_have_sent_never_gets_the_token(tmp_path: Path) -> None:
    known = origins(tmp_path, label_studio_token="own")
    known.remember(7, "http://collector.example", "handed")
    origin = known.of(7)
    assert origin is not None
    assert origin.authorization() == "Token handed", "only what the stranger brought"
    assert not origin.trusted

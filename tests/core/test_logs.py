"""Logs never carry what opens a door."""

from __future__ import annotations

import json
import logging

import pytest
import structlog

from labelloop.core.logs import configure_logs, redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJ0b2tlbl90eXBlIjoicmVmcmVzaCJ9.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        ("Authorization: Token 0123456789abcdef0123", "0123456789abcdef0123"),
        (f"sent Bearer {JWT} to", JWT),
        (f"the token is {JWT}", JWT),
        ("Basic YW5uOnNlY3JldHNlY3JldA==", "YW5uOnNlY3JldHNlY3JldA"),
        ("http://bucket/k?X-Amz-Signature=abcdef123&x=1", "abcdef123"),
        ("GET https://user:hunter2@host/x", "hunter2"),
    ],
)
def test_secrets_are_blanked(text: str, secret: str) -> None:
    assert secret not in redact(text)
    assert "***" in redact(text)


@pytest.mark.parametrize("text", ["project 7 token-free", "Token expired", "http://host:8080/a?b=c"])
def test_other_words_stay(text: str) -> None:
    assert redact(text) == text


def test_a_line_is_json_with_level_and_without_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    before = structlog.get_config()
    handlers, level = logging.root.handlers[:], logging.root.level
    try:
        configure_logs(form="json")
        structlog.get_logger("x").info("asked", token="abc", url=f"http://h/?token={JWT}")
        logging.getLogger("urllib3").warning("retrying with Token 0123456789abcdef")
        structlog.get_logger("x").debug("too fine")
    finally:
        structlog.configure(**before)
        logging.root.handlers[:] = handlers
        logging.root.setLevel(level)
    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert (first["event"], first["level"], first["token"]) == ("asked", "info", "***")
    assert JWT not in first["url"]
    assert second["event"] == "retrying with Token ***"

"""The table of settings: names that people already use, helpful errors, nothing read twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from labelloop.core.errors import SettingsError
from labelloop.core.settings import parse_bytes, read_settings, table


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("LABELLOOP_", "LABEL_STUDIO_", "ML_", "BASIC_AUTH", "LOG_", "SCORE_")):
            monkeypatch.delenv(name)


@pytest.mark.parametrize(
    ("name", "value", "field", "expected"),
    [
        ("LABELLOOP_LABEL_STUDIO_URL", "http://ls/sub/", "label_studio_url", "http://ls/sub"),
        ("LABEL_STUDIO_URL", "http://ls", "label_studio_url", "http://ls"),
        ("LABEL_STUDIO_URL", "http://ls/sub/projects/7/data?tab=3", "label_studio_url", "http://ls/sub"),
        ("LABEL_STUDIO_HOSTNAME", "http://ls", "label_studio_url", "http://ls"),
        ("LABEL_STUDIO_HOST", "http://ls", "label_studio_url", "http://ls"),
        ("LABELLOOP_DATABASE_URL", "postgres://me@db/x", "database_url", "postgresql+psycopg://me@db/x"),
        ("LABELLOOP_DATABASE_URL", "postgresql://me@db/x", "database_url", "postgresql+psycopg://me@db/x"),
        ("ML_LABELS", "car, dog", "labels", ("car", "dog")),
        ("ML_PROVIDER", "cuda", "device", "cuda"),
        ("LABELLOOP_DEVICE", "gpu:0", "device", "cuda:0"),
        ("LABEL_STUDIO_BASE_DATA_DIR", "/data", "image_dir", Path("/data")),
        ("LABELLOOP_MEDIA_CACHE_SIZE", "200MB", "media_cache_size", 200_000_000),
        ("LOG_LEVEL", "DEBUG", "log_level", "debug"),
        ("LABELLOOP_FAILED_ITEMS", " Skip ", "failed_items", "skip"),
    ],
)
def test_names_that_people_already_use(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str, expected: object
) -> None:
    monkeypatch.setenv(name, value)
    assert getattr(read_settings(), field) == expected


@pytest.mark.parametrize("name", ["LABELLOOP_LABEL_STUDIO_TOKEN", "LABEL_STUDIO_API_KEY", "LABEL_STUDIO_TOKEN"])
def test_tokens_are_never_shown(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "topsecret")
    settings = read_settings()
    assert settings.label_studio_token.get_secret_value() == "topsecret"
    assert "topsecret" not in repr(settings) + str(settings)


@pytest.mark.parametrize(
    ("environment", "listen"),
    [
        ({}, ("127.0.0.1", 9090)),
        ({"ML_BACKEND_ADDR": "0.0.0.0", "ML_BACKEND_PORT": "8003"}, ("0.0.0.0", 8003)),
        ({"ML_BACKEND_ADDR": "0.0.0.0:8004"}, ("0.0.0.0", 8004)),
        ({"LABELLOOP_HOST": "::1", "LABELLOOP_PORT": "1"}, ("::1", 1)),
        ({"LABELLOOP_HOST": "[::1]:8005"}, ("::1", 8005)),
        ({"ML_BACKEND_ADDR": "localhost:8004", "LABELLOOP_PORT": ""}, ("localhost", 8004)),
    ],
)
def test_where_to_listen(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], listen: tuple[str, int]) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert read_settings().listen == listen


@pytest.mark.parametrize(
    "address", ["localhost:x", "localhost:", "localhost:99999", "localhost:²", ":9090", "http://localhost:9090", "a b"]
)
def test_an_address_that_cannot_be_listened_on(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("ML_BACKEND_ADDR", address)
    with pytest.raises(SettingsError, match=r"ML_BACKEND_ADDR cannot be used: .* write 0\.0\.0\.0"):
        read_settings()


@pytest.mark.parametrize("names", ["LABELLOOP_BASIC_AUTH_", "BASIC_AUTH_", "ML_SERVER_BASIC_AUTH_"])
def test_a_password_needs_a_user_and_the_other_way_round(monkeypatch: pytest.MonkeyPatch, names: str) -> None:
    monkeypatch.setenv(f"{names}USER", "ann")
    with pytest.raises(SettingsError, match="both"):
        read_settings()
    monkeypatch.setenv(f"{names}PASS", "secret")
    assert read_settings().basic_auth_user == "ann"


@pytest.mark.parametrize("variable", ["ML_BACKEND_PORT", "ML_BACKEND_ADDR"])
def test_an_option_wins_over_the_older_names(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1" if variable.endswith("PORT") else "0.0.0.0:1")
    assert read_settings(port=2).listen[1] == 2
    assert read_settings(host="127.0.0.1", port=3).listen == ("127.0.0.1", 3)


def test_a_typo_is_an_error_that_names_the_near_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELLOOP_MEDIA_CACHE_SIZ", "1")
    with pytest.raises(SettingsError, match="Did you mean LABELLOOP_MEDIA_CACHE_SIZE"):
        read_settings()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("LABELLOOP_PORT", "99999", "LABELLOOP_PORT"),
        ("LABELLOOP_DEVICE", "tpu", "cuda:0"),
        ("LABELLOOP_MEDIA_MAX_SIZE", "big", "200MB"),
        ("LABEL_STUDIO_URL", "localhost:8080", "LABEL_STUDIO_URL .*http://"),
        ("LABEL_STUDIO_HOST", "localhost:8080", "The setting LABEL_STUDIO_HOST "),
        ("ML_BACKEND_PORT", "many", "The setting ML_BACKEND_PORT "),
        ("SCORE_THRESHOLD", "2", "The setting SCORE_THRESHOLD "),
        ("LOG_LEVEL", "loud", "The setting LOG_LEVEL .*'debug'"),
    ],
)
def test_a_bad_value_says_what_a_good_one_looks_like(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, words: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=words):
        read_settings()


def test_an_error_of_an_option_does_not_blame_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELLOOP_PORT", "1")
    with pytest.raises(SettingsError, match="The setting port cannot"):
        read_settings(port=99999)


@pytest.mark.parametrize("name", ["port", "home", "labels", "Port", "PORT"])
def test_a_plain_word_in_the_environment_is_nobodys_setting(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    before = read_settings()
    monkeypatch.setenv(name, "19733")
    assert read_settings() == before


def test_of_several_names_the_first_in_the_row_that_is_not_empty_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ML_BACKEND_PORT", "2")
    monkeypatch.setenv("LABELLOOP_PORT", "")
    assert read_settings().port == 2
    monkeypatch.setenv("LABELLOOP_PORT", "1")
    assert read_settings().port == 1


def test_the_command_line_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABELLOOP_PORT", "1")
    assert read_settings(port=2).port == 2
    assert read_settings(port=None).port == 1


@pytest.mark.parametrize(
    ("text", "size"), [("5", 5), ("1kB", 1000), ("1.5 G", 1_500_000_000), ("2 MiB", 2_000_000), (7, 7)]
)
def test_sizes(text: object, size: int) -> None:
    assert parse_bytes(text) == size


def test_every_setting_has_a_line_of_help_and_a_name() -> None:
    for name, environment, _, help_text in table():
        assert environment.startswith(f"LABELLOOP_{name.upper()}"), name
        assert len(help_text) > 10, name

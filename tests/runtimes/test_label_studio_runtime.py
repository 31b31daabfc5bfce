"""Starting Label Studio: what can be said without one. With a real one: tests/e2e."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from labelloop.cli import app
from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes import label_studio
from labelloop.runtimes.label_studio import Credentials


def test_without_a_runtime_the_error_names_the_command(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeSetupError, match="labelloop runtimes create label-studio"),
        label_studio.start(tmp_path),
    ):
        pass


def test_nothing_of_the_users_environment_changes_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOST", "DEBUG", "LABEL_STUDIO_HOST", "HEARTEX_HOST", "DATABASE_URL", "POSTGRE_HOST", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://somewhere.example")
    monkeypatch.setenv("TZ", "UTC")
    made = label_studio._environment(tmp_path, "http://127.0.0.1:1", Credentials("a@b.example", "word", "token", ""))
    assert "somewhere" not in " ".join(made.values())
    assert made["TZ"] == "UTC"
    assert made["LABEL_STUDIO_HOST"] == "http://127.0.0.1:1"
    silent = {
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    assert silent.items() <= made.items()
    assert made["ML_BLOCK_LOCAL_IP"] == made["SSRF_PROTECTION_ENABLED"] == "false"


def test_a_copy_that_was_cut_short_is_not_taken_for_a_data_folder(tmp_path: Path) -> None:
    template, target = tmp_path / "template", tmp_path / "deep" / "data"
    template.mkdir()
    (template / "credentials.json").write_text("{}")
    (template / "label-studio.log").write_text("old")
    (target.parent / "data.partial").mkdir(parents=True)
    (target.parent / "data.partial" / "half").touch()
    label_studio._copy(template, target)
    assert [path.name for path in target.iterdir()] == ["credentials.json"]
    assert not (target.parent / "data.partial").exists()


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["list"], 0, "missing"),
        (["check", "label-studio"], 1, "label-studio is missing"),
        (["remove", "label-studio"], 0, "was not there"),
    ],
    ids=["list", "check", "remove"],
)
def test_commands_on_an_empty_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], status: int, says: str
) -> None:
    monkeypatch.setenv("LABELLOOP_HOME", str(tmp_path))
    done = CliRunner().invoke(app, ["runtimes", *arguments])
    assert (done.exit_code, says in done.output) == (status, True), done.output

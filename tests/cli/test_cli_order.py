"""`labelloop order` as a process, the way people run it."""

from __future__ import annotations

import pytest

from labelloop.core.settings import read_settings
from labelloop.learning.memory import recall
from labelloop.serving.models import open_store
from reference.terminal import Terminal


def test_a_project_is_put_into_order(terminal: Terminal) -> None:
    nothing = terminal.run("order", "streets")
    assert nothing.returncode == 1
    assert f"labelloop prelabel {terminal.project}" in nothing.stderr
    terminal.run("prelabel", "streets")

    done = terminal.run("order", "streets", "--diverse", "4", "--flip", "--class-balance")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "58 tasks in order by cars@1." in done.stdout
    assert "2 tasks have no prediction of this version" in done.stdout
    assert f"{terminal.studio.url}/projects/{terminal.project}/data?tab=" in done.stdout
    assert "Label Tasks As Displayed" in done.stdout
    assert "'Label All Tasks'" in done.stdout
    titles = [view["data"]["title"] for view in terminal.studio.state.views.values()]
    assert titles == ["Default", "Most uncertain first"]

    store = open_store(read_settings(home=terminal.home))
    version = terminal.studio.state.projects[terminal.project].model_version
    seen = list(store.scores.all(terminal.project, str(version)))
    assert len(seen) == 58
    assert recall(seen[0]).labels == ("Car",)
    assert all(one.inconsistency == pytest.approx(0, abs=0.05) for one in seen), "the box is in the middle"
    assert len(store.scores.embeddings(terminal.project, str(version))) == 16, "four times as many as were wanted"

    again = terminal.run("order", "streets", "--diverse", "4", "--flip", "--class-balance", "--no-sampling")
    assert "; 0 scores were changed" in again.stdout
    assert "instead of" not in again.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        pytest.param(("--strategy", "entrop"), "'entropy'", id="strategy"),
        pytest.param(("--aggregate", "topk"), "'top-k'", id="aggregate"),
        pytest.param(("--diverse", "3", "--method", "kcenter"), "'k-center'", id="method"),
        pytest.param(("--model", "trucks"), "There is no model trucks", id="model"),
    ],
)
def test_what_does_not_exist_names_what_does(terminal: Terminal, arguments: tuple[str, ...], reason: str) -> None:
    done = terminal.run("order", "streets", *arguments)
    assert done.returncode == 1
    assert reason in done.stderr
    assert "Traceback" not in done.stderr

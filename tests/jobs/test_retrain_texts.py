"""The learning loop on a project of texts, from no model at all: everything real but Label Studio."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytest.importorskip("sklearn", reason="needs the extra labelloop[train]")

from labelloop.app import assemble, close, training_of
from labelloop.core.settings import read_settings
from labelloop.jobs.training import summary
from labelloop.store.jobs import Job
from labelloop.store.loops import LoopOptions
from labelloop.store.runs import Run
from labelloop.testing import FakeLabelStudio
from reference.running_server import Backend
from reference.tickets import LABELS, Ticket, tickets

CONFIG = (
    '<View><Text name="message" value="$body"/><Choices name="about" toName="message">'
    + "".join(f'<Choice value="{label}"/>' for label in LABELS)
    + '</Choices><Choices name="urgent" toName="message"><Choice value="Account"/></Choices></View>'
)


class Desk:
    """A project of messages of which people sorted some, a server's parts with their worker, and the rows."""

    def __init__(self, studio: FakeLabelStudio, home: Path) -> None:
        self.studio = studio
        self.settings = read_settings(
            home=home, label_studio_url=studio.url, label_studio_token=studio.token, import_settle_s=0.3
        )
        self.project = studio.add_project("messages", CONFIG)
        self.http = httpx.Client(base_url=studio.url, headers={"Authorization": f"Token {studio.token}"})
        self.parts = assemble(self.settings)
        self.training = training_of(self.parts.store)
        self.parts.store.registry.save_connection(studio.url, studio.token)
        self.parts.jobs.start()

    def close(self) -> None:
        close(self.parts)
        self.http.close()

    def import_(self, messages: list[Ticket]) -> list[int]:
        return self.studio.add_tasks(self.project, [{"body": one.text} for one in messages])

    def sort(self, tasks: list[int], labels: list[str]) -> None:
        """As a person does; a second control, which nobody learns, offers one of the words too."""
        for task, label in zip(tasks, labels, strict=True):
            said = {"from_name": "about", "to_name": "message", "type": "choices", "value": {"choices": [label]}}
            other = said | {"from_name": "urgent", "value": {"choices": ["Account"]}}
            body = {"result": [said | {"id": "a"}, other | {"id": "b"}]}
            self.http.post(f"/api/tasks/{task}/annotations/", json=body).raise_for_status()

    def run(self, **changes: object) -> tuple[Job, Run]:
        options = LoopOptions(budget_s=20, **changes)
        job, new = self.training.begin(self.project, self.studio.url, options, reason="the test asked")
        assert new
        Backend.wait(lambda: self.training.jobs.get(job.id).ended, seconds=240)
        run = self.training.runs.find(job.id)
        assert run is not None
        return self.training.jobs.get(job.id), run

    def log(self, job: Job) -> str:
        return "\n".join(line.text for line in self.training.jobs.lines(job.id))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    with FakeLabelStudio() as studio:
        desk = Desk(studio, tmp_path / "home")
        try:
            yield desk
        finally:
            desk.close()


@pytest.mark.slow
def test_from_nothing_to_a_model_that_reads(desk: Desk) -> None:
    known, new = tickets(60), tickets(12, seed=1)
    sorted_tasks, untouched = desk.import_(known), desk.import_(new)
    desk.sort(sorted_tasks, [one.label for one in known])
    job, run = desk.run()
    assert (job.state, run.outcome, run.trainer) == ("done", "promoted", "text"), desk.log(job)
    assert run.counts["reads"] == "texts"
    assert run.counts["by_label"] == dict.fromkeys(LABELS, 20), "the other control does not count"
    assert run.metrics["candidate"]["accuracy"] > 0.9
    assert "the first model of the project: promoted" in run.verdict
    assert any("texts to train on" in line for line in summary(run))
    version = desk.training.registry.catalogue().of_project(desk.project)
    assert version is not None
    assert (version.id, version.card.engine, version.trained) == (f"project-{desk.project}@1", "text", True)
    right = 0
    for task, ticket in zip(untouched, new, strict=True):
        (row,) = desk.studio.predictions(task)
        (result,) = row["result"]
        right += result["value"]["choices"] == [ticket.label]
        assert 0 < row["score"] <= 1
    assert right >= 11
    assert desk.studio.state.projects[desk.project].model_version == row["model_version"]

    shuffled = [
        LABELS[(LABELS.index(one.label) + 1) % 3] if n % 2 else one.label for n, one in enumerate(tickets(90, seed=2))
    ]
    more = tickets(90, seed=2)
    desk.sort(desk.import_(more), shuffled)
    job, run = desk.run()
    assert run.outcome == "refused", desk.log(job)
    assert run.metrics["live"]["accuracy"] is not None


@pytest.mark.parametrize(
    ("labels", "changes", "state", "says"),
    [
        (["Billing"] * 12, {}, "failed", "always the same: Billing"),
        ([], {}, "done", "nobody has made a choice about a text"),
        (["Billing", "Account"] * 6, {"trainer": "head"}, "failed", "head does not learn choices of texts"),
    ],
    ids=["one label", "nothing", "a trainer of boxes"],
)
def test_what_cannot_be_learned_says_so(
    desk: Desk, labels: list[str], changes: dict[str, object], state: str, says: str
) -> None:
    desk.sort(desk.import_(tickets(len(labels))), labels)
    job, run = desk.run(**changes)
    assert job.state == state
    assert says in f"{job.error} {run.verdict}"

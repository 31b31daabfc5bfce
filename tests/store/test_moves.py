"""The pointer of a project, its history, and the way back."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import sqlalchemy as sa

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.settings import read_settings
from labelloop.store import db
from labelloop.store.artifacts import Artifacts
from labelloop.store.lineage import Lineage, Lineages
from labelloop.store.registry import ModelVersion, Registry
from labelloop.store.schema import now


@pytest.fixture
def engine(tmp_path: Path) -> sa.Engine:
    return db.open_database(read_settings(home=tmp_path / "home"))


@pytest.fixture
def registry(engine: sa.Engine, tmp_path: Path) -> Registry:
    return Registry(engine, Artifacts(str(tmp_path / "models"), cache=tmp_path / "cache"))


def add(registry: Registry, name: str = "cars", *, threshold: float = 0.1, trained: bool = False) -> ModelVersion:
    """Each threshold is a version of its own."""
    return registry.add(None, ModelCard(name=name, engine="empty", score_threshold=threshold), trained=trained)


def serves(registry: Registry, project: int = 7) -> str:
    version = registry.catalogue().of_project(project)
    return version.id if version else ""


def test_repeated_rollbacks_go_further_back_and_then_say_so(registry: Registry) -> None:
    for number in range(1, 5):
        add(registry, threshold=number / 10)
        registry.bind(7, f"cars@{number}")
    assert [registry.rollback(7).target for _ in range(3)] == ["cars@3", "cars@2", "cars@1"]
    assert serves(registry) == "cars@1"
    with pytest.raises(ModelError, match=r"used nothing before cars@1 that is still there.*models use 7"):
        registry.rollback(7)


def test_a_new_model_after_a_rollback_leads_back_to_where_the_rollback_led(registry: Registry) -> None:
    for number in range(1, 5):
        add(registry, threshold=number / 10)
    for number in (1, 2, 3):
        registry.bind(7, f"cars@{number}")
    registry.rollback(7)
    registry.bind(7, "cars@4")
    assert [registry.rollback(7).target, registry.rollback(7).target] == ["cars@2", "cars@1"]


def test_the_history_says_from_where_to_where_when_why_and_who(registry: Registry) -> None:
    add(registry), add(registry, "dogs"), add(registry, threshold=0.2)
    registry.bind(7, "cars@1", reason="first try", by="ada")
    registry.bind(7, "cars@2", reason="AP50 0.9 against 0.8: promoted", by="the loop")
    registry.rollback(7, by="ada")
    assert [(m.source, m.target, m.back, m.reason, m.by) for m in registry.history(7)] == [
        ("cars@2", "cars@1", True, "rolled back", "ada"),
        ("cars@1", "cars@2", False, "AP50 0.9 against 0.8: promoted", "the loop"),
        (None, "cars@1", False, "first try", "ada"),
    ]
    moments = [m.at for m in registry.history(7)]
    assert moments == sorted(moments, reverse=True)
    assert registry.history(8) == []


def test_a_move_to_where_the_pointer_is_leaves_no_trace(registry: Registry) -> None:
    add(registry), add(registry, "dogs")
    for _ in range(3):
        registry.bind(7, "dogs")
    assert len(registry.history(7)) == 1


def test_the_only_model_served_before_anything_was_assigned(registry: Registry) -> None:
    """A project of an installation with one model gets its first trained version; the way back is that model."""
    add(registry)
    candidate = add(registry, threshold=0.2, trained=True)
    registry.bind(7, candidate.id)
    assert registry.rollback(7).target == "cars@1"
    assert serves(registry) == "cars@1"


def test_the_way_back_is_the_version_that_served_whatever_its_name_means_by_now(registry: Registry) -> None:
    add(registry), add(registry, "dogs")
    registry.bind(7, "cars")
    registry.bind(7, "dogs")
    add(registry, threshold=0.2)
    assert registry.rollback(7).target == "cars@1", "cars@2 never served this project"


def test_a_version_that_came_by_its_name_can_be_taken_back(registry: Registry) -> None:
    """A person adds versions to a name that a project follows: each is live at once, without a move."""
    add(registry), add(registry, "dogs")
    registry.bind(7, "dogs")
    registry.bind(7, "cars")
    add(registry, threshold=0.2), add(registry, threshold=0.3)
    assert serves(registry) == "cars@3"
    led = [registry.rollback(7).target]
    assert serves(registry) == "cars@2"
    led += [registry.rollback(7).target]
    assert led == ["cars@2", "dogs@1"], "what came before by name is known only while the pointer follows the name"


def test_pinning_what_serves_is_no_move(registry: Registry) -> None:
    add(registry), add(registry, "dogs")
    registry.bind(7, "cars")
    registry.bind(7, "cars@1")
    assert len(registry.history(7)) == 1
    assert registry.catalogue().bindings[7].spec == "cars@1"


def test_nothing_can_be_assigned_and_gone_back_to(registry: Registry) -> None:
    add(registry)
    assert serves(registry) == "cars@1", "the only model serves whatever has none of its own"
    assert registry.bind(7, "none") is None
    assert registry.catalogue().of_project(7, default="cars@1") is None
    registry.bind(7, "cars@1")
    assert registry.rollback(7).target == "none"
    assert serves(registry) == ""
    assert registry.rollback(7).target == "cars@1"
    with pytest.raises(ModelError, match="cannot be a model name"):
        add(registry, "none")


def test_what_served_by_default_can_be_told(registry: Registry) -> None:
    add(registry), add(registry, "dogs")
    registry.bind(7, "dogs", before="cars@1")
    assert registry.rollback(7).target == "cars@1"


@pytest.mark.parametrize("project", [7, 2**63])
def test_a_project_that_never_had_a_model_says_so(registry: Registry, project: int) -> None:
    with pytest.raises(ModelError, match=f"ever assigned to project {project}.*models use {project} NAME"):
        registry.rollback(project)


def test_versions_that_are_gone_are_passed_over_even_if_their_number_is_given_again(registry: Registry) -> None:
    for number in range(1, 4):
        add(registry, threshold=number / 10)
        registry.bind(7, f"cars@{number}")
    registry.bind(7, "cars@1")
    for version in ("cars@3", "cars@2"):
        registry.remove(version)
    assert add(registry, threshold=0.7).id == "cars@2"
    with pytest.raises(ModelError, match="nothing before cars@1"):
        registry.rollback(7)


def test_projects_do_not_share_a_history(registry: Registry) -> None:
    add(registry), add(registry, "dogs")
    registry.bind(7, "cars"), registry.bind(7, "dogs"), registry.bind(8, "dogs"), registry.bind(8, "cars")
    assert (registry.rollback(7).target, registry.rollback(8).target) == ("cars@1", "dogs@1")


def test_pointer_and_history_are_written_together_or_not_at_all(
    registry: Registry, engine: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(registry), add(registry, threshold=0.2)
    registry.bind(7, "cars@1")
    with engine.begin() as connection:
        connection.execute(
            sa.text("CREATE TRIGGER full BEFORE INSERT ON moves BEGIN SELECT RAISE(ABORT, 'disk full'); END")
        )
    with pytest.raises(sa.exc.IntegrityError, match="disk full"):
        registry.bind(7, "cars@2")
    assert serves(registry) == "cars@1"
    with pytest.raises(sa.exc.IntegrityError):
        registry.rollback(7)
    assert serves(registry) == "cars@1"


def test_rollbacks_at_the_same_moment_are_two_steps_back(registry: Registry) -> None:
    for number in range(1, 6):
        add(registry, threshold=number / 10)
        registry.bind(7, f"cars@{number}")
    gate, led = threading.Barrier(4), []

    def back() -> None:
        gate.wait()
        led.append(registry.rollback(7).target)

    threads = [threading.Thread(target=back) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(led) == ["cars@1", "cars@2", "cars@3", "cars@4"]
    assert serves(registry) == "cars@1"


# --- trained versions -------------------------------------------------------------------------------


def test_a_trained_version_is_live_only_where_it_is_named_by_number(registry: Registry) -> None:
    add(registry)
    registry.bind(8, "cars")
    candidate = add(registry, threshold=0.2, trained=True)
    assert (candidate.id, candidate.trained) == ("cars@2", True)
    assert (serves(registry, 7), serves(registry, 8)) == ("cars@1", "cars@1"), "the only model, and by name"
    registry.bind(7, "cars@2")
    assert (serves(registry, 7), serves(registry, 8)) == ("cars@2", "cars@1")
    add(registry, threshold=0.3)
    assert (serves(registry, 7), serves(registry, 8)) == ("cars@2", "cars@3"), "a name follows what people add"


def test_a_first_model_that_was_trained_serves_nobody_until_it_is_told_to(registry: Registry) -> None:
    add(registry, "project-7", trained=True)
    assert serves(registry) == ""
    registry.bind(7, "project-7")
    add(registry, "project-7", threshold=0.2, trained=True)
    assert serves(registry) == "project-7@1", "pinned: the next candidate is not live by being there"
    assert registry.catalogue().bindings[7].spec == "project-7@1"


def test_a_trained_version_that_a_person_adds_is_theirs(registry: Registry) -> None:
    add(registry), add(registry, threshold=0.2, trained=True)
    assert not add(registry, threshold=0.2).trained
    assert serves(registry) == "cars@2"
    assert not add(registry, threshold=0.2, trained=True).trained, "and stays so when the loop finds it again"


def lineage(number: int = 2, **changes: object) -> Lineage:
    fields = {
        "project_id": 7, "parent": "cars@1", "manifest": "ab" * 32, "trainer": "head", "seconds": 61.4, "by": "the loop",
        "at": now(), "options": {"budget_s": 60}, "metrics": {"candidate": {"ap50": 0.9}},
        "verdict": {"decision": "promote", "sentence": "AP50 0.900 against 0.800: promoted"},
    }  # fmt: skip
    return Lineage("cars", number, **fields | changes)  # type: ignore[arg-type]


def test_lineage_is_kept_and_can_be_completed(engine: sa.Engine) -> None:
    lineages = Lineages(engine)
    lineages.record(lineage(verdict={}, metrics={}))
    complete = lineage()
    lineages.record(complete)
    assert lineages.of("cars", 2) == complete
    assert lineages.of("cars", 1) is None
    assert complete.summary == [
        "trained from cars@1 by head in 61 s for project 7, asked for by the loop",
        f"data set {'ab' * 32}",
        "AP50 0.900 against 0.800: promoted",
    ]
    assert lineage(parent="", project_id=None, by="", verdict={}).summary[0] == "trained from scratch by head in 61 s"


def test_lineages_of_a_project_come_newest_first(engine: sa.Engine) -> None:
    lineages = Lineages(engine)
    for number in (2, 3, 4):
        lineages.record(lineage(number, project_id=7 if number != 3 else 8))
    assert [one.id for one in lineages.of_project(7)] == ["cars@4", "cars@2"]
    assert [one.id for one in lineages.of_project(7, limit=1)] == ["cars@4"]


def test_lineage_goes_with_its_version(registry: Registry, engine: sa.Engine) -> None:
    add(registry), add(registry, threshold=0.2, trained=True)
    Lineages(engine).record(lineage())
    registry.remove("cars@2")
    assert add(registry, threshold=0.4).id == "cars@2"
    assert Lineages(engine).of("cars", 2) is None

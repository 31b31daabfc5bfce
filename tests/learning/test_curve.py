"""Rows -> means, comparisons, a table, and pictures that are pictures."""

from __future__ import annotations

import csv
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import cv2
import numpy as np
import pytest

from labelloop.core.errors import SimulationError
from labelloop.learning import curve_figure
from labelloop.learning.curve import (
    COLUMNS,
    Spread,
    differences,
    points,
    spread,
    strategies_of,
    verdicts,
    write_csv,
)
from labelloop.learning.simulation import FULL, Row


def row(strategy: str, seed: int, pictures: int, ap50: float, *, ap: float = 0.5, edits: int = 10) -> Row:
    """Half of the pictures are the last batch, with `edits` boxes drawn on it all together."""
    batch = pictures // 2
    return Row(
        strategy, seed, pictures, 3 * pictures, 36.0 * pictures, batch, 36.0 * batch, 1, 0, 0, edits, ap, ap50, 9.0
    )


def rows(*gains: float) -> list[Row]:
    """For each seed a curve by chance, and one that is `gain` better after the first budget, which both share."""
    found = []
    for seed, gain in enumerate(gains):
        for size, value in ((20, 0.5), (40, 0.6), (80, 0.7)):
            better = 0.0 if size == 20 else gain
            found += [row("uncertainty", seed, size, value + better), row("random", seed, size, value)]
        found.append(row(FULL, seed, 200, 0.9))
    return found


def test_points_are_means_and_sample_deviations_over_seeds() -> None:
    first, _, last = points(rows(0.1, 0.3), "uncertainty")
    assert (first.pictures, first.boxes, first.seconds) == (20, 60, 720)
    assert first.ap50 == Spread(0.5, 0.0, 2)
    assert last.ap50.mean == pytest.approx(0.9)
    assert last.ap50.deviation == pytest.approx(np.std([0.8, 1.0], ddof=1))
    assert last.edits_per_picture == Spread(10 / 40, 0.0, 2)
    assert last.seconds_per_picture.mean == 36


def test_one_value_has_no_spread() -> None:
    assert spread([0.3]) == Spread(0.3, 0.0, 1)


def test_strategies_are_in_order_and_training_on_everything_is_none() -> None:
    assert strategies_of(rows(0.1)) == ["uncertainty", "random"]


def test_differences_leave_out_the_shared_start_and_what_only_one_has() -> None:
    found = [*rows(0.1, -0.2), row("uncertainty", 0, 160, 1.0)]
    assert differences(found, "uncertainty") == pytest.approx([0.1, -0.2])


@pytest.mark.parametrize(
    ("gains", "words"),
    [
        ((0.02, 0.01, 0.03), r"\+0.020 ± 0.010 .* better with 3 of 3 seeds: better with every seed"),
        ((0.02, -0.01, 0.03), "better with 2 of 3 seeds: a tie, as far as these seeds can tell"),
        ((0.0, 0.0), "better with 0 of 2 seeds: a tie"),
        ((-0.02, -0.01), "better with 0 of 2 seeds: worse with every seed"),
    ],
)
def test_verdicts_are_cautious(gains: tuple[float, ...], words: str) -> None:
    (sentence,) = verdicts(rows(*gains))
    assert sentence.startswith("uncertainty against random: AP50 ")
    assert re.search(words, sentence)


def test_one_seed_and_no_control_say_nothing() -> None:
    assert not list(verdicts(rows(0.1)))
    assert not list(verdicts([one for one in rows(0.1, 0.1) if one.strategy != "random"]))


def test_the_table_has_all_that_a_row_has(tmp_path: Path) -> None:
    write_csv(tmp_path / "curve.csv", rows(0.123456))
    with (tmp_path / "curve.csv").open() as file:
        found = list(csv.DictReader(file))
    assert tuple(found[0]) == COLUMNS
    assert [(one["strategy"], one["pictures"], one["ap50"]) for one in found][2] == ("uncertainty", "40", "0.7235")
    assert found[0]["edits_per_picture"] == "1.0"
    assert [path.name for path in tmp_path.iterdir()] == ["curve.csv"], "nothing is left of the writing"


def test_the_pictures_are_pictures(tmp_path: Path) -> None:
    png, svg = curve_figure.draw(rows(0.1, 0.2), tmp_path / "curve", title="on bccd")
    picture = cv2.imread(str(png))
    assert picture is not None
    assert picture.shape == (1440, 1650, 3)
    assert len(np.unique(picture)) > 50, "it is not empty"
    texts = {"".join(element.itertext()).strip() for element in ET.parse(svg).iter("{http://www.w3.org/2000/svg}text")}
    assert {
        "on bccd",
        "uncertainty",
        "random",
        "trained on all 200 pictures",
        "drawn by hand, without a model",
        "labelled boxes",
    } <= texts
    assert "band: ± 1 standard deviation" in texts
    assert svg.stat().st_size < 200_000


def test_a_half_played_simulation_is_drawn_too_and_the_same_rows_give_the_same_file(tmp_path: Path) -> None:
    once, again = (curve_figure.draw([row("entropy:sum", 0, 20, 0.4)], tmp_path / name, title="begun") for name in "ab")
    assert [path.read_bytes() for path in once] == [path.read_bytes() for path in again]
    assert b"one seed: the spread is not known" in once[1].read_bytes()


def test_without_matplotlib_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SimulationError, match="needs matplotlib") as refused:
        curve_figure.require()
    assert refused.value.hint == "Install it: pip install 'labelloop[train]'"

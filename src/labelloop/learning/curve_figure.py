"""The learning curves of a simulation as a picture: PNG for people, SVG for pages."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labelloop.core.errors import SimulationError
from labelloop.learning.curve import CONTROL, Point, Spread, points, spread, strategies_of
from labelloop.learning.simulation import FULL, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES = (11.0, 9.6)
PIXELS_PER_INCH = 150
MARGINS = {"left": 0.06, "right": 0.985, "bottom": 0.05, "top": 0.945, "wspace": 0.24, "hspace": 0.22}
"""Shares of the figure: set by hand, which takes half the time of a layout engine."""
INK, PALE = "#333333", "#d9d9d9"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: told apart by all
MARKERS = "osD^vP"
CONTROL_COLOUR = "#777777"
ALL, BY_HAND = "trained on all", "drawn by hand, without a model"

_X: tuple[tuple[str, Callable[[Point], float]], ...] = (
    ("labelled pictures", lambda point: point.pictures),
    ("labelled boxes", lambda point: point.boxes),
    ("annotation time (estimated, hours)", lambda point: point.seconds / 3600),
)
_MEASURES: tuple[tuple[str, Callable[[Point], Spread], Callable[[Row], float]], ...] = (
    ("AP50 on held-out pictures", lambda point: point.ap50, lambda row: row.ap50),
    ("AP (IoU 0.50–0.95) on held-out pictures", lambda point: point.ap, lambda row: row.ap),
)
_COSTS: tuple[tuple[str, Callable[[Point], Spread], Callable[[Row], float]], ...] = (
    ("edits per picture of the batch", lambda point: point.edits_per_picture, lambda row: row.edits_per_picture),
    (
        "estimated seconds per picture",
        lambda point: point.seconds_per_picture,
        lambda row: row.seconds_per_picture,
    ),
)


def require() -> None:
    """Raise SimulationError where what draws is not installed: better before the hours than after them."""
    if importlib.util.find_spec("matplotlib") is None:
        hint = "Install it: pip install 'labelloop[train]'"
        raise SimulationError("Drawing learning curves needs matplotlib.", hint=hint)


def draw(rows: Sequence[Row], target: Path, *, title: str) -> tuple[Path, Path]:
    """Write `target`.png and `target`.svg; returns both. The same rows give the same SVG."""
    require()
    import matplotlib
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none",  # letters stay letters: a tenth of the size, and they can be searched
        "svg.hashsalt": "labelloop",
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.edgecolor": INK,
        "axes.grid": True,
        "grid.color": PALE,
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }
    with matplotlib.rc_context(style):
        figure = Figure(figsize=SIZE_INCHES)
        figure.subplots_adjust(**MARGINS)
        axes = figure.subplots(3, 3)
        curves = {name: points(rows, name) for name in strategies_of(rows)}
        full = [row for row in rows if row.strategy == FULL]
        for line, (label, measure, of_row) in enumerate(_MEASURES):
            for column, (x_label, x) in enumerate(_X):
                _curves(axes[line, column], curves, x, measure)
                _level(axes[line, column], [of_row(row) for row in full], name=ALL, style=":")
                axes[line, column].set_xlabel(x_label)
                if column:
                    axes[line, column].sharey(axes[line, 0])
            axes[line, 0].set_ylabel(label)
        for column, (label, cost, of_row) in enumerate(_COSTS):
            _curves(axes[2, column], curves, _X[0][1], cost)
            _level(axes[2, column], [of_row(row) for row in full], name=BY_HAND, style="-.")
            axes[2, column].set_xlabel(_X[0][0])
            axes[2, column].set_ylabel(label)
            axes[2, column].set_ylim(bottom=0)
        _legend(axes[2, 2], (axes[0, 0], axes[2, 0]), rows)
        figure.suptitle(title, fontsize=11, color=INK)
        png, svg = target.with_suffix(".png"), target.with_suffix(".svg")
        figure.savefig(png, dpi=PIXELS_PER_INCH)
        figure.savefig(svg, metadata={"Date": None})
    return png, svg


def _curves(
    axes: Axes, curves: dict[str, list[Point]], x: Callable[[Point], float], y: Callable[[Point], Spread]
) -> None:
    others = [name for name in curves if name != CONTROL]
    for name, curve in curves.items():
        number = 0 if name == CONTROL else others.index(name)
        colour = CONTROL_COLOUR if name == CONTROL else COLOURS[number % len(COLOURS)]
        marker = "x" if name == CONTROL else MARKERS[number % len(MARKERS)]
        places, values = [x(point) for point in curve], [y(point) for point in curve]
        low, high = zip(*((one.mean - one.deviation, one.mean + one.deviation) for one in values), strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(
            places,
            [one.mean for one in values],
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.6,
            linestyle="--" if name == CONTROL else "-",
            label=name,
        )
    axes.set_xlim(left=0)


def _level(axes: Axes, values: Sequence[float], *, name: str, style: str) -> None:
    """What training on everything gives, or costs, as a line across with its own band."""
    if not values:
        return
    mean, deviation, _ = spread(values)
    axes.axhspan(mean - deviation, mean + deviation, color=INK, alpha=0.08, linewidth=0)
    axes.axhline(mean, color=INK, linewidth=1.1, linestyle=style, label=name)


def _legend(place: Axes, examples: Sequence[Axes], rows: Sequence[Row]) -> None:
    """In a field of its own, so that it hides no curve, with what must be known to read the picture."""
    place.axis("off")
    named = {name: line for axes in examples for line, name in zip(*axes.get_legend_handles_labels(), strict=True)}
    size = max(row.pictures for row in rows)
    labels = [f"{name} {size} pictures" if name == ALL else name for name in named]
    place.legend(list(named.values()), labels, loc="upper left", fontsize=10)
    seeds = len({row.seed for row in rows})
    band = "band: ± 1 standard deviation" if seeds > 1 else "one seed: the spread is not known"
    text = f"mean of {seeds} seed{'s' * (seeds > 1)}\n{band}\n" + (
        "edit: a box moved, deleted or drawn\ntimes per action are assumptions\n(see docs/learning.md)"
    )
    place.text(0.03, 0.02, text, transform=place.transAxes, fontsize=9, color=INK, va="bottom", linespacing=1.5)

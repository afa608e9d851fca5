"""A forest plot: differences with their intervals, one below the other, against the line of 0."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from ..utils.drawing import draw_grid

# A label and, by series, (mean, low, high); NaN ends: a single pair, the mean alone is drawn.
ForestRow = tuple[str, dict[str, tuple[float, float, float]]]

_COLORS = ("#1f77ff", "#1b9e47")
_APART = 0.16  # between the series of a row, in rows


def forest_figure(rows: Sequence[ForestRow], unit: str) -> Figure:
    """
    Draw at least one row, the first on top.

    Args:
        unit: of the differences, for the axis.
    """
    figure = Figure(figsize=(7.2, 1.1 + 0.42 * len(rows)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.axvline(0, color="black", linewidth=1)
    series = list(dict.fromkeys(name for _, values in rows for name in values))
    for index, name in enumerate(series):
        shift = _APART * (2 * index - len(series) + 1)
        points = [
            (y + shift, *values[name]) for y, (_, values) in enumerate(rows) if name in values
        ]
        heights, means, lows, highs = zip(*points)
        axes.errorbar(
            means,
            heights,
            xerr=[
                [m - x if x == x else 0.0 for m, x in zip(means, lows)],
                [x - m if x == x else 0.0 for m, x in zip(means, highs)],
            ],
            fmt="os"[index % 2],
            color=_COLORS[index % 2],
            capsize=3,
            markersize=5,
            label=name,
        )
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel(unit)
    draw_grid(axes)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    if len(series) > 1:
        figure.legend(loc="outside lower left", ncols=len(series), frameon=False, fontsize=9)
    return figure

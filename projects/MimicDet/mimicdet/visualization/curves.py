"""Training curves, drawn from the metrics.json that Detectron2's JSONWriter writes."""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from ..utils.drawing import draw_grid
from ..utils.errors import UserError, read_text

logger = logging.getLogger(__name__)

# A scalar's name -> its iterations (rising) and values.
Metrics = Mapping[str, tuple[np.ndarray, np.ndarray]]

# One colour a part of the system; classification solid, localisation dashed.
_PART_COLORS = {
    "refine": "#7f7f7f",
    "student": "#1f77ff",
    "teacher": "#ff7f0e",
    "mimic": "#1b9e47",
}
_AP_COLORS = {"AP": "#1f77ff", "AP50": "#1b9e47", "AP75": "#944ddb"}
_COSINE_NAMES = {"mimic/cosine_cls": "classification", "mimic/cosine_loc": "localisation"}


@dataclass(frozen=True)
class Panel:
    """
    One set of axes: its title and its lines, each with x, rising, y and matplotlib's arguments, the
    label among them.
    """

    title: str
    lines: list[tuple[np.ndarray, np.ndarray, dict[str, Any]]]
    scale: str = "linear"
    limits: tuple[float | None, float | None] = (None, None)  # of y; None: the data's
    x_label: str = "iteration"


def read_metrics(
    metrics_json_path: str | PathLike[str],
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """
    Read Detectron2's metrics.json: one JSON object a line, each with its "iteration".

    A run that was resumed writes some iterations twice: the last value counts. A line that is no
    JSON object (the last one of a run that was killed) is left out with a warning.

    Returns:
        for each scalar, its iterations, rising, int64, and its values, float64.

    Raises:
        UserError: there is no such file, or it holds no record at all.
    """
    path = Path(metrics_json_path)
    values: dict[str, dict[int, float]] = {}
    for number, line in enumerate(read_text(path).splitlines(), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            iteration = int(record["iteration"])
        except (ValueError, TypeError, KeyError):
            logger.warning("%s, line %d is no record and is left out", path, number)
            continue
        for key, value in record.items():
            is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if key != "iteration" and is_number:
                values.setdefault(key, {})[iteration] = float(value)
    if not values:
        raise UserError(f"'{path}' holds no training records")
    metrics = {}
    for key, series in values.items():
        iterations = sorted(series)
        metrics[key] = (np.array(iterations), np.array([series[i] for i in iterations]))
    return metrics


def group_scalars(metrics: Metrics) -> list[Panel]:
    """Group scalars into panels by their names; panels without a scalar are left out."""
    names = sorted(metrics)
    parts = [k for part in _PART_COLORS for k in names if k.startswith(f"loss_{part}_")]
    others = [k for k in names if k.startswith("loss_") and k not in parts]
    losses = [k for k in names if k == "total_loss"] + parts + others
    precision = [k for k in names if re.search(r"(^|/)bbox/AP(50|75)?$", k)]
    counts = [k for k in names if "num_foreground" in k or "num_positives" in k]
    cosines = [k for k in _COSINE_NAMES if k in names]
    rates = [k for k in names if k == "lr"]

    def panel(title: str, keys: Sequence[str], *axis: Any) -> Panel:
        return Panel(title, [(*metrics[key], line_style(key)) for key in keys], *axis)

    panels = [
        panel("Losses", losses, "log"),
        panel("Average precision on held-out data", precision, "linear", (0, 100)),
        panel("Mimicking: mean cosine of student and teacher", cosines),
        panel("Learning rate", rates),
        # Zero is what such a plot must be able to show: no plain logarithm.
        panel("Boxes that train the parts", counts, "symlog", (0, None)),
    ]
    return [panel for panel in panels if panel.lines]


def line_style(key: str) -> dict[str, Any]:
    """Colour, dash and legend text of a scalar by its name, as matplotlib's arguments."""
    if key == "total_loss":
        return {"color": "black", "linewidth": 2.2, "label": "total"}
    match = re.fullmatch(r"loss_(\w+?)_(\w+)", key)
    if match:
        part, what = match.groups()
        style: dict[str, Any] = {"linestyle": "--" if what == "loc" else "-"}
        if part in _PART_COLORS:
            style["color"] = _PART_COLORS[part]
        return {**style, "label": f"{part} {what}"}
    if key in _COSINE_NAMES:
        return {"color": _PART_COLORS["mimic"], "label": _COSINE_NAMES[key]} | (
            {"linestyle": "--"} if key.endswith("_loc") else {}
        )
    match = re.fullmatch(r"(?:(.*)/)?bbox/(AP\d*)", key)
    if match:
        label = match[2] if match[1] is None else f"{match[1]}: {match[2]}"
        # Several data sets: matplotlib's own colour cycle keeps their lines apart.
        single = {"color": _AP_COLORS[match[2]]} if match[1] is None else {}
        return {**single, "label": label, "marker": "o", "markersize": 4}
    match = re.fullmatch(r"(\w+)/num_(foreground|positives_p(\d+))", key)
    if match and match[3]:
        # The coarser the level the paler; all show on white and on a dark page.
        color = to_hex(colormaps["Purples_r"](0.1 * (int(match[3]) % 8)))
        return {"color": color, "label": f"positives on P{match[3]}"}
    if match and match[1] in _PART_COLORS:
        return {"color": _PART_COLORS[match[1]], "label": f"{match[1]} foreground", "linewidth": 2}
    return {"label": key}


def draw_panel(axes: Axes, panel: Panel, last: float) -> None:
    """Draw the finite values, on a logarithmic axis the positive ones, of x from 0 to `last`."""
    scale = panel.scale
    if scale == "log" and not any((y > 0).any() for _, y, _ in panel.lines):
        scale = "linear"
    for x, y, style in panel.lines:
        shown = np.isfinite(y) & ((y > 0) | (scale != "log"))
        marker = "o" if len(x) == 1 else None
        axes.plot(x[shown], y[shown], **{"linewidth": 1.5, "marker": marker, **style})
    axes.set_xlabel(panel.x_label)
    axes.set_xlim(0, 1.02 * max(last, 1))
    axes.set_yscale(scale, **({"linthresh": 1.0} if scale == "symlog" else {}))
    if scale == "log":
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_ylim(*panel.limits)
    draw_grid(axes)


def build_figure(metrics: Metrics, title: str = "") -> Figure:
    """Draw a panel for each group of scalars in `metrics`; UserError where none is plotted."""
    panels = group_scalars(metrics)
    if not panels:
        raise UserError("no losses, AP, cosines, box counts or learning rates to plot")
    columns = min(len(panels), 2)
    # An odd number: the first panel, the losses as a rule, takes a whole row.
    wide = len(panels) % 2
    rows = (len(panels) + wide) // 2
    figure = Figure(figsize=(6.6 * columns, 3.9 * rows), dpi=110, layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    # The same time axis everywhere, so that panels can be compared.
    last = max(x[-1] for panel in panels for x, *_ in panel.lines)
    for index, panel in enumerate(panels):
        row, column = divmod(index + wide, 2)
        spans = wide and index == 0
        axes = figure.add_subplot(grid[0, :] if spans else grid[row, column])
        draw_panel(axes, panel, last)
        axes.set_title(panel.title, loc="left", fontsize=12, fontweight="bold")
        if len(panel.lines) > 4:
            # Beside the panel: there are too many lines to keep clear of.
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        elif len(panel.lines) > 1:
            axes.legend(fontsize=8, edgecolor="none", framealpha=0.85)
    if title:
        figure.suptitle(title, fontsize=14, fontweight="bold")
    return figure


def plot_curves(
    metrics_json_path: str | PathLike[str], output_png: str | PathLike[str], title: str = ""
) -> None:
    """
    Draw the curves of a training run: losses, AP, mimic cosines, box counts, learning rate, as far
    as OUTPUT_DIR/metrics.json holds them; see `read_metrics`. The picture's folder is made.

    Raises:
        UserError: there is no such file, or it holds no scalar that is plotted.
    """
    metrics = read_metrics(metrics_json_path)
    try:
        figure = build_figure(metrics, title)
    except UserError as error:
        raise UserError(f"'{metrics_json_path}': {error}") from error
    path = Path(output_png)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")

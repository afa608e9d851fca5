"""Latency against image size, drawn from the benchmark's JSON."""

import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...utils.drawing import draw_grid
from ...utils.errors import UserError
from .detectors import CASES
from .timing import Spread, summarize

# One colour a detector; each of detectors.FORMS has a line of its own.
_COLORS = {
    "mimicdet": "#1f77ff",
    "mimicdet-dense": "#944ddb",
    "retinanet": "#ff7f0e",
    "fcos": "#1b9e47",
    "faster-rcnn": "#d62728",
    "backbone": "#7f7f7f",
}
_LINES: dict[str, Any] = {
    "plain": "-",
    "optimized": "--",
    "onnx": ":",
    "bfloat16": "-.",
    "float16": (0, (5, 1, 1, 1, 1, 1)),
    "compiled": (0, (1, 3)),
    "channels-last": (0, (8, 3)),
}


def latency_curves(
    results: dict[str, Any],
) -> dict[tuple[str, int], dict[str, list[tuple[int, Spread]]]]:
    """
    Curves of inference at batch 1: for each (backbone, number of classes) and case the points
    (short side, Spread of milliseconds), from small to large images.

    Raises:
        UserError: there is no such measurement.
    """
    panels: dict[tuple[str, int], dict[str, dict[int, Spread]]] = {}
    for group in sorted(results["groups"], key=lambda group: group["settings"]["short_side"]):
        settings = group["settings"]
        if settings["mode"] != "eval" or settings["batch"] != 1:
            continue
        panel = panels.setdefault((settings["backbone"], settings["num_classes"]), {})
        for name, facts in group["cases"].items():
            if CASES[name].num_classes is None:  # class counts of their own belong to no panel
                spread = summarize([1e3 * s for s in facts["seconds"]])
                # The first of several groups.
                panel.setdefault(name, {}).setdefault(settings["short_side"], spread)
    if not panels:
        raise UserError("the results hold no inference at batch 1 to plot")
    return {
        key: {name: list(points.items()) for name, points in panel.items()}
        for key, panel in panels.items()
    }


def build_figure(results: dict[str, Any]) -> Figure:
    """A panel for each backbone and class count; bars from quartile to quartile."""
    panels = latency_curves(results)
    figure = Figure(figsize=(6.0 * len(panels) + 1.5, 4.4), dpi=110, layout="constrained")
    for index, ((backbone, classes), curves) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(1, len(panels), index)
        for name, points in curves.items():
            sides = [side for side, _ in points]
            medians = [spread.median for _, spread in points]
            below = [spread.median - spread.low for _, spread in points]
            above = [spread.high - spread.median for _, spread in points]
            axes.errorbar(
                sides,
                medians,
                yerr=(below, above),
                label=name,
                color=_COLORS.get(CASES[name].detector),
                linestyle=_LINES[CASES[name].form],
                marker="o",
                markersize=3.5,
                capsize=2,
            )
        axes.set_title(f"{backbone}, {classes} classes, batch 1, {results['device']}", fontsize=10)
        axes.set_xlabel("short side, pixels")
        axes.set_ylabel("ms an image, median")
        axes.set_ylim(bottom=0)
        draw_grid(axes)
        if index == len(panels):  # beside it: there are too many lines to keep clear of
            axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def plot_latency(results: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write the figure as PNG; UserError where there is nothing to plot."""
    figure = build_figure(results)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png")

"""The Markdown that is pasted into the documentation, and a picture, from the benchmark's JSON."""

import os
from collections.abc import Sequence
from dataclasses import astuple
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from ...utils.drawing import draw_grid
from ...utils.errors import UserError
from .detectors import CASES
from .timing import STAGES, Spread, median_ratio, summarize

# What a case is compared with: the columns of ratios.
REFERENCES = ("retinanet", "fcos", "faster-rcnn", "backbone")
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


def format_report(results: dict[str, Any]) -> str:
    """Where and how it was measured, a table for each group, and the stages."""
    parts = [_preface(results)]
    for group in results["groups"]:
        parts += [_heading(group["settings"]), _group_table(group)]
        if any("stages" in facts for facts in group["cases"].values()):
            parts.append(_stage_table(group))
    return "\n\n".join(parts) + "\n"


def _preface(results: dict[str, Any]) -> str:
    machine, versions = results["machine"], results["versions"]
    where = f"{machine['cpu']}, {machine['cores']} cores"
    if "gpu" in machine:
        where += f", {machine['gpu']}"
    names = ", ".join(f"{name} {value}" for name, value in versions.items() if value)
    if results.get("glibc_trimming_disabled"):
        names += "; glibc trimming disabled"
    commands = "\n".join(results["commands"])
    return (
        f"Measured on {results['date']}: {where}; {results['device']}, {results['threads']} "
        f"threads; {names}.\n\n```bash\n{commands}\n```\n\n"
        "Random weights, calibrated alike for every detector. Medians, quartiles in brackets; the "
        "cases of a table are interleaved round by round. Ratios are medians of the rounds' "
        "ratios. Boxes an image: those that pass the score threshold, and in brackets those that "
        "went through the final NMS and through the NMS of proposals. Parameters: all, and in "
        "brackets those that inference reads. GFLOPs: fvcore's count an image; a multiply with "
        "its add is one."
    )


def _heading(settings: dict[str, Any]) -> str:
    mode = "Inference" if settings["mode"] == "eval" else "Training step"
    height, width = settings["size"]
    return (
        f"## {mode}, {settings['backbone']}, {height} x {width}, {settings['num_classes']} "
        f"classes, batch {settings['batch']}"
    )


def _group_table(group: dict[str, Any]) -> str:
    cases = group["cases"]
    references = [name for name in REFERENCES if name in cases]
    has_memory = any("memory_mib" in facts for facts in cases.values())
    head = ["", "ms", "images/s", *[f"/ {name}" for name in references]]
    inference = group["settings"]["mode"] == "eval"
    head += ["boxes", "M parameters", "GFLOPs"] if inference else []
    head += ["peak MiB (before)"] if has_memory else []
    rows = []
    for name, facts in cases.items():
        spread = summarize(facts["seconds"])
        row = [name, "{:.1f} ({:.1f} to {:.1f})".format(*(1e3 * x for x in astuple(spread)))]
        row.append(f"{group['settings']['batch'] / spread.median:.2f}")
        for other in references:
            row.append(f"{median_ratio(facts['seconds'], cases[other]['seconds']):.2f}")
        if inference:
            boxes = [facts[f"{kind}_boxes"] for kind in ("passed", "nms", "proposal_nms")]
            row.append("{:.0f} ({:.0f}, {:.0f})".format(*boxes))
            row.append(f"{facts['parameters'] / 1e6:.1f} ({facts['parameters_eval'] / 1e6:.1f})")
            row.append(f"{facts['gflops']:.1f}")
        if has_memory:
            memory = facts.get("memory_mib")
            row.append(f"{memory['peak']:.0f} ({memory['baseline']:.0f})" if memory else "")
        rows.append(row)
    return format_table(head, rows)


def _stage_table(group: dict[str, Any]) -> str:
    """Milliseconds of each stage with its share; their sum beside the time without stage clocks."""
    head = ["ms (share)", *STAGES, "sum", "without clocks"]
    rows = []
    for name, facts in group["cases"].items():
        rounds = facts.get("stages")
        if not rounds:
            continue
        totals = [sum(seconds.values()) for seconds in rounds]
        row = [name]
        for stage in STAGES:
            seconds = [r[stage] for r in rounds]
            row.append(f"{1e3 * median(seconds):.1f} ({100 * median_ratio(seconds, totals):.1f} %)")
        row += [f"{1e3 * median(totals):.1f}", f"{1e3 * median(facts['seconds']):.1f}"]
        rows.append(row)
    return format_table(head, rows)


def format_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table: the first column left, the others right."""
    rules = ["---"] + ["---:"] * (len(head) - 1)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, rules, *rows])


def latency_curves(
    results: dict[str, Any],
) -> dict[tuple[str, int], dict[str, list[tuple[int, Spread]]]]:
    """
    Curves of inference at batch 1: for each (backbone, number of classes) and case the points
    (short side, Spread of milliseconds), from small to large images; UserError where none is.
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
            medians = [spread.median for _, spread in points]
            bars = [(x.median - x.low, x.high - x.median) for _, x in points]
            axes.errorbar(
                [side for side, _ in points],
                medians,
                yerr=list(zip(*bars)),
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

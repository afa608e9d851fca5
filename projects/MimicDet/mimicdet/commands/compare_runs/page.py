"""One self-contained HTML page of results: gains with intervals, AP over time, cosines."""

import html
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ...utils.errors import file_errors, make_folder
from ...visualization.curves import Panel, line_style
from ...visualization.forest import ForestRow, forest_figure
from ..report.page import chart, charts, line_chart, number, page, paragraph, table
from .plan import run_title
from .records import Results, RunRecord
from .statistics import Gain, head_gains, pair_gains
from .tables import dropped_text, gains_table, means_table

_GAINS_NOTE = (
    "Mean of the differences between two arms of the same seed, which begin with the same initial "
    "weights and see the images in the same order, and its 95 % interval (Student's t, differences "
    "taken to be normal). A gain is shown where the interval lies above 0. Of one pair there is no "
    "interval."
)


def write_page(results: Results, path: Path, title: str) -> None:
    """Write the page; its folder is made if it is missing."""
    sections = [
        ("gains", "Gains", _by_set(results, _gains) + paragraph(_GAINS_NOTE) + _dropped(results)),
        ("means", "Every row", _by_set(results, _means)),
        ("curves", "AP over time", _by_set(results, _ap_curves)),
        ("cosines", "Cosine of student and teacher in training", _by_set(results, _cosines)),
        ("runs", "Runs", _facts(results)),
    ]
    sections = [x for x in sections if x[2]]
    subtitle = f"{len(results.runs)} runs of {len(results.rows)} rows."
    make_folder(path.parent)
    with file_errors():
        path.write_text(page(title, subtitle, sections), encoding="utf-8")


def _by_set(results: Results, content: Callable[[Results, str], str]) -> str:
    parts = []
    for set_name in results.sets:
        text = content(results, set_name)
        title = f"<h3>{html.escape(set_name)}</h3>" if set_name and text else ""
        parts.append(title + text)
    return "".join(parts)


def _gains(results: Results, set_name: str) -> str:
    plots = [
        _forest(pair_gains(results, set_name), "Of a row over its baseline"),
        _forest(head_gains(results, set_name), "Of the S-head over the T-head of the same row"),
    ]
    header, rows = gains_table(results, set_name)
    wide = f'<div class="pictures">{"".join(plots)}</div>'
    return wide + table(header, rows) if rows else ""


def _forest(gains: Sequence[Gain], title: str) -> str:
    """Differences in AP and AP50; nothing where there are none."""
    rows: list[ForestRow] = []
    for gain in gains:
        found = {x: gain.differences[x] for x in ("AP", "AP50") if x in gain.differences}
        rows.append((gain.label, {x: (d.mean, d.low, d.high) for x, d in found.items()}))
    if not rows:
        return ""
    told = [f"{label} {number(means['AP'][0])}" for label, means in rows if "AP" in means]
    return chart(forest_figure(rows, "points, mean and 95 % interval"), title, "; ".join(told))


def _dropped(results: Results) -> str:
    return "".join(paragraph(dropped_text(x)) for x in results.dropped)


def _means(results: Results, set_name: str) -> str:
    return table(*means_table(results, set_name))


def _ap_curves(results: Results, set_name: str) -> str:
    """A chart of the common seeds for each pair, or one of all rows where there is no pair."""
    groups = [(f"{x.row} and {x.baseline}", [x.baseline, x.row]) for x in results.pairs]
    figures = []
    for title, names in groups or [("all rows", results.rows)]:
        rows = {name: results.of(set_name, name) for name in names}
        if groups:
            common = set.intersection(*({run.seed for run in runs} for runs in rows.values()))
            rows = {name: [x for x in runs if x.seed in common] for name, runs in rows.items()}
        lines = []
        for index, (name, runs) in enumerate(rows.items()):
            curve = mean_curve(runs, "AP")
            if curve is not None:
                lines.append((*curve, {"label": name, "color": f"C{index}"}))
        if lines:
            figures.append(line_chart(Panel(f"AP, {title}", lines)))
    return charts(figures) if figures else ""


def _cosines(results: Results, set_name: str) -> str:
    """A chart for each row that has any."""
    figures = []
    for row in results.rows:
        runs = results.of(set_name, row)
        keys = sorted({key for run in runs for key in run.curves if key != "AP"})
        lines = [
            (*curve, line_style(key))
            for key in keys
            if (curve := mean_curve(runs, key)) is not None
        ]
        if lines:
            figures.append(line_chart(Panel(row, lines, limits=(None, 1.0))))
    return charts(figures) if figures else ""


def mean_curve(runs: Sequence[RunRecord], key: str) -> tuple[np.ndarray, np.ndarray] | None:
    """(iterations, mean values) of a scalar, where all runs that have it have a value."""
    curves = [dict(zip(*run.curves[key])) for run in runs if key in run.curves]
    common = sorted(set.intersection(*map(set, curves))) if curves else []
    if not common:
        return None
    return np.array(common), np.array([np.mean([x[i] for x in curves]) for i in common])


def _facts(results: Results) -> str:
    header = [
        "Run",
        "AP",
        "AP of T-head",
        "Iterations",
        "Minutes",
        "Commit",
        "Config and overrides",
    ]
    rows = []
    for run in results.runs:
        teacher = (run.teacher or {}).get("AP")
        minutes = None if run.seconds is None else run.seconds / 60
        commit = "-" if run.commit is None else run.commit[:9] + "+" * run.commit.endswith("+")
        numbers = [number(run.metrics.get("AP")), number(teacher), str(run.iterations)]
        settings = " ".join((run.config, *run.opts))
        rows.append([run_title(run.key), *numbers, number(minutes), commit, settings])
    total = sum(run.seconds or 0 for run in results.runs) / 3600
    return (
        f"<details><summary>{len(rows)} runs, {total:.1f} hours of them</summary>"
        + table(header, rows, "facts")
        + "</details>"
    )

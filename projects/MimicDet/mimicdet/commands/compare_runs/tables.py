"""Markdown tables of results, and the pages that hold them between markers."""

import math
import re
from collections.abc import Sequence
from pathlib import Path

from ...utils.errors import UserError, file_errors, read_text
from ...utils.files import new_path
from .findings import read_findings
from .records import Dropped, Results, merge, read_results
from .statistics import (
    HEADS,
    Difference,
    head_gains,
    head_values,
    metric_names,
    pair_gains,
    paired_difference,
    values_by_seed,
)

Table = tuple[list[str], list[list[str]]]  # header, rows

PARTS = ("means", "gains", "summary")
_FINDINGS = "findings"
_MARKED = re.compile(
    r"(?P<begin><!-- runs(?P<part> \w+)?: (?P<files>[^\n>]+?) -->\n)(?P<text>.*?)"
    r"(?P<end><!-- /runs -->)",
    re.DOTALL,
)
_BEGIN = "<!-- runs"


def means_table(results: Results, set_name: str) -> Table:
    """
    A row for each row and head on the set: AP of each seed, mean, and spread (the largest minus
    the smallest), then means of the other metrics; "-" where there is none yet.
    """
    runs = [run for run in results.runs if run.set == set_name]
    others = [x for x in dict.fromkeys(x for run in runs for x in run.metrics) if x != "AP"]
    header = ["Config", "Seeds", "AP by seed", "Mean AP", "Spread", *others]
    rows = []
    for name in results.rows:
        own = results.of(set_name, name)
        second = any(run.teacher for run in own)
        for head in HEADS if second else HEADS[:1]:
            values = [head_values(run, head) or {} for run in own]
            by_seed = values_by_seed(results, set_name, name, head, "AP")
            seeds, ap = list(by_seed), list(by_seed.values())
            label = f"{name}, {head}" if second else name
            row = [label, ", ".join(map(str, seeds)), ", ".join(f"{x:.1f}" for x in ap)]
            row += [_mean(ap), f"{max(ap) - min(ap):.1f}" if ap else ""]
            row += [_mean([x[key] for x in values if x.get(key) is not None]) for key in others]
            rows.append([cell or "-" for cell in row])
    return header, rows


def _mean(values: Sequence[float]) -> str:
    return f"{math.fsum(values) / len(values):.1f}" if values else ""


def gains_table(results: Results, set_name: str) -> Table:
    """
    What each pair gains on the set, then each row's S-head over its T-head, as mean [ends of the
    95 % interval] over paired seeds.
    """
    metrics = metric_names([run for run in results.runs if run.set == set_name])
    rows = []
    for gain in (*pair_gains(results, set_name), *head_gains(results, set_name)):
        cells = [difference_text(gain.differences.get(metric)) for metric in metrics]
        rows.append([gain.label, str(len(gain.seeds)), *cells])
    return ["Difference", "Pairs", *metrics], rows


def summary_table(results: Results) -> Table:
    """
    A row for each row and set: number of seeds, mean AP of its heads, and the difference in AP of
    its first head to the baseline of its first pair.
    """
    baselines = {pair.row: pair.baseline for pair in reversed(results.pairs)}
    table = []
    for set_name in results.sets:
        for name in results.rows:
            s_head, t_head = (values_by_seed(results, set_name, name, x, "AP") for x in HEADS)
            if not s_head:
                continue
            baseline = baselines.get(name, "")
            others = values_by_seed(results, set_name, baseline, HEADS[0], "AP")
            difference = paired_difference(s_head, others)
            means = [_mean(list(x.values())) for x in (s_head, t_head)]
            gain = f"{difference_text(difference)} to {baseline}" if difference else ""
            table.append([set_name, name, str(len(s_head)), *means, gain])
    header = ["Data", "Row", "Seeds", "AP", "AP, T-head", "Difference [95 % interval]"]
    kept = [i for i in range(len(header)) if any(row[i] for row in table)]
    return [header[i] for i in kept], [[row[i] or "-" for i in kept] for row in table]


def findings_table(paths: Sequence[Path]) -> Table:
    """A row for each difference that the files list, see `read_findings`."""
    rows = [
        [
            *(x.text, x.set, str(x.difference.count), f"{x.baseline_ap:.1f}", f"{x.ap:.1f}"),
            difference_text(x.difference),
        ]
        for path in paths
        for x in read_findings(path)
    ]
    return ["What", "Data", "Pairs", "Baseline AP", "AP", "Difference [95 % interval]"], rows


def difference_text(difference: Difference | None) -> str:
    """Such as "+1.2 [+0.3, +2.1]"; without interval for one pair, "-" for none."""
    if difference is None:
        return "-"
    mean, low, high = (f"{x:+.1f}" for x in (difference.mean, difference.low, difference.high))
    return mean if math.isnan(difference.low) else f"{mean} [{low}, {high}]"


def dropped_text(dropped: Dropped) -> str:
    """One sentence."""
    on_set = f" on {dropped.set}" if dropped.set else ""
    return (
        f"{dropped.row}{on_set} was dropped after {dropped.seeds} seeds: the 95 % interval of its "
        f"AP over {dropped.baseline} ended at {dropped.high:+.1f}."
    )


def markdown(results: Results, part: str = "") -> str:
    """
    The tables of all sets.

    Args:
        part: "means", "gains" or "summary"; "": the first two.
    """
    if part == "summary":
        tables = [("", summary_table(results))]
    else:
        makers = {"means": means_table, "gains": gains_table}
        parts = [part] if part else list(makers)
        tables = [(x, makers[name](results, x)) for x in results.sets for name in parts]
    blocks = []
    for set_name, (header, rows) in tables:
        if rows:
            title = f"**{set_name}**\n\n" if set_name else ""
            blocks.append(title + _lines(header, rows))
    blocks += [f"{dropped_text(x)}\n" for x in results.dropped]
    return "\n".join(blocks)


def _lines(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join("| " + " | ".join(x) + " |\n" for x in lines)


def updated_page(path: Path) -> tuple[str, str]:
    """
    (text of a Markdown page, the same with its tables made anew). Tables stand between the lines
    `<!-- runs: FILE ... -->` and `<!-- /runs -->`; `runs means:` (gains, summary) asks for a part.
    FILE, without blanks, is a runs.json, from the page's folder; several are merged. `runs
    findings:` takes lists of differences instead, see `read_findings`.

    Raises:
        UserError: no marker, one that is not understood, or a FILE that cannot be read.
    """
    text = read_text(path)
    count = text.count(_BEGIN)
    if not count or len(_MARKED.findall(text)) != count:
        raise UserError(
            f"{path}: tables stand between <!-- runs: FILE ... --> and <!-- /runs -->, each on a "
            f"line; {len(_MARKED.findall(text))} of {count} are understood"
        )

    def make(match: re.Match) -> str:
        part = (match["part"] or "").strip()
        if part and part not in (*PARTS, _FINDINGS):
            known = ", ".join((*PARTS, _FINDINGS))
            raise UserError(f"{path}: 'runs {part}:' must be one of {known}")
        files = [path.parent / name for name in match["files"].split()]
        if part == _FINDINGS:
            table = _lines(*findings_table(files))
        else:
            table = markdown(merge([(str(file), read_results(file)) for file in files]), part)
        return f"{match['begin']}\n{table}\n{match['end']}"

    return text, _MARKED.sub(make, text)


def update_page(path: Path) -> bool:
    """Write `updated_page` where it differs; returns whether it did."""
    text, new_text = updated_page(path)
    if text != new_text:
        with file_errors(), new_path(path) as new:
            new.write_text(new_text, encoding="utf-8")
    return text != new_text

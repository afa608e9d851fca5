"""What the runs of several comparisons show: a file that lists differences by name."""

from dataclasses import dataclass
from pathlib import Path

from ...utils.errors import UserError
from .entries import as_list, as_mapping, as_text, read_yaml
from .records import Results, read_results
from .statistics import HEADS, Difference, paired_difference, values_by_seed

_REQUIRED = ("text", "runs", "set", "row")


@dataclass(frozen=True)
class Finding:
    """A difference in AP over the seeds that both sides have."""

    text: str
    set: str
    ap: float  # means over these seeds
    baseline_ap: float
    difference: Difference


def read_findings(path: Path) -> list[Finding]:
    """
    Read a list of {text, runs, set, row, baseline} and the runs that it names: what is compared, in
    words; a runs.json, from the file's folder; a set and two rows of it. Without a baseline the
    row's S-head is compared with its T-head.

    Raises:
        UserError: names the file and the entry that is missing, unknown, of a wrong type, or has no
            common seed.
    """
    listed = read_yaml(path)
    try:
        files: dict[str, Results] = {}
        found = []
        for index, value in enumerate(as_list("the findings", listed)):
            key = f"[{index}]"
            entry = as_mapping(key, value, _REQUIRED, (*_REQUIRED, "baseline"))
            texts = {name: as_text(f"{key}.{name}", x) for name, x in entry.items()}
            if texts["runs"] not in files:
                files[texts["runs"]] = read_results(path.parent / texts["runs"])
            found.append(_finding(key, files[texts["runs"]], texts))
        return found
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _finding(key: str, results: Results, entry: dict[str, str]) -> Finding:
    set_name, row = entry["set"], entry["row"]
    baseline, head = (entry["baseline"], HEADS[0]) if "baseline" in entry else (row, HEADS[1])
    values = values_by_seed(results, set_name, row, HEADS[0], "AP")
    others = values_by_seed(results, set_name, baseline, head, "AP")
    difference = paired_difference(values, others)
    if difference is None:
        raise UserError(
            f"{key}: {entry['runs']} has no pair of {row} and {baseline}, {head}, on {set_name}"
        )
    common = values.keys() & others.keys()
    means = (sum(x[seed] for seed in common) / len(common) for x in (values, others))
    return Finding(entry["text"], set_name, *means, difference)

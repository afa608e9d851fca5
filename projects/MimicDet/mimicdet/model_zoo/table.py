"""The published models as MODEL_ZOO.md shows them, written from the registry."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..utils.errors import file_errors

BEGIN = "<!-- Written by tools/publish.py from the registry. -->"
END = "<!-- End of what tools/publish.py writes. -->"
_COLUMNS = ("Model", "AP, S-head", "AP, T-head", "ONNX", "INT8", "AP50", "Minutes", "Data")


def format_models(registry: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of all models, and of each its AP by class and the command that trained it."""
    if not registry:
        return "No model is published."
    lines = ["| " + " | ".join(_COLUMNS) + " |", "|---" * len(_COLUMNS) + "|"]
    notes = []
    for name, entry in sorted(registry.items()):
        metrics = {part: values["AP"] for part, values in entry["metrics"].items()}
        student = entry["metrics"]["student"]
        parts = ("student", "teacher", "onnx", "onnx_int8")
        cells = [f"[{name}](configs/{entry['config']})"]
        cells += [f"{metrics[part]:.1f}" if part in metrics else "" for part in parts]
        cells += [f"{student['AP50']:.1f}", f"{entry['minutes']:.0f}"]
        lines.append("| " + " | ".join([*cells, f"{entry['data']}; {entry['licence']}"]) + " |")
        by_class = [
            f"{key.removeprefix('AP-')} {value:.1f}"
            for key, value in student.items()
            if key.startswith("AP-")
        ]
        command = f"`{entry['weights']}` of `{entry['command']}`, iteration {entry['iterations']}"
        facts = f"{command}, seed {entry['seed']}, on {entry['machine']}"
        notes.append(f"- {name}: AP by class: {', '.join(by_class)}. {facts}.")
    return "\n".join([*lines, "", *notes])


def write_models(page: Path, registry: Mapping[str, Mapping[str, Any]]) -> None:
    """Put the table between its two marks in a page."""
    with file_errors():
        before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        text = f"{before}{BEGIN}\n\n{format_models(registry)}\n\n{END}{after}"
        page.write_text(text, encoding="utf-8")

"""The benchmark's JSON: what it holds, and reading, writing and joining it."""

import datetime
import json
import os
import platform
import re
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import detectron2
import torch
import torchvision

from ...utils.allocator import disable_glibc_trimming
from ...utils.errors import UserError, read_json
from ...utils.files import new_path


@dataclass(frozen=True)
class Conditions:
    """Under which everything in one file of results was measured; its keys in the JSON."""

    device: str  # "cpu" or "cuda"
    threads: int  # of the CPU
    glibc_trimming_disabled: bool = False  # see allocator.disable_glibc_trimming

    def apply(self) -> None:
        """Change this process. Raises UserError where glibc is not to be told."""
        torch.set_num_threads(self.threads)
        if self.glibc_trimming_disabled and not disable_glibc_trimming():
            raise UserError(
                "--disable-glibc-trimming needs glibc, and no variable of the environment that "
                "sets its allocator (MALLOC_..., GLIBC_TUNABLES, LD_PRELOAD)"
            )


# What must agree for measurements to stand in one file.
_SAME = ("machine", "versions", *[field.name for field in fields(Conditions)])


def _cpu_model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        match = re.search(r"^model name\s*:\s*(.+)$", cpuinfo.read_text(), re.MULTILINE)
        if match:
            return match[1].strip()
    return platform.processor() or platform.machine()


def new_results(conditions: Conditions, command: str) -> dict[str, Any]:
    """Results without measurements; nothing in them names the host."""
    machine: dict[str, Any] = {"cpu": _cpu_model(), "cores": os.cpu_count()}
    if conditions.device.startswith("cuda"):
        machine["gpu"] = torch.cuda.get_device_name()
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "detectron2": detectron2.__version__,
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
    }
    return {
        "machine": machine,
        "versions": versions,
        **asdict(conditions),
        "date": datetime.date.today().isoformat(),
        "commands": [command],
        "groups": [],
    }


def read_results(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The content of a file of write_results; UserError for one that is missing or another's."""
    results = read_json(Path(path))
    if not isinstance(results, dict) or not {"groups", "machine"} <= results.keys():
        raise UserError(f"{path} holds no results of the benchmark")
    return results


def write_results(results: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a whole file or none: what an earlier call wrote survives a kill."""
    with new_path(path) as new:
        new.write_text(json.dumps(results, indent=1) + "\n")


def continue_results(old: dict[str, Any], new: dict[str, Any], path: str) -> dict[str, Any]:
    """The old measurements, to add new ones to; UserError where the two cannot stand together."""
    for key in _SAME:
        before = old.get(key, False)  # a file of before there was the key
        if before != new[key]:
            raise UserError(
                f"--resume: {path} was measured with {key} {before}, this run has {new[key]}"
            )
    commands = [c for c in old["commands"] if c not in new["commands"]] + new["commands"]
    return {**old, "date": new["date"], "commands": commands}

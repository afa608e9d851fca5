"""Peak memory of a case, measured in a process of its own."""

import re
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from ...utils.errors import UserError
from .detectors import CASES, ModelSettings, build_detector
from .results import Conditions
from .workloads import make_inputs, make_workload

_RUNS = 2  # the second one finds the optimizer's momentum, or a warm allocator


@dataclass(frozen=True)
class MemoryTask:
    """What a child process has to run."""

    case: str  # a name of CASES
    mode: str  # "eval" or "train"
    model: ModelSettings
    size: tuple[int, int]  # (height, width)
    batch: int
    conditions: Conditions


@dataclass(frozen=True)
class Memory:
    """
    MiB. On a CPU the resident set: before the first run (libraries and weights) and its high-water
    mark. On CUDA what PyTorch's allocator gave out.
    """

    baseline: float
    peak: float


def measure_memory(task: MemoryTask, weights: dict[str, Tensor]) -> Memory:
    """
    Run a case in a fresh process and read its high-water mark; weights: the detector's state_dict.

    Raises:
        UserError: the process died (most likely for want of memory), or the system has no
            /proc, where Linux keeps the mark.
    """
    if task.model.device == "cpu" and not Path("/proc/self/status").exists():
        raise UserError("peak memory of a CPU needs Linux's /proc/self/status")
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        TemporaryDirectory() as folder,
    ):
        state_file = Path(folder) / "state.pth"
        torch.save(weights, state_file)
        try:
            return pool.submit(_run_task, task, state_file).result()
        except BrokenProcessPool as error:
            raise UserError(f"the process that measures the memory of {task.case} died") from error


def _run_task(task: MemoryTask, state_file: Path) -> Memory:
    """The child's side of measure_memory: changes the process that it runs in."""
    task.conditions.apply()
    case = CASES[task.case]
    model = build_detector(case.detector, task.model)
    model.load_state_dict(torch.load(state_file, weights_only=True))
    model = case.prepare(model)
    work = make_workload(
        task.mode, model, make_inputs(task.size, task.batch, task.model.num_classes)
    )
    del model
    on_cuda = task.model.device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        baseline = torch.cuda.memory_allocated() / 2**20
    else:
        # Forget what building the model needed. getrusage's ru_maxrss would not do: it begins with
        # the parent's high-water mark.
        Path("/proc/self/clear_refs").write_text("5")
        baseline = _resident("VmRSS")
    for _ in range(_RUNS):
        work()
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else _resident("VmHWM")
    return Memory(baseline, peak)


def _resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024

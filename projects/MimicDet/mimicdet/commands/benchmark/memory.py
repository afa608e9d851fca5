"""Peak memory of a case, measured in a process of its own."""

import re
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import torch

from ...utils.errors import UserError
from .conditions import Conditions
from .detectors import CASES, ModelSettings, build_detector
from .inputs import make_inputs
from .workloads import make_workload

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
    state_file: str  # state_dict of the calibrated detector


@dataclass(frozen=True)
class Memory:
    """
    MiB. On a CPU the resident set: before the first run (libraries and weights) and its high-water
    mark. On CUDA what PyTorch's allocator gave out.
    """

    baseline: float
    peak: float


def measure_memory(task: MemoryTask) -> Memory:
    """
    Run a case in a fresh process and read its high-water mark.

    Raises:
        UserError: the process died (most likely for want of memory), or the system has no
            /proc, where Linux keeps the mark.
    """
    if task.model.device == "cpu" and not Path("/proc/self/status").exists():
        raise UserError("peak memory of a CPU needs Linux's /proc/self/status")
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(run_task, task).result()
        except BrokenProcessPool as error:
            raise UserError(f"the process that measures the memory of {task.case} died") from error


def run_task(task: MemoryTask) -> Memory:
    """The child's side of measure_memory: changes the process that it runs in."""
    task.conditions.apply()
    case = CASES[task.case]
    model = build_detector(case.detector, task.model)
    model.load_state_dict(torch.load(task.state_file, weights_only=True))
    model = case.prepare(model)
    work = make_workload(
        task.mode, model, make_inputs(task.size, task.batch, task.model.num_classes)
    )
    del model
    if task.model.device.startswith("cuda"):
        return _on_cuda(work)
    # Forget what building the model needed. getrusage's ru_maxrss would not do: it begins with
    # the parent's high-water mark.
    Path("/proc/self/clear_refs").write_text("5")
    baseline = _resident("VmRSS")
    for _ in range(_RUNS):
        work()
    return Memory(baseline, _resident("VmHWM"))


def _on_cuda(work) -> Memory:
    torch.cuda.reset_peak_memory_stats()
    baseline = torch.cuda.memory_allocated()
    for _ in range(_RUNS):
        work()
    return Memory(baseline / 2**20, torch.cuda.max_memory_allocated() / 2**20)


def _resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024

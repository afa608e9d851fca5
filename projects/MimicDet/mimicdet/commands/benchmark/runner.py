"""Runs the benchmark group by group. A group: everything that is compared with each other."""

import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ...modeling.meta_arch.mimicdet import MimicDet
from ...utils.errors import UserError
from .calibration import calibrate, count_flops, observe
from .detectors import CASES, DETECTORS, FORMS, Case, ModelSettings, build_detector
from .results import Conditions
from .timing import StageClock, interleave
from .workloads import image_size, make_inputs, make_workload

_MEMORY_RUNS = 2  # the second one finds the optimizer's momentum, or a warm allocator


@dataclass(frozen=True)
class Group:
    """Settings that all cases of a group share; they are the group's name in the JSON."""

    mode: str  # "eval" or "train"
    backbone: str
    num_classes: int
    short_side: int
    batch: int
    cases: tuple[str, ...]
    repeats: int
    warmup: int
    nms_boxes: int  # requested, an image
    memory: bool
    stages: bool

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the images."""
        return image_size(self.short_side)

    @property
    def weight(self) -> int:
        """How long it takes next to other groups, roughly."""
        height, width = self.size
        work = 3 if self.mode == "train" else 1
        return height * width * (self.batch * work * self.repeats + 20) * len(self.cases)

    def model_settings(self, conditions: Conditions) -> ModelSettings:
        """Of the models of cases without a class count of their own."""
        return ModelSettings(self.backbone, self.num_classes, conditions.device)

    def settings(self) -> dict[str, Any]:
        """As it stands in the JSON."""
        return {**asdict(self), "cases": list(self.cases), "size": list(self.size)}


def make_groups(
    modes: Sequence[str],
    backbones: Sequence[str],
    class_counts: Sequence[int],
    short_sides: Sequence[int],
    batches: Mapping[str, Sequence[int]],
    cases: Sequence[str],
    **common: Any,
) -> list[Group]:
    """
    All combinations; in training without the cases that are prepared for inference. `batches` are
    images at once, by mode; `common` are the other fields of Group.
    """
    groups = []
    for mode, backbone, classes, side in itertools.product(
        modes, backbones, class_counts, short_sides
    ):
        chosen = tuple(c for c in cases if mode == "eval" or CASES[c].trains)
        for batch in batches[mode] if chosen else ():
            groups.append(Group(mode, backbone, classes, side, batch, chosen, **common))
    return groups


def run_groups(
    groups: list[Group],
    conditions: Conditions,
    results: dict[str, Any],
    save: Callable[[dict[str, Any]], None],
    say: Callable[[str], None],
) -> None:
    """Measure the groups that the results lack; `save` is called after each, `say` gets a line."""
    measured = [group["settings"] for group in results["groups"]]
    todo = [group for group in groups if group.settings() not in measured]
    if len(todo) < len(groups):
        say(f"{len(groups) - len(todo)} of {len(groups)} groups are there already")
    start, done = time.monotonic(), 0
    for number, group in enumerate(todo, start=1):
        height, width = group.size
        say(
            f"[{number}/{len(todo)}] {group.mode}, {group.backbone}, {height} x {width}, "
            f"{group.num_classes} classes, batch {group.batch}: {len(group.cases)} cases"
        )
        results["groups"].append(run_group(group, conditions))
        save(results)
        done += group.weight
        elapsed = time.monotonic() - start
        left = elapsed / done * (sum(g.weight for g in todo) - done)
        say(f"  {elapsed / 60:.1f} min so far, about {left / 60:.1f} min to go")


def run_group(group: Group, conditions: Conditions) -> dict[str, Any]:
    """Build, calibrate, observe and time the cases of one group; the process is prepared."""
    settings = group.model_settings(conditions)
    inputs = make_inputs(group.size, group.batch, group.num_classes)
    detectors = dict(_calibrated_detectors(group, settings, inputs))
    models = {name: CASES[name].prepare(model) for name, model in detectors.items()}
    facts = {
        name: _facts(CASES[name], model, detectors[name], inputs) for name, model in models.items()
    }
    for name in group.cases if group.memory else ():
        if CASES[name].form != "onnx":  # its process would show what the export needed
            weights = detectors[name].state_dict()
            facts[name]["memory_mib"] = measure_memory(group, name, conditions, weights)
    on_cuda = conditions.device.startswith("cuda")
    synchronize = torch.cuda.synchronize if on_cuda else lambda: None
    work = {name: make_workload(group.mode, model, inputs) for name, model in models.items()}
    clocks = {}
    if group.stages and group.mode == "eval":
        watched = [c for c in group.cases if isinstance(models[c], MimicDet)]
        clocks = {name: StageClock(models[name], synchronize) for name in watched}
        work.update({f"{c}, stages": partial(clock.measure, inputs) for c, clock in clocks.items()})
    seconds = interleave(work, group.repeats, group.warmup, synchronize)
    for name in group.cases:
        facts[name]["seconds"] = seconds[name]
        if name in clocks:
            facts[name]["stages"] = clocks[name].rounds[group.warmup :]
    return {"settings": group.settings(), "cases": facts}


def _calibrated_detectors(
    group: Group, settings: ModelSettings, inputs: list[dict[str, Any]]
) -> Iterator[tuple[str, nn.Module]]:
    """One model for all cases that share it, by name of case."""
    built: dict[tuple[str, ModelSettings], nn.Module] = {}
    for name in group.cases:
        key = CASES[name].detector, CASES[name].settings(settings)
        if key not in built:
            built[key] = build_detector(*key)
            calibrate(DETECTORS[key[0]], built[key], inputs, group.nms_boxes)
        yield name, built[key]


def _facts(
    case: Case, model: nn.Module, detector: nn.Module, inputs: list[dict[str, Any]]
) -> dict[str, Any]:
    """What one forward pass in evaluation does, an image, and what the model holds."""
    # These cannot be looked into: what they were made from is.
    if case.form == "onnx":
        model = detector
    elif case.form == "compiled":
        model = FORMS["optimized"](detector)
    seen = observe(model, inputs, DETECTORS[case.detector].score_thresh(detector))
    return {
        "passed_boxes": seen.passed_boxes / len(inputs),
        "nms_boxes": seen.nms_boxes / len(inputs),
        "proposal_nms_boxes": seen.proposal_nms_boxes / len(inputs),
        "parameters": sum(p.numel() for p in model.parameters()),
        "parameters_eval": seen.num_parameters_read,
        "gflops": count_flops(model, inputs[:1]),
    }


def measure_memory(
    group: Group, case: str, conditions: Conditions, weights: dict[str, Tensor]
) -> dict[str, float]:
    """
    Run a case of a group with the detector's state_dict in a fresh process.

    Returns:
        MiB, "baseline" and "peak". On a CPU the resident set: before the first run (libraries and
        weights) and its high-water mark. On CUDA what PyTorch's allocator gave out.

    Raises:
        UserError: the process died (most likely for want of memory), or the system has no
            /proc, where Linux keeps the mark.
    """
    if conditions.device == "cpu" and not Path("/proc/self/status").exists():
        raise UserError("peak memory of a CPU needs Linux's /proc/self/status")
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        TemporaryDirectory() as folder,
    ):
        state_file = Path(folder) / "state.pth"
        torch.save(weights, state_file)
        try:
            return pool.submit(_use_memory, group, case, conditions, state_file).result()
        except BrokenProcessPool as error:
            raise UserError(f"the process that measures the memory of {case} died") from error


def _use_memory(
    group: Group, case: str, conditions: Conditions, state_file: Path
) -> dict[str, float]:
    """The child's side of measure_memory: changes the process that it runs in."""
    conditions.apply()
    settings = CASES[case].settings(group.model_settings(conditions))
    model = build_detector(CASES[case].detector, settings)
    model.load_state_dict(torch.load(state_file, weights_only=True))
    model = CASES[case].prepare(model)
    inputs = make_inputs(group.size, group.batch, settings.num_classes)
    work = make_workload(group.mode, model, inputs)
    del model
    on_cuda = conditions.device.startswith("cuda")
    if on_cuda:
        torch.cuda.reset_peak_memory_stats()
        baseline = torch.cuda.memory_allocated() / 2**20
    else:
        # Forget what building the model needed. getrusage's ru_maxrss would not do: it begins with
        # the parent's high-water mark.
        Path("/proc/self/clear_refs").write_text("5")
        baseline = _resident("VmRSS")
    for _ in range(_MEMORY_RUNS):
        work()
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_cuda else _resident("VmHWM")
    return {"baseline": baseline, "peak": peak}


def _resident(field: str) -> float:
    """VmRSS or VmHWM of this process, in MiB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) / 1024

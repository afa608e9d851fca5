"""What a distilled step costs beside the student's own step and the teacher's forward."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from detectron2.utils.events import EventStorage

from .distiller import Distiller


@dataclass(frozen=True)
class StepCost:
    """Medians in seconds of one batch, forward and backward, without the optimizer."""

    student: float  # the student's own losses
    teachers: float  # forward of all teachers, as far as the methods read it
    distilled: float  # both, and the methods

    @property
    def overhead(self) -> float:
        """What the methods add, as a share of student and teachers together."""
        return self.distilled / (self.student + self.teachers) - 1


def measure_step_cost(
    distiller: Distiller,
    batched_inputs: list[dict[str, Any]],
    repeats: int = 10,
    clock: Callable[[], float] = time.perf_counter,
) -> StepCost:
    """
    Time the three in turns, so that what else the machine does falls on all of them alike. The
    distiller is in training mode and has terms with a teacher from outside; its gradients are
    overwritten. clock: time.process_time counts a busy CPU's work for this process alone.
    """
    needs: dict[Any, set[str]] = {teacher: set() for teacher in distiller.teachers}
    for term in distiller.terms:
        if term.teacher is not None:
            needs[term.teacher] |= term.method.needs_teacher
    device = distiller.student.device
    with EventStorage():
        _, tensors = distiller.adapter.forward_training(batched_inputs)
        positives = tensors.positives if "positives" in distiller.adapter.student_offers else None

        def student() -> None:
            sum(distiller.student(batched_inputs).values()).backward()

        def teachers() -> None:
            for teacher, names in needs.items():
                seen = teacher(batched_inputs)
                for name in sorted(names):
                    value = getattr(seen, name)
                    if callable(value):
                        value(positives)

        def distilled() -> None:
            sum(distiller(batched_inputs).values()).backward()

        steps = student, teachers, distilled
        times: list[list[float]] = [[], [], []]
        for repeat in range(repeats + 1):
            for step, found in zip(steps, times):
                distiller.zero_grad()
                seconds = _timed(step, device, clock)
                if repeat:  # the first round warms up
                    found.append(seconds)
    return StepCost(*map(median, times))


def _timed(step: Callable[[], None], device: torch.device, clock: Callable[[], float]) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start

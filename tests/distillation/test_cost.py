"""The measurement of a distilled step: what it counts, not how long it takes."""

import pytest

from mimicdet import build_distiller
from mimicdet.distillation.cost import StepCost, measure_step_cost
from tests.distillation.tiny_detectors import INPUTS, build_tiny, taught_cfg, write_teacher
from tests.helpers import count_calls


def test_overhead_is_what_the_methods_add():
    assert StepCost(student=2.0, teachers=1.0, distilled=3.3).overhead == pytest.approx(0.1)


def test_every_part_runs_as_often(tmp_path):
    write_teacher(tmp_path, "RetinaNet")
    cfg = taught_cfg(tmp_path, "RetinaNet", ["RankMimicking", "PredictionGuided"])
    distiller = build_distiller(cfg, build_tiny("RetinaNet")).train()
    student = count_calls(distiller.student.head)
    teacher = count_calls(distiller.teachers[0].model.head)
    cost = measure_step_cost(distiller, INPUTS, repeats=2)
    assert student == [1 + 3 * 2] and teacher == [3 * 2]
    assert min(cost.student, cost.teachers, cost.distilled) > 0

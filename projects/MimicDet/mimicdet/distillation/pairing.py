"""Whether two detectors and a method fit together, before anything is trained."""

from collections.abc import Iterable
from typing import Any

from ..utils.errors import UserError
from .adapters import DetectorAdapter
from .methods.base import DistillationMethod
from .tensors import DetectorLayout

# What a method may ask student and teacher to share: name -> the facts of a layout behind it.
AGREEMENTS: dict[str, tuple[str, ...]] = {
    "levels": ("strides", "size_divisibility"),
    "channels": ("channels",),
    "classes": ("num_classes",),
    "anchors": ("anchors_per_location", "cell_anchors", "anchor_offset"),
    "map_scores": ("map_scores",),
    "class_scores": ("class_scores",),
    "edges": ("edge_bins",),
}
HINTS = {
    "channels": " (an adaptation layer helps: ADAPTATION True)",
    "size_divisibility": " (what images are padded to)",
}


def check_pair(
    methods: Iterable[DistillationMethod],
    student: DetectorAdapter,
    teacher: DetectorAdapter,
    source: str = "",
) -> None:
    """
    Raise one UserError with everything that keeps the methods from teaching this student by this
    teacher; source: where the teacher comes from.
    """
    problems: list[str] = []
    for method in methods:
        name = type(method).__name__
        lacking = (
            ("student", student.layout, method.needs_student - student.student_offers),
            ("teacher", teacher.layout, method.needs_teacher - teacher.teacher_offers),
        )
        for role, layout, missing in lacking:
            if missing:
                problems.append(
                    f"{name} needs {', '.join(sorted(missing))}, which the {role} {layout.name} "
                    "does not offer"
                )
        problems += [
            f"{name}: {problem}"
            for problem in [
                *_disagreements(method, student.layout, teacher.layout),
                *method.problems,
            ]
        ]
    if problems:
        raise UserError(
            f"the student {student.layout.name} cannot be taught by the teacher "
            f"{teacher.layout.name} of {source or 'DISTILLATION.TEACHER'}:\n  "
            + "\n  ".join(problems)
        )


def _disagreements(
    method: DistillationMethod, student: DetectorLayout, teacher: DetectorLayout
) -> list[str]:
    problems = []
    for agreement in sorted(method.agrees_on):
        for fact in AGREEMENTS[agreement]:
            sides = getattr(student, fact), getattr(teacher, fact)
            if sides[0] == sides[1]:
                continue
            problems.append(
                f"{fact} {_shown(sides[0])} of the student, {_shown(sides[1])} of the teacher"
                + HINTS.get(fact, "")
            )
            break  # what follows of the same agreement would only repeat it
    return problems


def _shown(fact: Any) -> str:
    text = repr(fact)
    return text if len(text) <= 120 else f"{text[:120]}..."

"""The two detection heads: the S-head, the student, and the T-head, its teacher."""

from .student_head import StudentHead
from .teacher_head import MimicTeacherHeads

__all__ = ["MimicTeacherHeads", "StudentHead"]

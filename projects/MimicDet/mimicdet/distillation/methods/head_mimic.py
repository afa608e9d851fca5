"""MimicDet's own method: cosine similarity of the two heads' features (3.4, Eq. 1)."""

from detectron2.config import configurable
from torch import Tensor

from ...modeling.losses import mimic_loss
from ..tensors import DetectorLayout, DetectorTensors
from .base import DISTILLATION_REGISTRY, DistillationMethod


@DISTILLATION_REGISTRY.register()
class HeadMimic(DistillationMethod):
    """
    L_mimic = 1/N * (sum(1 - cos(F_tr, F_sr)) + sum(1 - cos(F_tc, F_sc))) over the N boxes that were
    sampled for the T-head: F_c the (K + 1)-d classification logits, F_r the D-d regression feature.

    With heads that are not split (Table 3's light and heavy rows) there is one term, over the last
    shared D-d feature.

    It has no node in DISTILLATION: MODEL.MIMICDET.MIMIC switches it on. The teacher is the T-head
    on the student's own backbone, or the separate one of Table 5.
    """

    needs_student = frozenset({"head_predictions", "box_query"})
    needs_teacher = frozenset({"box_head_predictions_at"})

    @configurable
    def __init__(self, *, dual_path: bool, detach_teacher: bool = True):
        """
        Args:
            dual_path: two terms (the paper's design) or one.
            detach_teacher: no gradient reaches the teacher. Not in the paper, which leaves it open.
        """
        super().__init__()
        self.detach_teacher = detach_teacher
        # The outputs of a head that each loss compares.
        self.compared = {"loss_mimic_shared": "box_features"}
        if dual_path:
            self.compared = {
                "loss_mimic_cls": "pred_class_logits",
                "loss_mimic_loc": "box_features",
            }
        self.loss_names = tuple(self.compared)

    @classmethod
    def from_config(cls, cfg, student: DetectorLayout, teacher: DetectorLayout):
        keys = cfg.MODEL.MIMICDET
        return {
            "dual_path": keys.STUDENT.DUAL_PATH,
            "detach_teacher": keys.MIMIC.DETACH_TEACHER,
        }

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        """Both heads look at the boxes that the student sampled for the T-head."""
        student_head = student.head_predictions
        teacher_head = teacher.box_head_predictions_at(student.box_query)
        losses = {}
        for name, output in self.compared.items():
            target = getattr(teacher_head, output)
            # The one place where the student's own T-head is detached.
            target = target.detach() if self.detach_teacher else target
            losses[name] = mimic_loss(getattr(student_head, output), target)
        return losses

    def metrics(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Mean cosine of each branch."""
        return {
            name.replace("loss_mimic_", "mimic/cosine_"): 1 - loss.item()
            for name, loss in losses.items()
        }

"""MimicDet's own method: cosine similarity of the two heads' features (3.4, Eq. 1)."""

from dataclasses import replace

from detectron2.config import configurable
from torch import Tensor

from ..losses import mimic_loss
from ..structures import HeadPredictions
from .base import DISTILLATION_REGISTRY, DistillationMethod


@DISTILLATION_REGISTRY.register()
class HeadMimic(DistillationMethod):
    """
    L_mimic = 1/N * (sum(1 - cos(F_tr, F_sr)) + sum(1 - cos(F_tc, F_sc))) over the N boxes that were
    sampled for the T-head: F_c the (K + 1)-d classification logits, F_r the D-d regression feature.

    With heads that are not split (Table 3's light and heavy rows) there is one term, over the last
    shared D-d feature.
    """

    @configurable
    def __init__(self, *, dual_path: bool, loss_weight: float = 1.0, detach_teacher: bool = True):
        """
        Args:
            dual_path: two terms (the paper's design) or one.
            loss_weight: of every term.
            detach_teacher: no gradient reaches the teacher. Not in the paper, which leaves it open.
        """
        super().__init__()
        self.dual_path = dual_path
        self.loss_weight = loss_weight
        self.detach_teacher = detach_teacher

    @classmethod
    def from_config(cls, cfg):
        keys = cfg.MODEL.MIMICDET
        return {
            "dual_path": keys.STUDENT.DUAL_PATH,
            "loss_weight": keys.MIMIC.LOSS_WEIGHT,
            "detach_teacher": keys.MIMIC.DETACH_TEACHER,
        }

    def forward(self, student: HeadPredictions, teacher: HeadPredictions) -> dict[str, Tensor]:
        """The same b boxes in the same order on both sides."""
        if self.detach_teacher:  # the one place where the teacher is detached
            detached = {name: value.detach() for name, value in vars(teacher).items()}
            teacher = replace(teacher, **detached)
        if self.dual_path:
            terms = {
                "loss_mimic_cls": mimic_loss(student.pred_class_logits, teacher.pred_class_logits),
                "loss_mimic_loc": mimic_loss(student.box_features, teacher.box_features),
            }
        else:
            terms = {"loss_mimic_shared": mimic_loss(student.box_features, teacher.box_features)}
        return {name: self.loss_weight * term for name, term in terms.items()}

    def metrics(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Mean cosine of each branch."""
        if not self.loss_weight:
            return {}
        return {
            name.replace("loss_mimic_", "mimic/cosine_"): 1 - loss.item() / self.loss_weight
            for name, loss in losses.items()
        }

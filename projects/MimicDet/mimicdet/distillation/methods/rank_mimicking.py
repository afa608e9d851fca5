"""Rank Mimicking: the order of an object's candidate boxes as knowledge (RM+PFI, Eq. 5, 6)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...modeling.boxes import aligned_iou
from ...utils.errors import UserError, check_choice
from ..losses import rank_loss
from ..tensors import DetectorLayout, DetectorTensors, Positives, scores
from .base import DISTILLATION_REGISTRY, DistillationMethod

SCORES = ("probability", "logit")


@DISTILLATION_REGISTRY.register()
class RankMimicking(DistillationMethod):
    """
    For every object the anchors that the student's assignment makes positive are ranked by the
    teacher: by the score of the object's class, and by the IoU of the predicted box with the
    object (Table 4). The student learns both distributions.
    """

    needs_student = frozenset({"positives", "class_logits_at", "pred_boxes_at"})
    needs_teacher = frozenset({"class_logits_at", "pred_boxes_at"})

    @configurable
    def __init__(
        self, *, class_rank: bool, box_rank: bool, class_scores: str, student: str, teacher: str
    ):
        """
        Args:
            class_rank, box_rank: the two signals.
            class_scores: "probability" or "logit", what the softmax of Eq. 5 is taken of.
            student, teacher: how their logits are read, see DetectorLayout.class_scores.
        """
        super().__init__()
        name = "DISTILLATION.RankMimicking"
        check_choice(f"{name}.CLASS_SCORES", class_scores, SCORES)
        if not (class_rank or box_rank):
            raise UserError(f"{name}.CLASS_RANK and BOX_RANK are both False")
        self.class_rank, self.box_rank = class_rank, box_rank
        self.class_scores = class_scores
        self.readings = student, teacher
        needs = {"class_logits_at"} if class_rank else set()
        needs |= {"pred_boxes_at"} if box_rank else set()
        self.needs_student, self.needs_teacher = frozenset(needs | {"positives"}), frozenset(needs)
        ranks = ("cls" if class_rank else "", "loc" if box_rank else "")
        self.loss_names = tuple(f"loss_rank_{rank}" for rank in ranks if rank)
        agreements = {"classes", "class_scores"} if class_rank else set()
        self.agrees_on = frozenset({"levels", "anchors"} | agreements)

    @classmethod
    def default_config(cls) -> CN:
        node = CN()
        node.LOSS_WEIGHT = 4.0  # alpha
        # Rank by the score of the object's class, by the predicted box's IoU with it (Table 4).
        node.CLASS_RANK = True
        node.BOX_RANK = True
        # "probability" (the score that NMS ranks by; the paper's "scores") or "logit".
        node.CLASS_SCORES = "probability"
        return node

    @classmethod
    def from_config(cls, cfg, student: DetectorLayout, teacher: DetectorLayout):
        return {
            **super().from_config(cfg, student, teacher),
            "student": student.class_scores,
            "teacher": teacher.class_scores,
        }

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        positives = student.positives
        sides = student, teacher
        losses = {}
        if self.class_rank:
            scores_of_both = (
                self._class_scores(side, positives, reading)
                for side, reading in zip(sides, self.readings)
            )
            losses["loss_rank_cls"] = rank_loss(
                *scores_of_both, positives.objects, positives.num_objects
            )
        if self.box_rank:
            ious = (
                aligned_iou(side.pred_boxes_at(positives), positives.gt_boxes) for side in sides
            )
            losses["loss_rank_loc"] = rank_loss(*ious, positives.objects, positives.num_objects)
        return losses

    def _class_scores(self, side: DetectorTensors, positives: Positives, reading: str) -> Tensor:
        logits = side.class_logits_at(positives)
        values = scores(logits, reading) if self.class_scores == "probability" else logits
        return values.gather(1, positives.gt_classes[:, None]).squeeze(1)

"""BCKD: the teacher's scores and boxes at every anchor (Yang et al., ICCV 2023)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...modeling.layers.precision import at_least_float32
from ..losses import box_imitation_loss, score_imitation_loss
from ..tensors import DetectorLayout, DetectorTensors, by_anchor
from .base import DISTILLATION_REGISTRY, DistillationMethod


@DISTILLATION_REGISTRY.register()
class BCKD(DistillationMethod):
    """
    Yang et al., Bridging Cross-task Protocol Inconsistency for Distillation in Dense Object
    Detection, ICCV 2023. With scores p of anchor i and class j, w = |p_t - p_s|:
    the sum over i and j of w_ij * BCE(p_s, p_t), and the sum over i of max_j w_ij * (1 - GIoU) of
    the two boxes. Both are divided by the number of positives.
    """

    loss_names = ("loss_bckd_cls", "loss_bckd_loc")
    needs_student = frozenset({"positives", "prediction_maps", "pred_boxes"})
    needs_teacher = frozenset({"prediction_maps", "pred_boxes"})
    agrees_on = frozenset({"levels", "anchors", "classes", "map_scores"})

    @configurable
    def __init__(self, *, box_weight: float, student: DetectorLayout, teacher: DetectorLayout):
        """
        Args:
            box_weight: factor of the boxes' loss.
            student, teacher: the two detectors; they must read their scores alike.
        """
        super().__init__()
        self.box_weight = box_weight
        self.num_classes = student.num_classes

    @classmethod
    def default_config(cls) -> CN:
        node = CN()
        node.LOSS_WEIGHT = 1.0  # alpha_1
        node.BOX_WEIGHT = 4.0  # alpha_2: factor of the boxes' loss, besides LOSS_WEIGHT
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        sides = student, teacher
        logits = [by_anchor(side.prediction_maps, self.num_classes) for side in sides]
        scores = [at_least_float32(x.detach()).sigmoid() for x in logits]
        weights = (scores[1] - scores[0]).abs().amax(dim=2)
        normalizer = max(len(student.positives.anchors), 1)
        loss_loc = box_imitation_loss(*(side.pred_boxes for side in sides), weights, normalizer)
        return {
            "loss_bckd_cls": score_imitation_loss(*logits, normalizer),
            "loss_bckd_loc": self.box_weight * loss_loc,
        }

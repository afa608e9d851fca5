"""CrossKD: the student's features in the teacher's head (Wang et al., CVPR 2024)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...modeling.layers.precision import at_least_float32
from ...utils.errors import UserError, check_choice
from ..losses import box_imitation_loss, edge_distribution_loss, score_imitation_loss
from ..tensors import DetectorLayout, DetectorTensors, by_anchor
from .base import DISTILLATION_REGISTRY, DistillationMethod

BOX_LOSSES = ("auto", "giou", "kl")


@DISTILLATION_REGISTRY.register()
class CrossKD(DistillationMethod):
    """
    Wang et al., CrossKD: Cross-Head Knowledge Distillation for Object Detection, CVPR 2024. Maps
    from inside the student's head go through the last layers of the teacher's, which are frozen;
    the cross-head predictions that come out imitate the teacher's own. So the student's last layers
    hear of the ground truth alone, and all before them of the teacher too. Scores p over all
    anchors: |p_t - p_s| * BCE(p_s, p_t), quality focal loss with beta 1. Boxes, weighted by the
    teacher's highest score: 1 - GIoU, or KL of their edges' distributions.
    """

    loss_names = ("loss_crosskd_cls", "loss_crosskd_loc")
    needs_student = frozenset({"positives", "tower_features"})
    agrees_on = frozenset({"levels", "classes"})

    @configurable
    def __init__(
        self,
        *,
        box_weight: float,
        box_loss: str,
        last_convs: int,
        student: DetectorLayout,
        teacher: DetectorLayout,
    ):
        """
        Args:
            box_weight: factor of the boxes' loss.
            box_loss: "giou", "kl" or "auto", which is "kl" for a teacher that has distributions.
            last_convs: convolutions of the teacher's towers, before its output layers, that the
                student's features pass; they have passed all of the student's but as many.
            student, teacher: the two detectors.
        """
        super().__init__()
        name = "DISTILLATION.CrossKD"
        check_choice(f"{name}.BOX_LOSS", box_loss, BOX_LOSSES)
        if last_convs < 0:
            raise UserError(f"{name}.LAST_CONVS is {last_convs}, below 0")
        self.box_weight, self.last_convs = box_weight, last_convs
        self.num_classes = teacher.num_classes
        self.has_edges = box_loss == "kl" or (box_loss == "auto" and teacher.edge_bins > 0)
        boxes = "edge_logits" if self.has_edges else "pred_boxes"
        self.needs_teacher = frozenset({"cross_head", "prediction_maps", boxes})
        towers = student.tower_channels, teacher.tower_channels
        if all(towers):  # else what is lacking is listed already
            self.problems = tuple(_misfits(*towers, last_convs))

    @classmethod
    def default_config(cls) -> CN:
        node = CN()
        node.LOSS_WEIGHT = 1.0
        # Factor of the boxes' loss, besides LOSS_WEIGHT.
        node.BOX_WEIGHT = 1.0
        # "giou", "kl" (GFL alone) or "auto": "kl" where the teacher has distributions.
        node.BOX_LOSS = "auto"
        # Convolutions of the teacher's towers that the student's features pass; 0: only the output
        # layers. The paper's towers have four.
        node.LAST_CONVS = 1
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        sides = teacher.cross_head(student.tower_features(self.last_convs)), teacher
        logits = [by_anchor(side.prediction_maps, self.num_classes) for side in sides]
        weights = at_least_float32(logits[1]).sigmoid().amax(dim=2)
        normalizer = max(len(student.positives.anchors), 1)
        if self.has_edges:
            loss_loc = edge_distribution_loss(*(side.edge_logits for side in sides), weights, 1.0)
        else:
            loss_loc = box_imitation_loss(*(side.pred_boxes for side in sides), weights, normalizer)
        return {
            "loss_crosskd_cls": score_imitation_loss(*logits, normalizer),
            "loss_crosskd_loc": self.box_weight * loss_loc,
        }


def _misfits(student: tuple[int, ...], teacher: tuple[int, ...], last_convs: int) -> list[str]:
    """What keeps maps of the one head out of the other; the arguments: see DetectorLayout."""
    convs = len(student) - 1, len(teacher) - 1
    if last_convs > min(convs):
        return [f"LAST_CONVS is {last_convs}, the heads' towers have {convs[0]} and {convs[1]}"]
    channels = student[-1 - last_convs], teacher[-1 - last_convs]
    if channels[0] != channels[1]:
        return [
            f"before the last {last_convs} convolutions the head's maps have {channels[0]} "
            f"channels in the student, {channels[1]} in the teacher"
        ]
    return []

"""Soft labels: the teacher's class probabilities as targets (RM+PFI, Eq. 2, 3; FGFI's -D)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...utils.errors import UserError, check_choice
from ..losses import soft_label_loss
from ..tensors import DetectorLayout, DetectorTensors
from .base import DISTILLATION_REGISTRY, DistillationMethod

SAMPLES = ("positives", "all")


@DISTILLATION_REGISTRY.register()
class SoftLabels(DistillationMethod):
    """KL divergence of class probabilities, anchor by anchor, divided by the positive anchors."""

    loss_names = ("loss_soft_labels",)

    @configurable
    def __init__(
        self, *, temperature: float, samples: str, student: DetectorLayout, teacher: DetectorLayout
    ):
        """
        Args:
            temperature: T of Eq. 2; samples: "positives" or "all".
            student, teacher: the two detectors; they must read their scores alike.
        """
        super().__init__()
        check_choice("DISTILLATION.SoftLabels.SAMPLES", samples, SAMPLES)
        if temperature <= 0:
            raise UserError(
                f"DISTILLATION.SoftLabels.TEMPERATURE must be above 0, got {temperature}"
            )
        self.temperature = temperature
        self.samples = samples
        everywhere = samples == "all"
        self.reading = "" if everywhere else student.class_scores
        needs = {"prediction_maps" if everywhere else "class_logits_at"}
        self.needs_student, self.needs_teacher = frozenset(needs | {"positives"}), frozenset(needs)
        self.agrees_on = frozenset(
            {"levels", "anchors", "classes", "map_scores" if everywhere else "class_scores"}
        )

    @classmethod
    def default_config(cls) -> CN:
        node = CN()
        # T. Not in the paper.
        node.TEMPERATURE = 1.0
        # Anchors that are taught: "positives" of the student's assignment, or "all" of every map.
        # Either way the sum is divided by the number of positives. Not in the paper.
        node.SAMPLES = "positives"
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        positives = student.positives
        if self.samples == "positives":
            pairs = [(student.class_logits_at(positives), teacher.class_logits_at(positives))]
        else:
            pairs = list(zip(student.prediction_maps, teacher.prediction_maps))
        normalizer = max(len(positives.anchors), 1)
        terms = [
            soft_label_loss(*pair, self.temperature, self.reading, normalizer) for pair in pairs
        ]
        return {"loss_soft_labels": sum(terms)}

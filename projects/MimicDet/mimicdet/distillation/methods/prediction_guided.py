"""Prediction-guided Feature Imitation: imitate where predictions differ (RM+PFI, Eq. 7-9)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ..losses import prediction_guided_loss
from ..tensors import DetectorTensors
from .base import DISTILLATION_REGISTRY
from .feature_method import FeatureMethod, feature_settings


@DISTILLATION_REGISTRY.register()
class PredictionGuided(FeatureMethod):
    """
    Whole maps, each location weighted by the squared difference of the two detectors' scores there.
    """

    loss_names = ("loss_pfi",)
    needs_student = FeatureMethod.needs_student | {"prediction_maps"}
    needs_teacher = FeatureMethod.needs_teacher | {"prediction_maps"}

    @configurable
    def __init__(self, *, detach_weight: bool, **kwargs):
        """
        Args:
            detach_weight: no gradient through P_dif, so that the classification is not trained.
            kwargs: see FeatureMethod.
        """
        super().__init__(**kwargs)
        self.detach_weight = detach_weight
        self.agrees_on |= {"classes", "anchors", "map_scores"}

    @classmethod
    def default_config(cls) -> CN:
        node = feature_settings(adaptation=False)
        node.LOSS_WEIGHT = 1.5  # beta
        # True: P_dif is a weight and carries no gradient. Not in the paper.
        node.DETACH_WEIGHT = True
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        # map_scores are sigmoids of one kind or another on every detector that has such maps.
        pairs = []
        for level in self.levels:
            logits = student.prediction_maps[level]
            logits = logits.detach() if self.detach_weight else logits
            target = teacher.prediction_maps[level].float().sigmoid()
            pairs.append((logits.float().sigmoid(), target))
        return {"loss_pfi": prediction_guided_loss(self.feature_pairs(student, teacher), pairs)}

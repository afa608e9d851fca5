"""PKD: imitation of standardised maps (Cao et al., NeurIPS 2022)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ..losses import correlation_loss
from ..tensors import DetectorTensors
from .base import DISTILLATION_REGISTRY
from .feature_method import FeatureMethod, feature_settings


@DISTILLATION_REGISTRY.register()
class PKD(FeatureMethod):
    """
    Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation
    Coefficient, NeurIPS 2022: mean((s - t)^2) / 2 of the maps s and t, each channel of them with
    mean 0 and variance 1, a term a level. So the student's map follows the teacher's up to a shift
    and a factor of each channel, and neither large values nor a few large channels count.
    """

    loss_names = ("loss_pkd",)

    @configurable
    def __init__(self, **kwargs):
        """kwargs: see FeatureMethod."""
        super().__init__(**kwargs)

    @classmethod
    def default_config(cls) -> CN:
        node = feature_settings(adaptation=False)
        node.LOSS_WEIGHT = 6.0  # alpha, of each level
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        return {"loss_pkd": correlation_loss(self.feature_pairs(student, teacher))}

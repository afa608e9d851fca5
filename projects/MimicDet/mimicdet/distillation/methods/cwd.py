"""CWD: where each channel has its large values (Shu et al., ICCV 2021)."""

from detectron2.config import CfgNode as CN
from detectron2.config import configurable
from torch import Tensor

from ...utils.errors import UserError
from ..losses import channel_distribution_loss
from ..tensors import DetectorTensors
from .base import DISTILLATION_REGISTRY
from .feature_method import FeatureMethod, feature_settings


@DISTILLATION_REGISTRY.register()
class CWD(FeatureMethod):
    """
    Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021: every channel
    of the pyramid's maps becomes a distribution over the locations i of its image,
    p(i) = exp(x_i / T) / sum_j exp(x_j / T), and T^2 / C * sum_c sum_i p_t * log(p_t / p_s) is the
    loss of a level. Where the teacher's channel is small, errors hardly count.
    """

    loss_names = ("loss_cwd",)

    @configurable
    def __init__(self, *, temperature: float, **kwargs):
        """
        Args:
            temperature: T; the larger, the more locations count.
            kwargs: see FeatureMethod.
        """
        super().__init__(**kwargs)
        if temperature <= 0:
            raise UserError(f"DISTILLATION.CWD.TEMPERATURE must be above 0, got {temperature}")
        self.temperature = temperature

    @classmethod
    def default_config(cls) -> CN:
        node = feature_settings(adaptation=False)
        # alpha, of each level; with T 1 what MMRazor publishes for detectors.
        node.LOSS_WEIGHT = 10.0
        node.TEMPERATURE = 1.0
        return node

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        pairs = self.feature_pairs(student, teacher)
        return {"loss_cwd": channel_distribution_loss(pairs, self.temperature)}

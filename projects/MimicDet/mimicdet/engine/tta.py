"""Test-time augmentation: Detectron2's, for a model that is no GeneralizedRCNN."""

from contextlib import nullcontext

from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNNWithTTA
from torch import nn
from torch.nn.parallel import DistributedDataParallel


class MimicDetWithTTA(GeneralizedRCNNWithTTA):
    """MimicDet under the resizes and flips of TEST.AUG; called like the model itself."""

    def __init__(self, cfg, model, tta_mapper=None, batch_size: int = 3):
        """See GeneralizedRCNNWithTTA, whose constructor refuses every other architecture."""
        nn.Module.__init__(self)
        if isinstance(model, DistributedDataParallel):
            model = model.module
        self.cfg = cfg.clone()
        # The merged boxes go through Detectron2's code for RoI heads that have masks.
        self.cfg.defrost()
        self.cfg.MODEL.MASK_ON = False
        self.cfg.freeze()
        self.model = getattr(model, "student", model)
        self.tta_mapper = DatasetMapperTTA(cfg) if tta_mapper is None else tta_mapper
        self.batch_size = batch_size

    def _turn_off_roi_heads(self, attrs):
        # A T-head has no mask or keypoint part, and a model may have no roi_heads at all.
        return nullcontext()

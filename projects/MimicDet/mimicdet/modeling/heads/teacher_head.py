"""The T-head: the two-stage detection head, the teacher (3.3)."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ROIAlign, ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import ROIHeads
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import UserError, check_choice
from ..backbone.pyramid import level_shapes
from ..layers.precision import at_least_float32
from ..losses import classification_loss, regression_loss
from ..structures import HeadPredictions, LabelledBoxes, image_indices
from .labels import BoxSampling
from .settings import HeadSettings

HEADS = ("dual_path", "light", "heavy")


class LevelPooler(nn.Module):
    """RoIAlign of boxes on levels that are given, not derived from the boxes' areas (3.1, 3.3)."""

    def __init__(self, resolution: int, strides: Sequence[int], sampling_ratio: int):
        super().__init__()
        self.resolution = resolution
        self.poolers = nn.ModuleList(
            ROIAlign(resolution, 1.0 / stride, sampling_ratio, aligned=True) for stride in strides
        )

    def forward(self, features: list[Tensor], boxes: list[Tensor], levels: list[Tensor]) -> Tensor:
        """
        Args:
            features: L x (N, C, H, W).
            boxes: N x (Bi, 4) XYXY in input pixels; levels: N x (Bi,) int64, index into features.

        Returns:
            (B, C, resolution, resolution), boxes of all images one after another.
        """
        images = image_indices([len(b) for b in boxes], features[0].device)
        rois = torch.cat([images[:, None].to(boxes[0].dtype), torch.cat(boxes)], dim=1)
        all_levels = torch.cat(levels)
        # Also levels without a box take part, so that each has a gradient in every step.
        order, pooled = [], []
        for level, (x, pooler) in enumerate(zip(features, self.poolers)):
            chosen = torch.nonzero(all_levels == level).squeeze(1)
            order.append(chosen)
            # Half precision has too few digits for box coordinates.
            x = _with_gradient_laid_alike(at_least_float32(x))
            pooled.append(pooler(x, rois[chosen].to(x.dtype)))
        return torch.cat(pooled)[torch.cat(order).argsort()]


def _with_gradient_laid_alike(x: Tensor) -> Tensor:
    """
    x, whose gradient will have the layout of x: RoIAlign's is never channels last, and where they
    differ the backward pass of the batch norm behind x takes 20 times as long on a CPU.
    """
    if not x.requires_grad or x.is_contiguous():
        return x
    x = x.view_as(x)
    x.register_hook(lambda gradient: gradient.contiguous(memory_format=torch.channels_last))
    return x


@ROI_HEADS_REGISTRY.register()
class MimicTeacherHeads(ROIHeads):
    """
    RoIAlign on the high-resolution group, then the dual-path head (3.3) or Table 3's light or heavy
    one. The level of a box is the level of its anchor; the i-th level of MODEL.RPN.IN_FEATURES is
    read from the i-th of MODEL.ROI_HEADS.IN_FEATURES.

    As Detectron2 ROI heads it samples, computes its losses and detects by itself; MimicDet calls
    `predict`, because it mimics the features of the boxes that it sampled.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: LevelPooler,
        in_channels: int,
        resolution: int,
        head: str,
        num_conv: int,
        conv_dim: int,
        num_fc: int,
        fc_dim: int,
        output_init: str,
        settings: HeadSettings,
        **kwargs,
    ):
        """
        Args:
            in_features: levels that it reads; in_channels, resolution: of a pooled box.
            head: "dual_path", "light" or "heavy"; num_conv, conv_dim: of the regression branch
                (dual_path) or of the shared trunk (heavy); num_fc, fc_dim: fully connected layers.
            output_init: "he" or "gaussian", of the two output layers.
            settings: what both heads share.
            kwargs: see Detectron2's ROIHeads.
        """
        super().__init__(**kwargs)
        check_choice("MODEL.MIMICDET.TEACHER.HEAD", head, HEADS)
        if num_fc < 1:
            raise UserError(f"MODEL.ROI_BOX_HEAD.NUM_FC must be at least 1, got {num_fc}")
        self.in_features = list(in_features)
        self.pooler = pooler
        self.settings = settings
        self.dual_path = head == "dual_path"
        convs = () if head == "light" else [conv_dim] * num_conv
        if self.dual_path:
            self.class_branch = _branch(in_channels, resolution, (), [fc_dim] * num_fc)
            self.box_branch = _branch(in_channels, resolution, convs, [fc_dim])
        else:
            self.shared_branch = _branch(in_channels, resolution, convs, [fc_dim] * num_fc)
        self.class_logits = nn.Linear(fc_dim, self.num_classes + 1)
        self.box_deltas = nn.Linear(fc_dim, 4)
        self._initialise(output_init)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        ret = super().from_config(cfg)
        in_features = cfg.MODEL.ROI_HEADS.IN_FEATURES
        shapes = level_shapes("MODEL.ROI_HEADS.IN_FEATURES", in_features, input_shape)
        head = cfg.MODEL.ROI_BOX_HEAD
        check_choice("MODEL.ROI_BOX_HEAD.POOLER_TYPE", head.POOLER_TYPE, ["ROIAlignV2"])
        keys = cfg.MODEL.MIMICDET.TEACHER
        return {
            **ret,
            "in_features": in_features,
            "pooler": LevelPooler(
                head.POOLER_RESOLUTION, [x.stride for x in shapes], head.POOLER_SAMPLING_RATIO
            ),
            "in_channels": shapes[0].channels,
            "resolution": head.POOLER_RESOLUTION,
            "head": keys.HEAD,
            "num_conv": head.NUM_CONV,
            "conv_dim": head.CONV_DIM,
            "num_fc": head.NUM_FC,
            "fc_dim": head.FC_DIM,
            "output_init": keys.OUTPUT_INIT,
            "settings": HeadSettings.from_config(cfg, keys),
        }

    def _initialise(self, output_init: str) -> None:
        check_choice("MODEL.MIMICDET.TEACHER.OUTPUT_INIT", output_init, ("he", "gaussian"))
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                nn.init.zeros_(module.bias)
        if output_init == "gaussian":
            nn.init.normal_(self.class_logits.weight, std=0.01)
            nn.init.normal_(self.box_deltas.weight, std=0.001)

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detectron2's contract; proposals need the field levels, as RefinementModule gives it."""
        if not self.training:
            predictions = self.predict_proposals(features, proposals)
            return self._detect(predictions, proposals), {}
        sampling = BoxSampling(
            self.proposal_matcher,
            self.num_classes,
            self.batch_size_per_image,
            self.positive_fraction,
        )
        labelled = sampling.label(proposals, targets)
        indices = sampling.sample([x.gt_classes for x in labelled])
        proposals = [x[index] for x, index in zip(labelled, indices)]
        return proposals, self.losses(self.predict_proposals(features, proposals), proposals)

    def _detect(self, predictions: HeadPredictions, proposals: list[Instances]) -> list[Instances]:
        """predictions: of all proposals, image after image."""
        results, start = [], 0
        for own in proposals:
            of_image = predictions.select(slice(start, start + len(own))).by_image(1)
            boxes = own.proposal_boxes.tensor[None]
            results += self.settings.detect(boxes, of_image, [own.image_size])
            start += len(own)
        return results

    def predict_proposals(
        self, features: dict[str, Tensor], proposals: list[Instances]
    ) -> HeadPredictions:
        return self.predict(
            features, [x.proposal_boxes.tensor for x in proposals], [x.levels for x in proposals]
        )

    def predict(
        self, features: dict[str, Tensor], boxes: list[Tensor], levels: list[Tensor]
    ) -> HeadPredictions:
        """
        Args:
            features: maps by name; boxes: N x (Bi, 4) XYXY in input pixels.
            levels: N x (Bi,) int64: which level of MODEL.RPN.IN_FEATURES each box's anchor is on.
        """
        pooled = self.pooler([features[f] for f in self.in_features], boxes, levels)
        if self.dual_path:
            class_features, box_features = self.class_branch(pooled), self.box_branch(pooled)
        else:
            class_features = box_features = self.shared_branch(pooled)
        return HeadPredictions(
            pred_class_logits=self.class_logits(class_features),
            pred_box_deltas=self.box_deltas(box_features),
            class_features=class_features,
            box_features=box_features,
        )

    def cross_outputs(self, other: HeadPredictions) -> HeadPredictions:
        """What another head's features become in this head's output layers, which do not learn."""
        logits, deltas = (
            F.linear(x, layer.weight.detach(), layer.bias.detach())
            for x, layer in (
                (other.class_features, self.class_logits),
                (other.box_features, self.box_deltas),
            )
        )
        return replace(other, pred_class_logits=logits, pred_box_deltas=deltas)

    def losses(self, predictions: HeadPredictions, proposals: list[Instances]) -> dict[str, Tensor]:
        """
        loss_teacher_cls and loss_teacher_loc over labelled, sampled proposals: cross-entropy over
        all, L1 over the positives, both divided by the number of all (Fast R-CNN's way; the paper
        leaves the divisor open).
        """
        boxes = LabelledBoxes.of(proposals)
        positive = boxes.foreground(self.num_classes)
        cls_loss = classification_loss(predictions.pred_class_logits, boxes.gt_classes)
        loc_loss = regression_loss(
            predictions.pred_box_deltas[positive],
            boxes.select(positive),
            self.settings.box2box_transform,
            max(len(boxes.gt_classes), 1),
        )
        return {
            "loss_teacher_cls": self.settings.loss_weights[0] * cls_loss,
            "loss_teacher_loc": self.settings.loss_weights[1] * loc_loss,
        }


def _branch(
    channels: int, resolution: int, conv_dims: Sequence[int], fc_dims: Sequence[int]
) -> nn.Sequential:
    """3x3 convs, flatten, fully connected layers, each followed by ReLU."""
    layers: list[nn.Module] = []
    for dim in conv_dims:
        layers.append(Conv2d(channels, dim, 3, padding=1, activation=F.relu))
        channels = dim
    layers.append(nn.Flatten())
    size = channels * resolution**2
    for dim in fc_dims:
        layers += [nn.Linear(size, dim), nn.ReLU()]
        size = dim
    return nn.Sequential(*layers)

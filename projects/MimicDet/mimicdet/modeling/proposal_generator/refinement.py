"""The refinement module: class-agnostic first stage on one anchor a location (3.2)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.layers import Conv2d, ShapeSpec, cat
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY, build_anchor_generator
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor, nn

from ...utils.errors import UserError, check_choice
from ..backbone.pyramid import level_shapes
from ..layers import conv3x3
from ..losses import box_l1_loss, objectness_loss
from ..postprocess import apply_deltas, clip_to_images, rank_proposals, select_proposals
from ..structures import AnchorLabels, Proposals, RefinementPredictions
from ..targets import assign_anchors

# Sizes of maps whose anchors are kept: about a megabyte each.
KEPT_SIZES = 32


@dataclass(frozen=True)
class RefinementSettings:
    """How the refinement module trains (3.2), and what it proposes (4.1, 4.2)."""

    scale_range: tuple[float, float]  # this and the next two: see targets.assign_anchors
    center_ratio: float
    match_nearest: bool
    cls_normalizer: str  # "positives" or "anchors"
    loss_weights: tuple[float, float]  # of (objectness, box) loss
    nms_thresh: float  # this and the next: NMS of the proposal set in training
    pre_nms_topk: int
    train_topk: int  # proposals an image
    test_topk: int


@PROPOSAL_GENERATOR_REGISTRY.register()
class RefinementModule(nn.Module):
    """
    Objectness and a first box regression for every anchor, with shared weights on all levels.

    Called as a Detectron2 proposal generator it returns (proposals, losses); MimicDet calls
    `predict`, `losses` and `propose` one by one, because the S-head needs the predictions.
    """

    @configurable
    def __init__(
        self,
        *,
        levels: dict[str, ShapeSpec],
        hidden_dim: int,
        anchor_generator: nn.Module,
        box2box_transform: Box2BoxTransform,
        base_scale: float,
        prior_prob: float,
        settings: RefinementSettings,
        depthwise: bool = False,
    ):
        """
        Args:
            levels: that it runs on, fine to coarse; hidden_dim: channels of the 3x3 conv.
            base_scale: S_l of each level in its strides.
            prior_prob: the objectness' start value.
            settings: of assignment, losses and proposals.
            depthwise: the 3x3 conv is separable, see layers.conv3x3.
        """
        super().__init__()
        check_choice(
            "MODEL.MIMICDET.REFINEMENT.CLS_NORMALIZER",
            settings.cls_normalizer,
            ("positives", "anchors"),
        )
        if list(anchor_generator.num_anchors) != [1] * len(levels):
            raise UserError(
                "MODEL.ANCHOR_GENERATOR must give one anchor a location on each level of "
                f"MODEL.RPN.IN_FEATURES {list(levels)}, got {anchor_generator.num_anchors}"
            )
        self.in_features = list(levels)
        self.strides = [shape.stride for shape in levels.values()]
        self.anchor_generator = anchor_generator
        self.box2box_transform = box2box_transform
        self.settings = settings
        base_scales = [base_scale * stride for stride in self.strides]
        self.register_buffer("base_scales", torch.tensor(base_scales), persistent=False)
        self._kept_anchors: dict[tuple, tuple[Tensor, Tensor]] = {}

        in_channels = levels[self.in_features[0]].channels
        self.conv = conv3x3(in_channels, hidden_dim, depthwise=depthwise, activation=nn.ReLU())
        self.objectness_logits = Conv2d(hidden_dim, 1, 1)
        self.anchor_deltas = Conv2d(hidden_dim, 4, 1)
        # A separable conv keeps its start: two layers of 0.01 in a row would let nothing through.
        dense = () if depthwise else (self.conv,)
        for layer in (*dense, self.objectness_logits, self.anchor_deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.objectness_logits.bias, -math.log((1 - prior_prob) / prior_prob))

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        rpn, keys = cfg.MODEL.RPN, cfg.MODEL.MIMICDET.REFINEMENT
        shapes = level_shapes("MODEL.RPN.IN_FEATURES", rpn.IN_FEATURES, input_shape)
        if len(rpn.CONV_DIMS) != 1:
            raise UserError(f"MODEL.RPN.CONV_DIMS must hold one number (3.2), got {rpn.CONV_DIMS}")
        return {
            "levels": dict(zip(rpn.IN_FEATURES, shapes)),
            "hidden_dim": shapes[0].channels if rpn.CONV_DIMS[0] == -1 else rpn.CONV_DIMS[0],
            "anchor_generator": build_anchor_generator(cfg, shapes),
            "box2box_transform": Box2BoxTransform(weights=rpn.BBOX_REG_WEIGHTS),
            "base_scale": keys.BASE_SCALE,
            "prior_prob": keys.PRIOR_PROB,
            "settings": RefinementSettings(
                scale_range=tuple(keys.SCALE_RANGE),
                center_ratio=keys.CENTER_RATIO,
                match_nearest=keys.MATCH_NEAREST,
                cls_normalizer=keys.CLS_NORMALIZER,
                loss_weights=(rpn.LOSS_WEIGHT, rpn.LOSS_WEIGHT * rpn.BBOX_REG_LOSS_WEIGHT),
                nms_thresh=rpn.NMS_THRESH,
                pre_nms_topk=rpn.PRE_NMS_TOPK_TRAIN,
                train_topk=rpn.POST_NMS_TOPK_TRAIN,
                test_topk=rpn.POST_NMS_TOPK_TEST,
            ),
            "depthwise": cfg.MODEL.MIMICDET.DEPTHWISE,
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        gt_instances: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Detectron2's contract of a proposal generator; see `propose` and `losses`."""
        predictions = self.predict([features[f] for f in self.in_features])
        losses = {}
        if self.training:
            gt_boxes = [x.gt_boxes.tensor for x in gt_instances]
            losses, _ = self.losses(predictions, gt_boxes, [b.new_zeros(0, 4) for b in gt_boxes])
        return self.propose(predictions, images.image_sizes), losses

    def predict(self, features: list[Tensor]) -> RefinementPredictions:
        """features: L x (N, C, Hl, Wl)."""
        return RefinementPredictions(*self.predict_maps(features), *self._anchors(features))

    def predict_maps(self, features: list[Tensor]) -> tuple[Tensor, Tensor, list[Tensor]]:
        """
        What does not depend on anchors: logits (N, R), deltas (N, R, 4), and the deltas once more
        as L x (N, 4, Hl, Wl); see RefinementPredictions.
        """
        hidden = [self.conv(x) for x in features]
        # Boxes and their order come from these outputs: float32 also under mixed precision.
        with torch.autocast(features[0].device.type, enabled=False):
            hidden = [x.to(self.anchor_deltas.weight.dtype) for x in hidden]
            delta_maps = [self.anchor_deltas(x) for x in hidden]
            logits = [self.objectness_logits(x).flatten(1) for x in hidden]
        deltas = cat([x.flatten(2).transpose(1, 2) for x in delta_maps], dim=1)
        return cat(logits, dim=1), deltas, delta_maps

    def _anchors(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Anchors (R, 4) and their levels (R,); those of the last few sizes of maps are kept."""
        if torch.jit.is_tracing() or torch.compiler.is_compiling():
            return self._make_anchors(features)
        key = (features[0].device, *(tuple(x.shape[-2:]) for x in features))
        if key not in self._kept_anchors:
            if len(self._kept_anchors) >= KEPT_SIZES:
                self._kept_anchors.clear()
            with torch.inference_mode(False):  # for later steps too, which may be training's
                self._kept_anchors[key] = self._make_anchors(features)
        return self._kept_anchors[key]

    def _make_anchors(self, features: list[Tensor]) -> tuple[Tensor, Tensor]:
        boxes = [x.tensor for x in self.anchor_generator(features)]
        levels = [
            torch.full_like(x[:, 0], level, dtype=torch.int64) for level, x in enumerate(boxes)
        ]
        return torch.cat(boxes), torch.cat(levels)

    def losses(
        self,
        predictions: RefinementPredictions,
        gt_boxes: list[Tensor],
        crowd_boxes: list[Tensor],
    ) -> tuple[dict[str, Tensor], AnchorLabels]:
        """
        Args:
            gt_boxes: N x (Gi, 4); crowd_boxes: N x (Ci, 4).

        Returns:
            the losses loss_refine_cls and loss_refine_loc, and the assignment they come from.
        """
        anchors = predictions.anchors
        labels, matched_idxs, gt_deltas = [], [], []
        for boxes, crowds in zip(gt_boxes, crowd_boxes):
            labels_per_image, matched = assign_anchors(
                anchors,
                predictions.anchor_levels,
                boxes,
                crowds,
                self.base_scales,
                self.settings.scale_range,
                self.settings.center_ratio,
                self.settings.match_nearest,
            )
            positive = labels_per_image == 1
            labels.append(labels_per_image)
            matched_idxs.append(matched)
            gt_deltas.append(
                self.box2box_transform.get_deltas(anchors[positive], boxes[matched[positive]])
            )
        labels = torch.stack(labels)
        positive = labels == 1
        per_level = torch.stack(
            [positive[:, predictions.anchor_levels == i].sum() for i in range(len(self.strides))]
        )
        num_positives = per_level.sum().clamp(min=len(labels))  # a tensor: int() would wait
        cls_normalizer = (
            num_positives if self.settings.cls_normalizer == "positives" else labels.numel()
        )
        cls_weight, loc_weight = self.settings.loss_weights
        losses = {
            "loss_refine_cls": cls_weight
            * objectness_loss(predictions.pred_objectness_logits, labels, cls_normalizer),
            "loss_refine_loc": loc_weight
            * box_l1_loss(
                predictions.pred_anchor_deltas[positive], torch.cat(gt_deltas), num_positives
            ),
        }
        return losses, AnchorLabels(labels, torch.stack(matched_idxs), per_level)

    @torch.no_grad()
    def adjusted_boxes(
        self,
        predictions: RefinementPredictions,
        image_sizes: Sequence[tuple[int, int]] | Tensor,
    ) -> Tensor:
        """(N, R, 4) adjusted anchor boxes; image_sizes: see postprocess.clip_to_images."""
        deltas = predictions.pred_anchor_deltas.float()
        boxes = apply_deltas(self.box2box_transform, deltas, predictions.anchors)
        return clip_to_images(boxes, image_sizes)

    @torch.no_grad()
    def top_proposals(
        self,
        predictions: RefinementPredictions,
        image_sizes: Sequence[tuple[int, int]] | Tensor,
        fixed_size: bool = False,
    ) -> Proposals:
        """
        What a head looks at in evaluation: each image's best boxes by objectness, no NMS (4.2).

        Args:
            image_sizes: see postprocess.clip_to_images; fixed_size: see rank_proposals.
        """
        boxes = self.adjusted_boxes(predictions, image_sizes)
        logits = predictions.pred_objectness_logits.float()
        locations, valid = rank_proposals(boxes, logits, self.settings.test_topk, fixed_size)
        return Proposals(
            boxes.gather(1, locations[..., None].expand(-1, -1, 4)),
            logits.gather(1, locations),
            locations,
            predictions.anchor_levels[locations],
            valid,
        )

    @torch.no_grad()
    def propose(
        self, predictions: RefinementPredictions, image_sizes: Sequence[tuple[int, int]]
    ) -> list[Instances]:
        """
        The proposal set of training (4.1), or in evaluation what top_proposals gives.

        Returns:
            N Instances of proposal_boxes (Ri, 4) clipped to the image, objectness_logits (Ri,),
            locations (Ri,) in [0, R) and levels (Ri,) in [0, L); best objectness first.
        """
        boxes = self.adjusted_boxes(predictions, image_sizes)
        logits = predictions.pred_objectness_logits.float()
        if not self.training:
            best, valid = rank_proposals(boxes, logits, self.settings.test_topk)
            selected = [locations[usable] for locations, usable in zip(best, valid)]
        elif torch.isfinite(predictions.pred_anchor_deltas).all():
            selected = select_proposals(
                boxes,
                logits,
                self.settings.train_topk,
                self.settings.nms_thresh,
                self.settings.pre_nms_topk,
            )
        else:
            raise FloatingPointError(
                "The refinement module predicts boxes that are not finite: training has diverged."
                " Lower SOLVER.BASE_LR or lengthen SOLVER.WARMUP_ITERS."
            )
        return [
            Instances(
                size,
                proposal_boxes=Boxes(boxes[image, locations]),
                objectness_logits=logits[image, locations],
                locations=locations,
                levels=predictions.anchor_levels[locations],
            )
            for image, (size, locations) in enumerate(zip(image_sizes, selected))
        ]

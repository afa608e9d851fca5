"""The S-head: the one-stage detection head, the student (3.3)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ...utils.errors import UserError, check_choice
from ..backbone.pyramid import anchor_scales, level_shapes
from ..layers import (
    AlignmentLayer,
    AlignmentSettings,
    DensePyramid,
    PyramidReader,
    SparsePyramid,
    build_alignments,
    fresh_casts,
    start_at_boxes,
)
from ..losses import classification_loss, regression_loss
from ..structures import HeadPredictions, LabelledBoxes, flat_indices, image_indices
from ..targets import mine_hard, sample
from .settings import HeadSettings

INITS = ("gaussian", "he")
OFFSET_INITS = ("random", "box", "edges")
REG_NORMALIZERS = ("mined", "positives")
MIMIC_SAMPLES = ("sampled", "sampled_and_mined")
_IN_FEATURES = "MODEL.MIMICDET.STUDENT.IN_FEATURES"


@dataclass(frozen=True)
class StudentTraining:
    """What trains the S-head (4.1)."""

    hard_mining_topk: int  # boxes an image that train the classification
    max_reg_positives: int  # positives an image that train the regression
    reg_normalizer: str = "mined"  # a name of REG_NORMALIZERS
    mimic_mined: bool = False  # the hardest boxes are mimicked too


class StudentHead(nn.Module):
    """
    Alignment layer, then for each branch a 1x1 conv to the mimicked feature and one to the output.

    The 1x1 convs are linear layers on locations: what is requested at some locations is computed
    there alone, which changes no number.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        settings: HeadSettings,
        alignment: AlignmentSettings,
        training: StudentTraining,
        feature_dim: int,
        dual_path: bool = True,
        detach_guidance: bool = True,
        sparse: bool = True,
        init: str = "gaussian",
        in_features: Sequence[str] = (),
        scales: Sequence[int] = (),
    ):
        """
        Args:
            in_channels: channels of every level; settings: what both heads share.
            alignment: the alignment layers; training: which boxes train what.
            feature_dim: width of the mimicked features.
            dual_path: False: one feature feeds both outputs (Table 3's light and heavy rows).
            detach_guidance: the deltas that guide the offsets carry no gradient.
            sparse: compute the alignment layer at the requested locations alone; False: on whole
                maps. The numbers and the state_dict are the same.
            init: "gaussian" or "he".
            in_features: names of the maps that the alignment layers read, one for each level.
            scales: pixels of each such map in a stride of its level; empty: 1.
        """
        super().__init__()
        self.in_features = list(in_features)
        self.scales = tuple(scales)
        if not sparse and any(x != 1 for x in scales):
            raise UserError(f"{_IN_FEATURES} finer than the levels need STUDENT.SPARSE")
        check_choice("MODEL.MIMICDET.STUDENT.INIT", init, INITS)
        check_choice(
            "MODEL.MIMICDET.STUDENT.REG_NORMALIZER", training.reg_normalizer, REG_NORMALIZERS
        )
        self.settings = settings
        self.selection = training
        self.layer_names = alignment.layer_names
        self.detach_guidance = detach_guidance
        self.sparse = sparse
        self.alignments = build_alignments(in_channels, alignment)
        if dual_path:
            self.class_feature = nn.Linear(alignment.dim, feature_dim)
            self.box_feature = nn.Linear(alignment.dim, feature_dim)
        else:
            self.shared_feature = nn.Linear(alignment.dim, feature_dim)
        self.dual_path = dual_path
        self.class_logits = nn.Linear(feature_dim, settings.num_classes + 1)
        self.box_deltas = nn.Linear(feature_dim, 4)
        self._initialise(init)
        if alignment.offset_init != "random":
            start_at_boxes(self.alignments, alignment)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        keys, mimic = cfg.MODEL.MIMICDET.STUDENT, cfg.MODEL.MIMICDET.MIMIC
        levels = [input_shape[name] for name in cfg.MODEL.RPN.IN_FEATURES]
        in_features = list(keys.IN_FEATURES or cfg.MODEL.RPN.IN_FEATURES)
        maps = level_shapes(_IN_FEATURES, in_features, input_shape)
        if any(own.stride % x.stride for own, x in zip(levels, maps)):
            raise UserError(
                f"{_IN_FEATURES} {in_features} must have the strides of MODEL.RPN.IN_FEATURES "
                f"{list(cfg.MODEL.RPN.IN_FEATURES)} or whole fractions of them"
            )
        check_choice("MODEL.MIMICDET.MIMIC.SAMPLES", mimic.SAMPLES, MIMIC_SAMPLES)
        check_choice("MODEL.MIMICDET.STUDENT.OFFSET_INIT", keys.OFFSET_INIT, OFFSET_INITS)
        return {
            "in_channels": maps[0].channels,
            "in_features": in_features,
            "scales": [own.stride // x.stride for own, x in zip(levels, maps)],
            "settings": HeadSettings.from_config(cfg, keys),
            "alignment": AlignmentSettings(
                name=keys.ALIGNMENT,
                kernel_sizes=tuple(keys.KERNEL_SIZES),
                dim=keys.ALIGNMENT_DIM,
                offset_dims=tuple(keys.OFFSET_DIMS),
                offset_init=keys.OFFSET_INIT,
                anchor_sizes=tuple(anchor_scales(cfg, levels)),
                delta_weights=tuple(cfg.MODEL.RPN.BBOX_REG_WEIGHTS),
            ),
            "training": StudentTraining(
                keys.HARD_MINING_TOPK,
                keys.MAX_REG_POSITIVES,
                keys.REG_NORMALIZER,
                mimic.ENABLED and mimic.SAMPLES == "sampled_and_mined",
            ),
            "feature_dim": keys.FEATURE_DIM,
            "dual_path": keys.DUAL_PATH,
            "detach_guidance": keys.DETACH_GUIDANCE,
            "sparse": keys.SPARSE,
            "init": keys.INIT,
        }

    def _initialise(self, init: str) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)
        if init == "he":
            names = ("class_feature", "box_feature", "shared_feature")
            hidden = [getattr(self, name) for name in names if hasattr(self, name)]
            for alignment in self.alignments.values():
                hidden += alignment.hidden_layers()
            for module in hidden:
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")

    @property
    def layers(self) -> list[AlignmentLayer]:
        """The alignment layer of each level."""
        return [self.alignments[name] for name in self.layer_names]

    def forward(
        self,
        features: Mapping[str, Tensor],
        delta_maps: list[Tensor],
        locations: Sequence[Tensor],
        reader: type[PyramidReader] | None = None,
    ) -> HeadPredictions:
        """
        Args:
            features: the backbone's maps by name, (N, C, Hl, Wl); those of in_features are read.
            delta_maps: L x (N, 4, Hl, Wl), the refinement module's deltas.
            locations: N x (Ri,) int64 in [0, R): where the outputs are requested.
            reader: how the maps are read; None: as SPARSE says.

        Returns:
            predictions for B = sum of Ri boxes, image after image; of another reader, in its shape.
        """
        pyramid = self.pyramid(features, delta_maps, locations, reader)
        return self.predict(F.relu(pyramid.read(self.layers)))

    def pyramid(
        self,
        features: Mapping[str, Tensor],
        delta_maps: list[Tensor],
        locations: Sequence[Tensor],
        reader: type[PyramidReader] | None = None,
    ) -> PyramidReader:
        """How the head reads its maps; arguments as of forward."""
        if self.detach_guidance:
            delta_maps = [x.detach() for x in delta_maps]
        reader = reader or (SparsePyramid if self.sparse else DensePyramid)
        maps = [features[name] for name in self.in_features]
        return reader(maps, delta_maps, locations, self.scales)

    def predict(self, aligned: Tensor) -> HeadPredictions:
        """aligned: (..., alignment_dim), channels last; outputs keep the leading dimensions."""
        if self.dual_path:
            class_features = F.relu(self.class_feature(aligned))
            box_features = F.relu(self.box_feature(aligned))
        else:
            class_features = box_features = F.relu(self.shared_feature(aligned))
        return HeadPredictions(
            pred_class_logits=self.class_logits(class_features),
            pred_box_deltas=self.box_deltas(box_features),
            class_features=class_features,
            box_features=box_features,
        )

    def forward_training(
        self,
        features: Mapping[str, Tensor],
        delta_maps: list[Tensor],
        proposals: list[Instances],
        sampled: list[Tensor],
    ) -> tuple[dict[str, Tensor], HeadPredictions, list[Tensor]]:
        """
        The losses over the proposal set, and the predictions that are mimicked.

        Most of the proposals train nothing: only their hardness is needed. Sparse, the
        head runs on all of them without gradients, then again on those that train; a gradient
        costs twice the forward pass. The numbers are the same.

        Args:
            features, delta_maps: see forward; proposals: N labelled proposal sets.
            sampled: N x (bi,) indices into each image's proposals: the T-head's boxes.

        Returns:
            loss_student_cls over each image's hardest boxes and loss_student_loc over a random
            sample of its positives (4.1); the predictions at the mimicked boxes; N x their indices,
            which are `sampled`, and behind them the hardest where mimic_mined says so.
        """
        boxes, counts = LabelledBoxes.of(proposals), [len(x) for x in proposals]
        locations = [x.locations for x in proposals]
        if self.sparse:
            with torch.no_grad(), fresh_casts(delta_maps[0].device):
                logits = self(features, delta_maps, locations).pred_class_logits
        else:
            predictions = self(features, delta_maps, locations)
            logits = predictions.pred_class_logits
        mined, positive = self.select(logits, boxes, counts)
        queried = _joined(sampled, mined, counts) if self.selection.mimic_mined else sampled
        mimicked = flat_indices(queried, counts)
        used, index = torch.cat([mined, positive, mimicked]).unique(return_inverse=True)
        if self.sparse:
            images = image_indices(counts, used.device)[used]
            per_image = images.bincount(minlength=len(counts)).tolist()
            predictions = self(features, delta_maps, torch.cat(locations)[used].split(per_image))
        else:
            predictions = predictions.select(used)
        mined, positive, mimicked = index.split([len(mined), len(positive), len(mimicked)])
        losses = self.losses(predictions, boxes.select(used), mined, positive)
        return losses, predictions.select(mimicked), queried

    def losses(
        self, predictions: HeadPredictions, boxes: LabelledBoxes, mined: Tensor, positive: Tensor
    ) -> dict[str, Tensor]:
        """
        loss_student_cls and loss_student_loc (4.1).

        Args:
            predictions, boxes: B boxes of all images.
            mined, positive: indices in [0, B) of those that train (classification, regression).
        """
        cls_loss = classification_loss(
            predictions.pred_class_logits[mined], boxes.gt_classes[mined]
        )
        divisor = mined if self.selection.reg_normalizer == "mined" else positive
        loc_loss = regression_loss(
            predictions.pred_box_deltas[positive],
            boxes.select(positive),
            self.settings.box2box_transform,
            max(len(divisor), 1),
        )
        return {
            "loss_student_cls": self.settings.loss_weights[0] * cls_loss,
            "loss_student_loc": self.settings.loss_weights[1] * loc_loss,
        }

    @torch.no_grad()
    def select(
        self, class_logits: Tensor, boxes: LabelledBoxes, counts: list[int]
    ) -> tuple[Tensor, Tensor]:
        """
        Which boxes train: each image's hardest, and a random sample of its positives (4.1).

        Args:
            class_logits: (B, K + 1); boxes: the same B; counts: how many of them each image has.

        Returns:
            indices in [0, B) for (classification, regression).
        """
        # An ignored box has no loss and must not be mined before those that have one.
        hardness = F.cross_entropy(
            class_logits.float(), boxes.gt_classes, reduction="none", ignore_index=-1
        ).masked_fill(boxes.gt_classes < 0, -1.0)
        foreground = boxes.foreground(self.settings.num_classes)
        mined, positive, start = [], [], 0
        for count in counts:
            part = slice(start, start + count)
            mined.append(start + mine_hard(hardness[part], self.selection.hard_mining_topk))
            matched = torch.nonzero(foreground[part]).squeeze(1)
            positive.append(start + sample(matched, self.selection.max_reg_positives))
            start += count
        mined = torch.cat(mined)
        return mined[boxes.gt_classes[mined] >= 0], torch.cat(positive)


def _joined(sampled: list[Tensor], mined: Tensor, counts: list[int]) -> list[Tensor]:
    """
    Each image's sampled boxes, then those of its mined ones that were not sampled.

    Args:
        sampled: N x (bi,) indices into the image's boxes; mined: indices into those of all images.
        counts: how many boxes each image has.
    """
    joined, start = [], 0
    for own, count in zip(sampled, counts):
        hard = mined[(mined >= start) & (mined < start + count)] - start
        joined.append(torch.cat([own, hard[~torch.isin(hard, own)]]))
        start += count
    return joined

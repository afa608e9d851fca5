"""The S-head: the one-stage detection head, the student (3.3)."""

from collections.abc import Sequence

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F

from ..layers import GuidedAlignment, Linear, RowLayout, build_alignment, fresh_casts, pyramid_rows
from ..losses import classification_loss
from ..structures import HeadPredictions, LabelledBoxes, flat_indices, split_positions
from ..targets import draw, mine_hard
from .labels import HeadSettings, cat_labelled, regression_loss

INITS = ("gaussian", "he")
OFFSET_INITS = ("random", "box")
REG_NORMALIZERS = ("mined", "positives")


class StudentHead(nn.Module):
    """
    Alignment layer, then for each branch a 1x1 conv to the mimicked feature and one to the output.

    The 1x1 convs are linear layers on positions: what is asked for at some positions is computed
    there alone, which changes no number.
    """

    @configurable
    def __init__(
        self,
        *,
        in_channels: int,
        settings: HeadSettings,
        alignment: str,
        kernel_sizes: Sequence[int],
        alignment_dim: int,
        offset_dims: Sequence[int],
        feature_dim: int,
        dual_path: bool,
        detach_guidance: bool,
        sparse: bool,
        init: str,
        offset_init: str,
        anchor_sizes: Sequence[float],
        delta_weights: Sequence[float],
        hard_mining_topk: int,
        max_reg_positives: int,
        reg_normalizer: str,
    ):
        """
        Args:
            in_channels: channels of every level; settings: what both heads share.
            alignment: a name of layers.ALIGNMENTS; kernel_sizes: its kernel on each level. Levels
                of equal kernel share one layer (3.3: P3 has its own 3x3, P4..P7 share a 5x5).
            alignment_dim, offset_dims, feature_dim: widths.
            dual_path: False: one feature feeds both outputs (Table 3's light and heavy rows).
            detach_guidance: the deltas that guide the offsets carry no gradient.
            sparse: compute the alignment layer at the asked positions alone; False: on whole maps.
                The numbers and the state_dict are the same.
            init: "gaussian" or "he".
            offset_init: "random" or "box"; anchor_sizes: side of each level's anchors in units of
                its stride, delta_weights: of the refinement module's deltas, both for "box".
            hard_mining_topk, max_reg_positives: boxes an image that train the branches (4.1).
            reg_normalizer: "mined" or "positives".
        """
        super().__init__()
        _check_name("INIT", init, INITS)
        _check_name("OFFSET_INIT", offset_init, OFFSET_INITS)
        _check_name("REG_NORMALIZER", reg_normalizer, REG_NORMALIZERS)
        self.settings = settings
        self.hard_mining_topk = hard_mining_topk
        self.max_reg_positives = max_reg_positives
        self.reg_normalizer = reg_normalizer
        self.kernel_sizes = list(kernel_sizes)
        self.detach_guidance = detach_guidance
        self.sparse = sparse
        self.alignments = nn.ModuleDict(
            {
                f"k{k}": build_alignment(alignment, in_channels, alignment_dim, k, offset_dims)
                for k in sorted(set(kernel_sizes))
            }
        )
        if dual_path:
            self.class_feature = Linear(alignment_dim, feature_dim)
            self.box_feature = Linear(alignment_dim, feature_dim)
        else:
            self.shared_feature = Linear(alignment_dim, feature_dim)
        self.dual_path = dual_path
        self.class_logits = Linear(feature_dim, settings.num_classes + 1)
        self.box_deltas = Linear(feature_dim, 4)
        self._initialise(init)
        if offset_init == "box":
            self._start_at_boxes(anchor_sizes, delta_weights)

    @classmethod
    def from_config(cls, cfg, input_shape: dict[str, ShapeSpec]):
        keys = cfg.MODEL.MIMICDET.STUDENT
        in_features = cfg.MODEL.RPN.IN_FEATURES
        return {
            "in_channels": input_shape[in_features[0]].channels,
            "settings": HeadSettings.from_config(cfg, keys),
            "alignment": keys.ALIGNMENT,
            "kernel_sizes": keys.KERNEL_SIZES,
            "alignment_dim": keys.ALIGNMENT_DIM,
            "offset_dims": keys.OFFSET_DIMS,
            "feature_dim": keys.FEATURE_DIM,
            "dual_path": keys.DUAL_PATH,
            "detach_guidance": keys.DETACH_GUIDANCE,
            "sparse": keys.SPARSE,
            "init": keys.INIT,
            "offset_init": keys.OFFSET_INIT,
            "anchor_sizes": _anchor_sizes(cfg, input_shape),
            "delta_weights": cfg.MODEL.RPN.BBOX_REG_WEIGHTS,
            "hard_mining_topk": keys.HARD_MINING_TOPK,
            "max_reg_positives": keys.MAX_REG_POSITIVES,
            "reg_normalizer": keys.REG_NORMALIZER,
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

    def _start_at_boxes(self, sizes: Sequence[float], delta_weights: Sequence[float]) -> None:
        for kernel in set(self.kernel_sizes):
            layer = self.alignments[f"k{kernel}"]
            wanted = {size for size, k in zip(sizes, self.kernel_sizes) if k == kernel}
            if not isinstance(layer, GuidedAlignment) or len(wanted) != 1:
                raise ValueError(
                    "MODEL.MIMICDET.STUDENT.OFFSET_INIT 'box' needs ALIGNMENT 'guided' and levels "
                    f"of one kernel whose anchors are alike in strides, got {sorted(wanted)}"
                )
            layer.start_at_box(wanted.pop(), delta_weights)

    def forward(
        self, features: list[Tensor], delta_maps: list[Tensor], positions: list[Tensor]
    ) -> HeadPredictions:
        """
        Args:
            features: L x (N, C, Hl, Wl).
            delta_maps: L x (N, 4, Hl, Wl), the refinement module's deltas.
            positions: N x (Ri,) int64 in [0, R): where the outputs are wanted.

        Returns:
            predictions for B = sum of Ri boxes, image after image.
        """
        return self.predict(self.aligned_features(features, delta_maps, positions))

    def aligned_features(
        self, features: list[Tensor], delta_maps: list[Tensor], positions: list[Tensor]
    ) -> Tensor:
        """The alignment layer's output, after its ReLU, at the positions: (B, alignment_dim)."""
        if self.detach_guidance:
            delta_maps = [x.detach() for x in delta_maps]
        if self.sparse:
            aligned = self._aligned_at(features, delta_maps, positions)
        else:
            layers = [self.alignments[f"k{kernel}"] for kernel in self.kernel_sizes]
            maps = [layer(*inputs) for layer, *inputs in zip(layers, features, delta_maps)]
            rows = pyramid_rows(maps).unflatten(0, (len(positions), -1))
            aligned = torch.cat([rows[i, wanted] for i, wanted in enumerate(positions)])
        return F.relu(aligned)

    def _aligned_at(
        self, features: list[Tensor], delta_maps: list[Tensor], positions: list[Tensor]
    ) -> Tensor:
        sizes = tuple(tuple(x.shape[-2:]) for x in features)
        images = split_positions([len(x) for x in positions], features[0].device)
        wanted = torch.cat(positions)
        aligned, order = [], []
        for kernel in sorted(set(self.kernel_sizes)):
            sharing = tuple(i for i, k in enumerate(self.kernel_sizes) if k == kernel)
            layout = RowLayout.of(sizes, sharing, wanted.device)
            levels = layout.levels(wanted)
            chosen = torch.nonzero(sum(levels == i for i in sharing)).squeeze(1)
            places = layout.locate(wanted[chosen], images[chosen])
            rows, guidance = (
                pyramid_rows([maps[i] for i in sharing]) for maps in (features, delta_maps)
            )
            # A layer that no position needs takes part as well: it has a gradient in every step.
            aligned.append(self.alignments[f"k{kernel}"].at(rows, guidance[places.row], places))
            order.append(chosen)
        return torch.cat(aligned)[torch.cat(order).argsort()]

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
        features: list[Tensor],
        delta_maps: list[Tensor],
        proposals: list[Instances],
        sampled: list[Tensor],
    ) -> tuple[dict[str, Tensor], HeadPredictions]:
        """
        The losses over the proposal set, and the predictions that are mimicked.

        Most of the proposals train nothing: they are only asked how hard they are. Sparse, the
        head runs on all of them without gradients, then again on those that train; a gradient
        costs twice the forward pass. The numbers are the same.

        Args:
            features, delta_maps: see forward; proposals: N labelled proposal sets.
            sampled: N x (bi,) indices into each image's proposals: the T-head's boxes.

        Returns:
            loss_student_cls over each image's hardest boxes and loss_student_loc over a draw of
            its positives (4.1); the predictions at the sampled boxes, (sum of bi, ...).
        """
        boxes, counts = cat_labelled(proposals), [len(x) for x in proposals]
        positions = [x.positions for x in proposals]
        if self.sparse:
            with torch.no_grad(), fresh_casts(features[0].device):
                logits = self(features, delta_maps, positions).pred_class_logits
        else:
            predictions = self(features, delta_maps, positions)
            logits = predictions.pred_class_logits
        mined, positive = self.select(logits, boxes, counts)
        mimicked = flat_indices(sampled, counts)
        used, index = torch.cat([mined, positive, mimicked]).unique(return_inverse=True)
        if self.sparse:
            images = split_positions(counts, used.device)[used]
            per_image = images.bincount(minlength=len(counts)).tolist()
            predictions = self(features, delta_maps, torch.cat(positions)[used].split(per_image))
        else:
            predictions = predictions.select(used)
        mined, positive, mimicked = index.split([len(mined), len(positive), len(mimicked)])
        losses = self.losses(predictions, boxes.select(used), mined, positive)
        return losses, predictions.select(mimicked)

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
        divisor = mined if self.reg_normalizer == "mined" else positive
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
        Which boxes train: each image's hardest and a draw of its positives (4.1).

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
            mined.append(start + mine_hard(hardness[part], self.hard_mining_topk))
            found = torch.nonzero(foreground[part]).squeeze(1)
            positive.append(start + draw(found, self.max_reg_positives))
            start += count
        mined = torch.cat(mined)
        return mined[boxes.gt_classes[mined] >= 0], torch.cat(positive)


def _check_name(key: str, name: str, allowed: Sequence[str]) -> None:
    if name not in allowed:
        raise ValueError(f"MODEL.MIMICDET.STUDENT.{key} must be one of {allowed}, got {name!r}")


def _anchor_sizes(cfg, input_shape: dict[str, ShapeSpec]) -> list[float]:
    """Side of the anchors of each level of MODEL.RPN.IN_FEATURES in units of its stride."""
    names = cfg.MODEL.RPN.IN_FEATURES
    sizes = cfg.MODEL.ANCHOR_GENERATOR.SIZES
    sizes = sizes if len(sizes) == len(names) else list(sizes) * len(names)
    return [size[0] / input_shape[name].stride for size, name in zip(sizes, names)]

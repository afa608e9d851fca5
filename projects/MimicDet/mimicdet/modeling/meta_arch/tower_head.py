"""The head that ATSS and GFL share: two towers, a learnt scale for each level's boxes."""

import math

import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from torch import Tensor, nn


class TowerHead(nn.Module):
    """Tower to class logits; tower to box values and, if requested, a centre-ness logit."""

    def __init__(self, cfg, input_shape: list[ShapeSpec], box_dim: int, has_centerness: bool):
        """
        Args:
            cfg: the keys of MODEL.RETINANET.
            input_shape: of the levels; each has a scale of its own for its box values.
            box_dim: values that describe a box.
            has_centerness: one more output on the box tower.
        """
        super().__init__()
        keys, in_channels = cfg.MODEL.RETINANET, input_shape[0].channels
        self.class_tower = _tower(in_channels, keys.NUM_CONVS, keys.NORM)
        self.box_tower = _tower(in_channels, keys.NUM_CONVS, keys.NORM)
        self.class_logits = nn.Conv2d(in_channels, keys.NUM_CLASSES, kernel_size=3, padding=1)
        self.box_values = nn.Conv2d(in_channels, box_dim, kernel_size=3, padding=1)
        self.centerness = (
            nn.Conv2d(in_channels, 1, kernel_size=3, padding=1) if has_centerness else None
        )
        self.box_scales = nn.Parameter(torch.ones(len(input_shape)))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(
            self.class_logits.bias, -math.log((1 - keys.PRIOR_PROB) / keys.PRIOR_PROB)
        )

    def forward(self, features: list[Tensor]) -> list[list[Tensor]]:
        """
        Args:
            features: L x (N, C, Hl, Wl).

        Returns:
            class logits L x (N, K, Hl, Wl), box values L x (N, box_dim, Hl, Wl) and, with
            has_centerness, logits L x (N, 1, Hl, Wl).
        """
        logits, values, centerness = [], [], []
        for feature, scale in zip(features, self.box_scales):
            logits.append(self.class_logits(self.class_tower(feature)))
            box_feature = self.box_tower(feature)
            values.append(self.box_values(box_feature) * scale)
            if self.centerness is not None:
                centerness.append(self.centerness(box_feature))
        return [logits, values] + ([centerness] if self.centerness is not None else [])


def _tower(channels: int, num_convs: int, norm: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(num_convs):
        layers.append(
            Conv2d(
                channels,
                channels,
                kernel_size=3,
                padding=1,
                bias=norm == "",
                norm=get_norm(norm, channels),
            )
        )
        layers.append(nn.ReLU())
    return nn.Sequential(*layers)

"""
torchvision's classification networks as Detectron2 backbones.

The modules keep torchvision's names ("features.0.0.weight"), so that its weights need no renaming.
Feature maps have the names of Detectron2's ResNets by stride: res2 4, res3 8, res4 16, res5 32.
"""

from collections.abc import Sequence
from functools import partial

import fvcore.nn.weight_init as weight_init
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, vgg

from ...utils.errors import UserError, check_choice

STRIDES = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}

# The VGG paper's names of its configurations, by depth.
_VGG_NAMES = {11: "A", 13: "B", 16: "D", 19: "E"}


class StagedBackbone(Backbone):
    """A sequence of layers whose output after some of them are the feature maps."""

    def __init__(
        self,
        layers: nn.Sequential,
        stem_length: int,
        stage_ends: Sequence[int],
        stage_channels: Sequence[int],
        out_features: Sequence[str],
        freeze_at: int = 0,
    ):
        """
        Args:
            layers: the network without its classifier.
            stem_length: how many layers come before res2.
            stage_ends: for res2, res3, res4 and res5 how many layers have run when it is done.
            stage_channels: of the four.
            out_features: names of the maps to return. Layers behind the last of them are left out:
                they would have parameters without gradients.
            freeze_at: as in Detectron2's ResNet: 0 nothing, 1 the stem, 2 res2 too, and so on.

        Raises:
            UserError: unknown feature names.
        """
        super().__init__()
        unknown = [name for name in out_features if name not in STRIDES]
        if unknown or not out_features:
            raise UserError(f"OUT_FEATURES must be some of {list(STRIDES)}, got {out_features}")
        self._ends = {n: end for n, end in zip(STRIDES, stage_ends) if n in out_features}
        self._channels = dict(zip(STRIDES, stage_channels))
        self.features = layers[: max(self._ends.values())]
        num_frozen = [0, stem_length, *stage_ends][freeze_at]
        for index, layer in enumerate(self.features[:num_frozen]):
            for parameter in layer.parameters():
                parameter.requires_grad = False
            self.features[index] = FrozenBatchNorm2d.convert_frozen_batchnorm(layer)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: (N, 3, H, W) normalised images -> maps by name: (N, C, H / stride, W / stride)."""
        names = {end: name for name, end in self._ends.items()}
        outputs = {}
        for count, layer in enumerate(self.features, 1):
            x = layer(x)
            if count in names:
                outputs[names[count]] = x
        return outputs

    def output_shape(self) -> dict[str, ShapeSpec]:
        return {
            name: ShapeSpec(channels=self._channels[name], stride=STRIDES[name])
            for name in self._ends
        }

    @property
    def size_divisibility(self) -> int:
        """Maps of strides that double need not fit; a pyramid on top asks for what it needs."""
        return 0


def _check_channels(input_shape: ShapeSpec) -> None:
    if input_shape.channels != 3:
        raise UserError(
            "MODEL.PIXEL_MEAN must have 3 values: torchvision's networks take 3 channels, not "
            f"{input_shape.channels}"
        )


@BACKBONE_REGISTRY.register()
def build_mobilenet_v2_backbone(cfg, input_shape: ShapeSpec) -> StagedBackbone:
    """torchvision's MobileNetV2 of MODEL.MOBILENET_V2.WIDTH up to its last bottleneck."""
    _check_channels(input_shape)
    keys = cfg.MODEL.MOBILENET_V2
    network = mobilenet_v2(
        weights=None, width_mult=keys.WIDTH, norm_layer=partial(get_norm, keys.NORM)
    )
    # Layer 0: conv, 1: bottleneck of stride 2; then bottlenecks of which 2, 4, 7 and 14 halve the
    # map; layer 18 widens the last map for the classifier.
    stage_ends = (4, 7, 14, 18)
    channels = [network.features[end - 1].out_channels for end in stage_ends]
    return StagedBackbone(
        network.features, 2, stage_ends, channels, keys.OUT_FEATURES, cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
def build_vgg_backbone(cfg, input_shape: ShapeSpec) -> StagedBackbone:
    """
    torchvision's VGG of MODEL.VGG.DEPTH without its fully connected layers.

    Stem: conv1 and conv2 with their pooling. A stage's map is taken before its pooling, where
    Faster R-CNN takes conv5; res5 is the map behind the last pooling.
    """
    _check_channels(input_shape)
    keys = cfg.MODEL.VGG
    check_choice("MODEL.VGG.DEPTH", keys.DEPTH, _VGG_NAMES)
    # Not torchvision.models.vgg16: its classifier is nine tenths of its parameters.
    layers = vgg.make_layers(vgg.cfgs[_VGG_NAMES[keys.DEPTH]])
    layers = nn.Sequential(*_with_norm(layers, keys.NORM))
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            weight_init.c2_msra_fill(layer)
    pools = [i for i, layer in enumerate(layers) if isinstance(layer, nn.MaxPool2d)]
    return StagedBackbone(
        layers,
        pools[1] + 1,
        (pools[2], pools[3], pools[4], pools[4] + 1),
        (256, 512, 512, 512),
        keys.OUT_FEATURES,
        cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _with_norm(layers: nn.Sequential, norm: str) -> list[nn.Module]:
    """The layers with a norm behind each conv: those of torchvision's vgg*_bn for "BN"."""
    result: list[nn.Module] = []
    for layer in layers:
        result.append(layer)
        if norm and isinstance(layer, nn.Conv2d):
            result.append(get_norm(norm, layer.out_channels))
    return result

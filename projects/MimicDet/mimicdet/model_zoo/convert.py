"""Bring torchvision's ImageNet backbones into Detectron2's format."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from ..checkpoint.registry import read_state_dict
from ..utils.errors import UserError, file_errors, make_folder
from ..utils.timm_networks import from_torchvision

# Depths 18 to 152 and ResNeXt: everything that Detectron2's ResNet can be configured to; and those
# that build_timm_backbone has under other names.
ARCHITECTURES = (
    *(f"resnet{depth}" for depth in (18, 34, 50, 101, 152)),
    *(f"resnext{size}" for size in ("50_32x4d", "101_32x8d", "101_64x4d")),
    "mobilenet_v2",
    *(f"vgg{depth}{norm}" for norm in ("", "_bn") for depth in (11, 13, 16, 19)),
)

# What torchvision's weights expect of an image, in Detectron2's unit (0 to 255, RGB).
PIXEL_MEAN = [123.675, 116.28, 103.53]
PIXEL_STD = [58.395, 57.12, 57.375]

_RENAMES = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match.group(1)) + 1}."),
    (r"(^|\.)bn(\d)\.", r"\1conv\2.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    # VGG's fully connected layers, which Faster R-CNN takes over as its second stage.
    (r"^classifier\.0\.", "box_head.fc1."),
    (r"^classifier\.3\.", "box_head.fc2."),
)
# The classifier, and the batch norms' step counters that Detectron2's FrozenBN has not.
_DROPPED = re.compile(r"^(fc|classifier)\.|\.num_batches_tracked$")
_RESNET = re.compile(
    r"^(stem\.conv1|res[2-5]\.\d+\.(conv[1-3]|shortcut))"
    r"(\.weight|\.norm\.(weight|bias|running_mean|running_var))$"
)
_STAGED = re.compile(r"^features\.\d+\.|^box_head\.fc[12]\.(weight|bias)$")


def detectron2_key(key: str) -> str:
    """Detectron2's name of a parameter of a torchvision network."""
    for pattern, replacement in _RENAMES:
        key = re.sub(pattern, replacement, key)
    return key


def convert_state_dict(state_dict: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """
    Rename the parameters of a torchvision network to those of the Detectron2 backbone.

    The classifier is dropped, but VGG's first two fully connected layers become the box head's. A
    MobileNetV2 or VGG gets the names of TimmBackbone. Nothing is transposed or rescaled: all store
    conv weights as (out, in / groups, k, k).

    Raises:
        UserError: a key is none of such a network's, or a stage is missing.
    """
    is_staged = any(key.startswith("features.") for key in state_dict)
    if is_staged and "conv1.weight" not in state_dict:
        known, networks, parts = _STAGED, "MobileNetV2 or VGG", ()
    else:
        known, networks, parts = (
            _RESNET,
            "ResNet or ResNeXt",
            ("stem", "res2", "res3", "res4", "res5"),
        )
    converted = {}
    for key, value in state_dict.items():
        name = detectron2_key(key)
        if _DROPPED.search(name):
            continue
        if not known.match(name):
            raise UserError(f"{key!r} is no parameter of a torchvision {networks}")
        converted[from_torchvision(name)] = value.detach().cpu().numpy()
    for part in parts:
        if not any(key.startswith(part + ".") for key in converted):
            raise UserError(f"The weights have no {part}: not a whole ResNet")
    return converted


def load_torchvision_weights(architecture: str, weights: str = "IMAGENET1K_V1") -> dict[str, Any]:
    """Published weights of torchvision, fetched to its cache; see convert_backbone."""
    if architecture not in ARCHITECTURES:
        raise UserError(f"Unknown backbone {architecture!r}; known: {', '.join(ARCHITECTURES)}")
    enum = torchvision.models.get_model_weights(architecture)
    if weights not in enum.__members__:
        raise UserError(
            f"{architecture} has no weights {weights!r}; known: {', '.join(enum.__members__)}"
        )
    with file_errors():  # a download that fails
        state = enum[weights].get_state_dict(progress=True, check_hash=True, weights_only=True)
        return dict(state)


def convert_backbone(source: str, output: str | Path, weights: str = "IMAGENET1K_V1") -> int:
    """
    Write torchvision's backbone as a .pkl that MODEL.WEIGHTS takes.

    Args:
        source: one of ARCHITECTURES, or a file with such a model's weights; see read_state_dict.
        output: the .pkl to write; its folder is made.
        weights: a member of the architecture's weight enum in torchvision; unused for a file.

    Returns:
        Number of arrays written.

    Raises:
        UserError: unknown architecture or weights, another network's state dict, or `output` does
            not end in .pkl (by which Detectron2 knows the format).
    """
    output = Path(output)
    if output.suffix != ".pkl":
        raise UserError(f"The output must end in .pkl, not {output.name!r}")
    is_file = source.endswith((".pth", ".pt")) or Path(source).is_file()
    state_dict = read_state_dict(source) if is_file else load_torchvision_weights(source, weights)
    model = convert_state_dict(state_dict)
    make_folder(output.parent)
    with file_errors(), open(output, "wb") as file:
        # matching_heuristics: Detectron2 finds the backbone inside whatever model it is part of.
        pickle.dump(
            {"model": model, "__author__": "torchvision", "matching_heuristics": True}, file
        )
    return len(model)

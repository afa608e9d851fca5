"""Detectors of several families, small enough to teach each other in a moment."""

from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from mimicdet import Distiller, build_distiller
from mimicdet.config import load_config
from tests.helpers import NUM_CLASSES, P3_BOX, P4_BOX, make_input, small_cfg

INPUTS = [make_input(boxes=[P3_BOX, P4_BOX]), make_input((61, 97), boxes=[], seed=1)]

NARROW = {
    "MODEL.DEVICE": "cpu",
    "MODEL.BACKBONE.FREEZE_AT": 0,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 16,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.RESNETS.NORM": "BN",
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.ROI_HEADS.NUM_CLASSES": NUM_CLASSES,
    "MODEL.RETINANET.NUM_CLASSES": NUM_CLASSES,
}
RETINANET = {
    "MODEL.META_ARCHITECTURE": "RetinaNet",
    "MODEL.BACKBONE.NAME": "build_retinanet_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res3", "res4", "res5"],
    "MODEL.RETINANET.NUM_CONVS": 1,
    "MODEL.ANCHOR_GENERATOR.SIZES": [[x] for x in (32, 64, 128, 256, 512)],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[0.5, 1.0]],
}
FASTER_RCNN = {
    "MODEL.MASK_ON": False,
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": 50,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": 50,
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 1,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 8,
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": 3,
}
ONE_ANCHOR = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [[x] for x in (64, 128, 256, 512, 1024)],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[1.0]],
}
DENSE = {
    "RetinaNet": RETINANET,
    **{name: {**RETINANET, **ONE_ANCHOR} for name in ("FCOS", "ATSS", "GFL")},
}
DENSE["MultiClassRPN"] = {**RETINANET, "MODEL.RPN.IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"]}
FAMILIES = (*DENSE, "GeneralizedRCNN", "MimicDet")


def tiny_cfg(family: str, **changes: Any) -> CfgNode:
    """
    A small config of the family.

    Args:
        changes: keys with "__" for a dot, "MODEL" left out where it comes first.
    """
    if family == "MimicDet":
        cfg = small_cfg()
    else:
        cfg = load_config("")
        settings = {**NARROW, **DENSE.get(family, FASTER_RCNN)}
        settings["MODEL.META_ARCHITECTURE"] = family
        cfg.merge_from_list([x for pair in settings.items() for x in pair])
    for key, value in changes.items():
        name = key.replace("__", ".")
        top = name.split(".")[0]
        cfg.merge_from_list([name if top in cfg else f"MODEL.{name}", value])
    return cfg


def build_tiny(family: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A seeded model in training mode, batch norms filled with the statistics of INPUTS."""
    torch.manual_seed(seed)
    model = build_model(tiny_cfg(family, **changes))
    model.train()
    if family == "MimicDet":  # without pretrained weights frozen batch norms let activations grow
        model.proposal_generator.anchor_deltas.weight.data.mul_(1e-3)
        return model
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        model.backbone(model.preprocess_image(INPUTS).tensor)
    for norm in norms:
        norm.momentum = 0.1
    if family in DENSE:  # predictions that differ from place to place
        for layer in model.head.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.data.mul_(4)
    return model


def write_teacher(folder: Path, family: str, seed: int = 5, **changes: Any) -> nn.Module:
    """teacher.yaml and teacher.pth of a seeded model, as training would leave them."""
    model = build_tiny(family, seed, **changes)
    (folder / "teacher.yaml").write_text(tiny_cfg(family, **changes).dump())
    torch.save({"model": model.state_dict()}, folder / "teacher.pth")
    return model


def taught_cfg(folder: Path, family: str, methods: list[str], **changes: Any) -> CfgNode:
    """The config of a student of the family, taught by the teacher in the folder."""
    pairing = {
        "DISTILLATION__METHODS": methods,
        "DISTILLATION__TEACHER__CONFIG_FILE": str(folder / "teacher.yaml"),
        "DISTILLATION__TEACHER__WEIGHTS": str(folder / "teacher.pth"),
    }
    return tiny_cfg(family, **{**pairing, **changes})


def distiller_of(cfg: CfgNode, seed: int = 0) -> Distiller:
    """A seeded student of the config with its methods, in training mode."""
    torch.manual_seed(seed)
    student = build_tiny(cfg.MODEL.META_ARCHITECTURE, seed)
    return build_distiller(cfg, student).train()


def losses_of(distiller: nn.Module, inputs: list = INPUTS, iteration: int = 0) -> dict[str, Any]:
    with EventStorage(iteration):
        return distiller(inputs)

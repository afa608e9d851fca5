"""configs/Distillation/detectors: what every yaml holds; one of each family trains."""

import math
import re

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from mimicdet import model_zoo
from tests.helpers import one_of_each

FOLDER = "Distillation/detectors/"
CONFIGS = [x for x in model_zoo.list_configs() if x.startswith(FOLDER)]
TRAIN_IMAGES = {
    ("coco_2017_train",): 118287,
    ("voc_2007_trainval", "voc_2012_trainval"): 5011 + 11540,
    ("voc_2007_trainval",): 5011,
}


def family(name: str) -> tuple[object, ...]:
    keys = model_zoo.get_config(name).MODEL
    frozen = keys.BACKBONE.FREEZE_AT, keys.RESNETS.NORM, keys.WEIGHTS == ""
    return keys.META_ARCHITECTURE, keys.BACKBONE.NAME, *frozen


FAMILIES = one_of_each(CONFIGS, family)


def get(name: str) -> CfgNode:
    return model_zoo.get_config(FOLDER + name)


def test_the_papers_detectors_are_there():
    names = {x.removeprefix(FOLDER).removesuffix(".yaml") for x in CONFIGS}
    for family in ("retinanet", "fcos", "atss", "gfl"):  # RM+PFI, Table 1
        assert {f"{family}_R_18_FPN_1x", f"{family}_R_50_FPN_1x"} <= names
    for backbone in ("R_101", "MobileNetV2", "MobileNetV2_half"):  # its Table 3
        assert f"retinanet_{backbone}_FPN_1x" in names
    assert {f"retinanet_R_{d}_FPN_2x" for d in (50, 101, 152)} <= names  # its Table 6
    assert {f"retinanet_R_{d}_FPN_voc" for d in (50, 101)} <= names  # its Table 7
    for backbone in ("R_101_C4", "R_101_half_C4", "R_50_C4", "VGG_16", "VGG_11"):  # FGFI, 2 and 3
        assert f"faster_rcnn_{backbone}_voc07" in names
    for backbone in ("R_101_C4", "R_101_half_C4", "R_50_FPN", "R_50_half_FPN"):  # FGFI, 4 and 5
        assert f"faster_rcnn_{backbone}_1x" in names
    assert {f"shuffledet_{width}_kitti" for width in ("1x", "0.5x", "0.25x")} <= names  # Table 1


@pytest.mark.parametrize(
    "pattern, epochs, drops",
    [(r".*_1x$", 12, (8, 11)), (r".*_2x$", 24, (16, 22)), (r".*_FPN_voc$", 18, (14, 16))],
)
def test_schedules_are_the_papers_epochs(pattern, epochs, drops):
    names = [x for x in CONFIGS if re.match(FOLDER + pattern, x.removesuffix(".yaml"))]
    assert names
    for name in names:
        cfg = model_zoo.get_config(name)
        iterations = TRAIN_IMAGES[cfg.DATASETS.TRAIN] / cfg.SOLVER.IMS_PER_BATCH
        assert cfg.SOLVER.IMS_PER_BATCH == 16
        assert cfg.SOLVER.STEPS == tuple(round(e * iterations) for e in drops), name
        assert cfg.SOLVER.MAX_ITER == round(epochs * iterations), name


def test_learning_rates():
    names = ("retinanet", "fcos", "atss", "gfl")
    assert {get(f"{x}_R_50_FPN_1x").SOLVER.BASE_LR for x in names} == {0.02}


def test_retinanets_anchors_are_detectron2s():
    sizes = get("retinanet_R_50_FPN_1x").MODEL.ANCHOR_GENERATOR.SIZES
    expected = [[x * 2 ** (i / 3) for i in range(3)] for x in (32, 64, 128, 256, 512)]
    for actual, reference in zip(sizes, expected):
        assert actual == pytest.approx(reference, rel=1e-12)


def test_pairs_see_the_same_images():
    """Teacher and student share a batch: one channel order and normalisation for all."""
    for name in CONFIGS:
        cfg = model_zoo.get_config(name)
        assert cfg.INPUT.FORMAT == "RGB" and cfg.MODEL.RESNETS.STRIDE_IN_1X1 is False, name
        assert cfg.MODEL.PIXEL_MEAN == [123.675, 116.28, 103.53], name
        assert cfg.MODEL.PIXEL_STD == [58.395, 57.12, 57.375], name


def test_yaml_is_plain():
    root = model_zoo.get_config_file(CONFIGS[0])
    folder = root[: root.index("Distillation/")] + "Distillation"
    for base in ("RetinaNet", "FCOS", "ATSS", "GFL", "FasterRCNN-C4", "FasterRCNN-FPN"):
        with open(f"{folder}/Base-{base}.yaml", encoding="utf-8") as file:
            assert isinstance(yaml.safe_load(file), dict)


@pytest.mark.parametrize("name", FAMILIES)
def test_builds_at_full_size(name):
    cfg = model_zoo.get_config(name)
    cfg.MODEL.DEVICE = "meta"
    with torch.device("meta"):
        model = build_model(cfg)
    assert type(model).__name__ == cfg.MODEL.META_ARCHITECTURE
    counts = [p.requires_grad for p in model.backbone.parameters()]
    assert all(counts) == (cfg.MODEL.BACKBONE.FREEZE_AT == 0)
    if cfg.MODEL.WEIGHTS == "":  # nothing untrained may be frozen
        assert all(counts)
        assert not any(isinstance(x, FrozenBatchNorm2d) for x in model.modules())


def reduced(name: str) -> CfgNode:
    """The config's structure at a size that a CPU trains in a moment."""
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50]
        + ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8]
        + ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.NORM", "BN"]
        + ["MODEL.FPN.OUT_CHANNELS", 64, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]
        + ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CLASSES", 3]
        + ["MODEL.RPN.POST_NMS_TOPK_TRAIN", 60, "MODEL.RETINANET.NUM_CONVS", 1]
        + ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32]
    )
    return cfg


def random_input(height: int = 96, width: int = 128) -> dict[str, object]:
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 56.0, 60.0], [30.0, 4.0, 120.0, 90.0]]))
    instances.gt_classes = torch.tensor([0, 2])
    return {"image": torch.randint(0, 256, (3, height, width)).float(), "instances": instances}


@pytest.mark.parametrize("name", FAMILIES)
def test_trains_a_step(name):
    torch.manual_seed(0)
    model = build_model(reduced(name)).train()
    with EventStorage():
        losses = model([random_input()])
    assert all(math.isfinite(loss.item()) for loss in losses.values()), losses
    sum(losses.values()).backward()
    # DistributedDataParallel refuses a parameter without a gradient.
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]

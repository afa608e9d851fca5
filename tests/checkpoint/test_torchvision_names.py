"""Checkpoints of detectors whose MobileNetV2 or VGG still had torchvision's names."""

import pickle

import pytest
import torch
import torchvision
from detectron2.modeling import build_model
from torch import nn

from mimicdet import model_zoo
from mimicdet.checkpoint import MimicCheckpointer, load_weights
from mimicdet.utils.timm_networks import from_torchvision

pytest.importorskip("timm")
BACKBONE, COUNTER = "network.model.", "num_batches_tracked"


def build(config: str) -> nn.Module:
    cfg = model_zoo.get_config(config)
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 8])
    return build_model(cfg)


@pytest.mark.parametrize(
    "config, architecture",
    [
        ("retinanet_MobileNetV2_FPN_1x", "mobilenet_v2"),  # FREEZE_AT 2
        ("retinanet_MobileNetV2_half_FPN_1x", "mobilenet_v2"),
        ("faster_rcnn_VGG_11_voc07", "vgg11"),
    ],
)
def test_they_load_as_before(config, architecture, tmp_path):
    model = build(config)
    with torch.device("meta"):
        source = torchvision.models.get_model(architecture, weights=None).state_dict()
    names = [key for key in source if not key.endswith(COUNTER)]
    own = {k: v for k, v in model.state_dict().items() if not k.endswith(COUNTER)}
    body = [key for key in own if BACKBONE in key]
    old = {key: key.partition(BACKBONE)[0] + name for key, name in zip(body, names)}
    assert len(old) > 10 and all("features." in name for name in old.values())
    state = {key: torch.rand_like(value) for key, value in own.items()}
    content = {old.get(key, key): value for key, value in reversed(state.items())}
    torch.save({"model": content}, tmp_path / "old.pth")
    load_weights(model, str(tmp_path / "old.pth"))  # all of it, or an error
    loaded = model.state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in state.items())


def test_backbones_that_were_converted_before_load(tmp_path):
    """The .pkl of tools/convert_backbone.py had torchvision's names."""
    model = build("retinanet_MobileNetV2_half_FPN_1x")
    source = torchvision.models.mobilenet_v2(width_mult=0.5).state_dict()
    arrays = {k: v.numpy() for k, v in source.items() if k.startswith("features.")}
    content = {"model": arrays, "__author__": "torchvision", "matching_heuristics": True}
    (tmp_path / "old.pkl").write_bytes(pickle.dumps(content))
    MimicCheckpointer(model).load(str(tmp_path / "old.pkl"))
    body = model.backbone.bottom_up.network.model
    assert torch.equal(body.conv_stem.weight, source["features.0.0.weight"])
    assert torch.equal(body.blocks[6][0].bn3.bias, source["features.17.conv.3.bias"])


@pytest.mark.parametrize(
    "key",
    [
        "backbone.network.model.features.0.weight",  # timm's VGG
        "network.model.features.denseblock1.denselayer1.conv1.weight",
        "student_head.features.conv.weight",
        "backbone.bottom_up.stem.conv1.weight",
        "features",
    ],
)
def test_other_names_are_left_alone(key):
    assert from_torchvision(key) == key

"""torchvision's backbones in Detectron2's ResNet: the same features."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from mimicdet import model_zoo
from mimicdet.model_zoo.convert import (
    convert_backbone,
    convert_state_dict,
    load_torchvision_weights,
)

REPOSITORY = Path(__file__).resolve().parents[2]

RESNETS = {
    "resnet18": ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64],
    "resnext50_32x4d": ["MODEL.RESNETS.NUM_GROUPS", 32, "MODEL.RESNETS.WIDTH_PER_GROUP", 4],
}


def random_torchvision_model(architecture: str) -> nn.Module:
    torch.manual_seed(0)
    model = torchvision.models.get_model(architecture, weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return model.eval()


def torchvision_features(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    x = model.maxpool(model.relu(model.bn1(model.conv1(images))))
    features = {}
    for stage in range(1, 5):
        x = getattr(model, f"layer{stage}")(x)
        features[f"res{stage + 1}"] = x
    return features


def detectron2_backbone(architecture: str) -> nn.Module:
    cfg = get_cfg()
    cfg.merge_from_list(
        ["MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]]
        + ["MODEL.RESNETS.STRIDE_IN_1X1", False]
        + RESNETS[architecture]
    )
    return build_resnet_backbone(cfg, ShapeSpec(channels=3))


def load_as_detector(backbone: nn.Module, weights: Path) -> None:
    """Load as MODEL.WEIGHTS is: into a model that the backbone is a part of."""
    detector = nn.Module()
    detector.backbone = nn.Module()
    detector.backbone.bottom_up = backbone
    DetectionCheckpointer(detector).load(str(weights))


@pytest.mark.parametrize("architecture", sorted(RESNETS))
def test_converted_weights_give_the_same_features(architecture, tmp_path):
    source = random_torchvision_model(architecture)
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    count = convert_backbone(str(tmp_path / "weights.pth"), tmp_path / "sub" / "weights.pkl")
    backbone = detectron2_backbone(architecture).eval()
    assert count == len(backbone.state_dict())
    load_as_detector(backbone, tmp_path / "sub" / "weights.pkl")
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        expected, actual = torchvision_features(source, images), backbone(images)
    for name, feature in expected.items():
        assert feature.std() > 1e-2, "a vanished feature would agree with anything"
        torch.testing.assert_close(actual[name], feature, rtol=1e-4, atol=1e-4)


def test_tool_converts_a_file_and_reports_errors(tmp_path):
    weights, output = tmp_path / "wrapped.pth", tmp_path / "out.pkl"
    torch.save({"state_dict": random_torchvision_model("resnet18").state_dict()}, weights)
    tool = [sys.executable, str(REPOSITORY / "tools" / "convert_backbone.py")]
    done = subprocess.run([*tool, str(weights), str(output)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert output.is_file() and "RGB" in done.stdout
    failed = subprocess.run(
        [*tool, str(tmp_path / "none.pth"), str(output)], capture_output=True, text=True
    )
    assert failed.returncode == 2
    assert "none.pth" in failed.stderr and "Traceback" not in failed.stderr


def test_foreign_parameters_are_refused():
    state_dict = random_torchvision_model("resnet18").state_dict()
    with pytest.raises(ValueError, match="features.0.weight"):
        convert_state_dict({**state_dict, "features.0.weight": torch.zeros(1)})
    without_res4 = {k: v for k, v in state_dict.items() if not k.startswith("layer3")}
    with pytest.raises(ValueError, match="res4"):
        convert_state_dict(without_res4)


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(ValueError, match="wide_resnet50_2.*resnext101_64x4d"):
        load_torchvision_weights("wide_resnet50_2")
    with pytest.raises(ValueError, match="IMAGENET21K.*IMAGENET1K_V1"):
        load_torchvision_weights("resnext101_64x4d", "IMAGENET21K")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(ValueError, match="text.pth"):
        convert_backbone(str(tmp_path / "text.pth"), tmp_path / "out.pkl")
    with pytest.raises(ValueError, match="pkl"):
        convert_backbone("resnet18", tmp_path / "out.pth")


@pytest.mark.parametrize("architecture, depth", [("vgg11", 11), ("mobilenet_v2", None)])
def test_networks_that_keep_their_names(architecture, depth, tmp_path):
    source = torchvision.models.get_model(architecture, weights=None).state_dict()
    if depth:  # 400 MB otherwise
        source["classifier.0.weight"] = torch.randn(8, 512 * 49)
        source["classifier.0.bias"] = torch.randn(8)
        source["classifier.3.weight"], source["classifier.3.bias"] = (
            torch.randn(8, 8),
            torch.ones(8),
        )
    torch.save(source, tmp_path / "weights.pth")
    convert_backbone(str(tmp_path / "weights.pth"), tmp_path / "weights.pkl")
    cfg = model_zoo.get_config(
        "faster_rcnn_VGG_11_voc07" if depth else "retinanet_MobileNetV2_FPN_1x"
    )
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 8])
    model = build_model(cfg)
    DetectionCheckpointer(model).load(str(tmp_path / "weights.pkl"))
    loaded = model.backbone.state_dict()
    prefix = "" if depth else "bottom_up."
    names = [k for k in loaded if "features" in k and "num_batches" not in k]
    assert len(names) > 10
    for name in names:
        assert torch.equal(loaded[name], source[name.removeprefix(prefix)]), name
    if depth:
        head = model.roi_heads.box_head
        assert torch.equal(head.fc1.weight, source["classifier.0.weight"])
        assert torch.equal(head.fc2.bias, source["classifier.3.bias"])


def test_foreign_parameters_of_named_networks_are_refused():
    with pytest.raises(ValueError, match="'avgpool.weight'.*MobileNetV2 or VGG"):
        convert_state_dict({"features.0.weight": torch.zeros(1), "avgpool.weight": torch.ones(1)})

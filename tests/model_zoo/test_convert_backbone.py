"""torchvision's backbones in Detectron2's ResNet and in timm's networks: the same features."""

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


def torchvision_network(architecture: str, **options: object) -> nn.Module:
    """With random weights; VGG's fully connected layers, 500 MB, are made smaller."""
    torch.manual_seed(0)
    with torch.device("meta"):
        model = torchvision.models.get_model(architecture, weights=None, **options)
    if "vgg" in architecture:
        model.classifier[0], model.classifier[3] = nn.Linear(512 * 49, 8), nn.Linear(8, 8)
        model.classifier[6] = nn.Linear(8, 2)
    model.features.to_empty(device="cpu")
    for module in model.features.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight)
            if module.bias is not None:
                nn.init.normal_(module.bias, std=0.1)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            module.num_batches_tracked.fill_(7)
    if "mobilenet" in architecture:
        model.classifier.to_empty(device="cpu")
    return model.eval()


MOBILENET_MAPS = {"res3": 7, "res4": 14, "res5": 18}  # the number of layers before each


@torch.no_grad()
@pytest.mark.parametrize(
    "architecture, width, config, network",
    [
        ("mobilenet_v2", 1.0, "retinanet_MobileNetV2_FPN_1x", "mobilenetv2_100"),
        ("mobilenet_v2", 0.5, "retinanet_MobileNetV2_half_FPN_1x", "mobilenetv2_050"),
        ("vgg11_bn", None, "faster_rcnn_VGG_11_voc07", "vgg11_bn"),
        ("vgg16", None, "faster_rcnn_VGG_16_voc07", "vgg16"),
    ],
)
def test_timms_networks_give_torchvisions_maps(architecture, width, config, network, tmp_path):
    pytest.importorskip("timm")
    source = torchvision_network(architecture, **({"width_mult": width} if width else {}))
    ends = MOBILENET_MAPS if width else {"res4": -1}  # before pool5
    torch.save(source.state_dict(), tmp_path / "weights.pth")
    convert_backbone(str(tmp_path / "weights.pth"), tmp_path / "weights.pkl")
    cfg = model_zoo.get_config(config)
    assert cfg.MODEL.TIMM.NAME == network.removesuffix("_bn")
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.ROI_BOX_HEAD.FC_DIM", 8])
    cfg.merge_from_list(["MODEL.TIMM.NAME", network])
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(str(tmp_path / "weights.pkl"))
    backbone = getattr(model.backbone, "bottom_up", model.backbone)
    for size in ((64, 96), (75, 101)):
        images = torch.randn(2, 3, *size)
        maps = backbone(images)
        assert list(maps) == list(ends)
        for name, end in ends.items():
            expected = source.features[:end](images)
            assert expected.std() > 1e-2, "a vanished map would agree with anything"
            torch.testing.assert_close(maps[name], expected, rtol=1e-4, atol=1e-4)
    last = source.features[: list(ends.values())[-1]]
    assert count_numbers(backbone) == count_numbers(last)
    if not width:
        head, classifier = model.roi_heads.box_head, source.classifier
        assert torch.equal(head.fc1.weight, classifier[0].weight)
        assert torch.equal(head.fc2.bias, classifier[3].bias)


def count_numbers(module: nn.Module) -> int:
    """Of parameters and, where norms are frozen, of buffers that were parameters."""
    return sum(v.numel() for k, v in module.state_dict().items() if "num_batches" not in k)


def test_foreign_parameters_of_named_networks_are_refused():
    with pytest.raises(ValueError, match="'avgpool.weight'.*MobileNetV2 or VGG"):
        convert_state_dict({"features.0.weight": torch.zeros(1), "avgpool.weight": torch.ones(1)})

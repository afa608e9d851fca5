"""Deformable convolution, dense and at locations, and the alignment layers (layers/)."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import DeformConv
from fvcore.nn import FlopCountAnalysis
from torch import Tensor

from mimicdet.export.graph_rows import GraphPyramid
from mimicdet.modeling.layers import (
    ALIGNMENTS,
    AlignmentSettings,
    SparsePyramid,
    build_alignments,
    channels_last_pays,
    deform_conv2d,
    mixed_precision,
    sparse_conv,
)
from mimicdet.modeling.layers.readers import MapReader, RowReader
from mimicdet.modeling.layers.sparse_conv import Places, RowLayout, conv_at, pyramid_rows
from mimicdet.utils.errors import UserError


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def off_grid(*shape, seed=0, dtype=torch.float64):
    """Offsets at least a tenth of a pixel away from whole pixels, where the sampling has kinks."""
    generator = torch.Generator().manual_seed(seed)
    whole = torch.randint(-2, 3, shape, generator=generator).to(dtype)
    return whole + 0.1 + 0.8 * torch.rand(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize(
    "device, half, expected",
    [("cpu", False, True), ("cpu", True, True), ("cuda", True, True), ("cuda:1", False, False)],
)
def test_when_channels_last_pays(device, half, expected):
    assert channels_last_pays(device, half) is expected


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.parametrize("enabled", [True, False])
def test_no_cpu_emulates_bfloat16(native, device, enabled, monkeypatch, caplog):
    monkeypatch.setattr("mimicdet.modeling.layers.precision.cpu_has_bfloat16", lambda: native)
    emulated = enabled and device == "cpu" and not native
    assert mixed_precision("SOLVER.AMP.ENABLED", enabled, device) is (enabled and not emulated)
    assert ("SOLVER.AMP.ENABLED has no effect" in caplog.text) is emulated


# ---------------------------------------------------------------- deform_conv2d


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_zero_offsets_are_a_plain_convolution(kernel):
    x, weight, bias = random(2, 3, 7, 9), random(4, 3, kernel, kernel, seed=1), random(4, seed=2)
    out = deform_conv2d(x, x.new_zeros(2, 2 * kernel**2, 7, 9), weight, bias)
    torch.testing.assert_close(out, F.conv2d(x, weight, bias, padding=kernel // 2))


def test_an_offset_of_one_pixel_moves_the_map():
    """(dy, dx) = (1, -2) for every kernel point reads the pixel one below and two to the left."""
    x, weight = random(1, 2, 8, 8), random(3, 2, 3, 3, seed=1)
    offset = torch.tensor([1.0, -2.0]).repeat(9)[None, :, None, None].expand(1, 18, 8, 8)
    out = deform_conv2d(x, offset, weight, None)
    moved = F.pad(x, (2, 0, 0, 1))[:, :, 1:, :8]
    expected = F.conv2d(moved, weight, padding=1)
    torch.testing.assert_close(out[..., 1:-2, 3:-1], expected[..., 1:-2, 3:-1])


def test_each_kernel_point_has_its_own_offset_row_major():
    x = torch.arange(25.0).view(1, 1, 5, 5)
    offset = torch.zeros(1, 18, 5, 5)
    offset[:, 2 * 5 + 1] = 1  # dx of the kernel point (1, 2), right of the centre
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 1, 2] = 1
    assert deform_conv2d(x, offset, weight, None)[0, 0, 2, 1] == x[0, 0, 2, 3]
    weight = torch.zeros(1, 1, 3, 3)
    weight[0, 0, 2, 1] = 1  # another point does not move
    assert deform_conv2d(x, offset, weight, None)[0, 0, 2, 1] == x[0, 0, 3, 1]


def test_gradients_of_every_input_float64():
    x = random(1, 2, 4, 5, dtype=torch.float64).requires_grad_()
    offset = off_grid(1, 18, 4, 5).requires_grad_()
    weight = random(2, 2, 3, 3, seed=1, dtype=torch.float64).requires_grad_()
    bias = random(2, seed=2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(deform_conv2d, (x, offset, weight, bias))


@pytest.mark.parametrize("kernel", [3, 5])
def test_detectron2_and_torchvision_agree(kernel):
    """The fallback rule may switch between them only because of this."""
    layer = DeformConv(6, 8, kernel, padding=kernel // 2, bias=False)
    x, offset = random(2, 6, 9, 7), random(2, 2 * kernel**2, 9, 7, seed=1) * 4
    with torch.no_grad():
        expected = layer(x, offset)
        actual = deform_conv2d(x, offset, layer.weight, None)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)
    assert expected.abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_samples_in_float32(dtype):
    x, offset = random(1, 4, 40, 40).to(dtype), random(1, 18, 40, 40, seed=1) * 3
    weight, bias = random(4, 4, 3, 3, seed=2), random(4, seed=3)
    out = deform_conv2d(x, offset, weight, bias)
    assert out.dtype == dtype
    assert torch.equal(out, deform_conv2d(x.float(), offset, weight, bias).to(dtype))


# ---------------------------------------------------------------- locations


def places_of(index: Tensor, height: int, width: int) -> Places:
    """Locations (N, M) of N maps of one size, below each other."""
    images = torch.arange(len(index))[:, None].expand_as(index).flatten()
    layout = RowLayout.of(((height, width),), (0,), index.device)
    return layout.locate(index.flatten(), images)


def rows_of(places: Places) -> Tensor:
    """The rows of locations that are pixels."""
    return places.first_row + places.y * places.width + places.x


@pytest.mark.parametrize("height, width, kernel", [(5, 7, 3), (4, 4, 5), (1, 1, 5), (1, 3, 3)])
@pytest.mark.parametrize("deformed", [False, True])
@pytest.mark.parametrize("part", [None, 4])
def test_conv_at_every_location_is_the_dense_convolution(
    height, width, kernel, deformed, part, monkeypatch
):
    if part is not None:  # so little memory that locations go through four at a time
        monkeypatch.setattr(sparse_conv, "MAX_SAMPLED_VALUES", part * 3 * kernel**2)
    x, weight, bias = random(2, 3, height, width), random(4, 3, kernel, kernel), random(4, seed=1)
    index = torch.arange(height * width).expand(2, -1)
    maps = random(2, 2 * kernel**2, height, width, seed=2) * 3 if deformed else None
    offset = None if maps is None else pyramid_rows([maps])
    if maps is None:
        dense = F.conv2d(x, weight, bias, padding=kernel // 2)
    else:
        dense = deform_conv2d(x, maps, weight, bias)
    actual = conv_at(pyramid_rows([x]), places_of(index, height, width), offset, weight, bias)
    bound = 1e-4 * float(dense.abs().max())
    torch.testing.assert_close(actual, pyramid_rows([dense]), atol=bound, rtol=1e-4)


@pytest.mark.parametrize("part", [None, 2])
def test_conv_at_gradients_float64(part, monkeypatch):
    if part is not None:
        monkeypatch.setattr(sparse_conv, "MAX_SAMPLED_VALUES", part * 2 * 9)
    x = random(2, 2, 4, 5, dtype=torch.float64).requires_grad_()
    offset = off_grid(6, 18).requires_grad_()
    weight = random(2, 2, 3, 3, seed=1, dtype=torch.float64).requires_grad_()
    bias = random(2, seed=2, dtype=torch.float64).requires_grad_()
    places = places_of(torch.tensor([[0, 7, 19], [3, 3, 12]]), 4, 5)
    assert torch.autograd.gradcheck(
        lambda x, *others: conv_at(pyramid_rows([x]), places, *others), (x, offset, weight, bias)
    )


def test_memory_of_many_locations_is_that_of_a_part(monkeypatch):
    """Samples of at most MAX_SAMPLED_VALUES are kept for the backward pass: none of many parts."""
    x, weight, bias = random(1, 8, 6, 6).requires_grad_(), random(4, 8, 3, 3), random(4)
    places = places_of(torch.arange(36)[None], 6, 6)

    def most_kept(part: int) -> int:
        monkeypatch.setattr(sparse_conv, "MAX_SAMPLED_VALUES", part * 8 * 9)
        sizes = []

        def pack(saved: Tensor) -> Tensor:
            sizes.append(saved.numel())
            return saved

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved):
            conv_at(pyramid_rows([x]), places, None, weight.requires_grad_(), bias)
        return max(sizes)

    assert most_kept(36) >= 36 * 8 * 9 > 5 * 8 * 9 >= most_kept(5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_offsets_out_of_all_bounds_do_no_harm(value):
    x, weight, bias = random(1, 2, 3, 3), random(2, 2, 1, 1), random(2)
    places = places_of(torch.tensor([[4, 0]]), 3, 3)
    offset = torch.tensor([[0.0, 0.0], [value, 0.0]])
    actual = conv_at(pyramid_rows([x]), places, offset, weight, bias)
    torch.testing.assert_close(actual[0], weight[:, :, 0, 0] @ x[0, :, 1, 1] + bias)
    if value == value:
        torch.testing.assert_close(actual[1], bias)
    else:
        assert actual[1].isnan().all()


def test_flops_of_sampling_and_product_are_counted():
    """Four weighted rows of C a point, and a product of k * k * C by O, at each of M locations."""

    class Layer(torch.nn.Module):
        def forward(self, x):
            places = places_of(torch.tensor([[0, 7, 19]]), 4, 5)
            offset = torch.full((3, 18), 0.3)
            return conv_at(pyramid_rows([x]), places, offset, random(6, 8, 3, 3), random(6))

    counts = FlopCountAnalysis(Layer(), random(1, 8, 4, 5)).by_operator()
    assert counts["embedding_bag"] == 3 * 9 * 4 * 8
    assert counts["linear"] == 3 * 9 * 8 * 6


def test_pyramid_rows_by_hand():
    first = torch.arange(8.0).view(2, 1, 2, 2)
    second = torch.tensor([10.0, 20.0]).view(2, 1, 1, 1)
    assert pyramid_rows([first, second]).flatten().tolist() == [0, 1, 2, 3, 10, 4, 5, 6, 7, 20]
    for batch in (1, 2):  # one image's rows would be a view of its map
        assert pyramid_rows([random(batch, 3, 2, 5)]).is_contiguous()


def test_row_layout_by_hand():
    """Levels of 2x3, 2x2 and 1x1; rows hold the first and the last: 7 an image."""
    layout = RowLayout.of(((2, 3), (2, 2), (1, 1)), (0, 2), torch.device("cpu"))
    assert layout.levels(torch.tensor([0, 5, 6, 9, 10])).tolist() == [0, 0, 1, 1, 2]
    places = layout.locate(torch.tensor([4, 10, 10, 2]), torch.tensor([0, 0, 1, 1]))
    assert rows_of(places).tolist() == [4, 6, 13, 9]
    assert (places.y.tolist(), places.x.tolist()) == ([1, 0, 0, 0], [1, 0, 0, 2])
    assert (places.height.tolist(), places.width.tolist()) == ([2, 1, 1, 2], [3, 1, 1, 3])


@pytest.mark.parametrize(
    "sizes, scales", [([(12, 16), (6, 8)], (2, 2)), ([(24, 32), (3, 4)], (4, 1))]
)
@pytest.mark.parametrize("reader", [SparsePyramid, GraphPyramid])
def test_finer_maps_are_read_at_the_same_places(reader, sizes, scales):
    """Levels of 6x8 and 3x4 at strides 8 and 16; maps whose value is the place in the image."""
    strides = [8 // scales[0], 16 // scales[1]]
    maps = []
    for (height, width), stride in zip(sizes, strides):
        y, x = (torch.arange(n) * stride + stride / 2 for n in (height, width))
        maps.append(torch.stack(torch.meshgrid(y, x, indexing="ij"))[None].repeat(2, 1, 1, 1))
    deltas = [torch.zeros(2, 4, 6, 8), torch.zeros(2, 4, 3, 4)]
    layer = ALIGNMENTS["guided"](2, 3, AlignmentSettings("guided", (3, 3), 2, (8, 8)))
    with torch.no_grad():
        layer.offset[-1].weight.zero_()
        layer.offset[-1].bias.fill_(0.25)  # strides
        layer.conv.weight.zero_()
        layer.conv.bias.zero_()
        layer.conv.weight[0, 0, 1, 1] = layer.conv.weight[1, 1, 1, 2] = 1  # y here, x to the right
        # (1, 1) and (3, 6) of the first level, (1, 1) of the second
        locations = torch.tensor([[9, 30], [53, 30]])
        read = reader(maps, deltas, locations, scales).read([layer, layer]).reshape(4, 2)
    right = [[14, 22], [30, 62], [28, 44], [30, 62]]
    torch.testing.assert_close(read, torch.tensor(right, dtype=torch.float32))


def test_row_layout_made_under_inference_mode_serves_training():
    sizes = ((3, 17), (2, 9))
    with torch.inference_mode():
        RowLayout.of(sizes, (0, 1), torch.device("cpu"))
    x = random(1, 2, 3, 17).requires_grad_()
    places = RowLayout.of(sizes, (0,), torch.device("cpu")).locate(
        torch.tensor([3]), torch.tensor([0])
    )
    conv_at(pyramid_rows([x]), places, None, random(2, 2, 3, 3), random(2)).sum().backward()
    assert x.grad.any()


# ---------------------------------------------------------------- alignment layers


def build(name, in_channels, dim, kernel, offset_dims=(64, 128)):
    settings = AlignmentSettings(name, (kernel,), dim, offset_dims)
    return build_alignments(in_channels, settings)[f"k{kernel}"]


def randomised(name, kernel=3, seed=0):
    torch.manual_seed(seed)
    layer = build(name, 4, 6, kernel, (5, 7))
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return layer


def dense(layer, x, guidance):
    """(N, O, H, W) of the layer on whole maps."""
    return layer(MapReader(x, guidance)).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kernel", [3, 5])
def test_guided_with_silent_offsets_is_a_plain_convolution(kernel):
    layer = randomised("guided", kernel)
    torch.nn.init.zeros_(layer.offset[-1].weight)
    torch.nn.init.zeros_(layer.offset[-1].bias)
    x, guidance = random(2, 4, 6, 5), random(2, 4, 6, 5, seed=1)
    expected = F.conv2d(x, layer.conv.weight, layer.conv.bias, padding=kernel // 2)
    torch.testing.assert_close(dense(layer, x, guidance), expected, atol=1e-4, rtol=1e-4)


def test_what_each_layer_listens_to():
    """(a) neither offsets nor guidance, (b) offsets from the features, (c, d) from the guidance."""
    x, other = random(1, 4, 6, 6), random(1, 4, 6, 6, seed=2)
    for name, guided in (("conv", False), ("deform", False), ("guided", True)):
        layer = randomised(name)
        changed = not torch.equal(dense(layer, x, x), dense(layer, x, other))
        assert changed == guided, name
    assert randomised("conv").offsets(MapReader(x, x)) is None
    offsets = randomised("deform").offsets
    assert not torch.equal(offsets(MapReader(x, x)), offsets(MapReader(other, x)))
    offsets = randomised("guided").offsets
    assert torch.equal(offsets(MapReader(x, x)), offsets(MapReader(other, x)))


def test_the_micro_network_sees_one_location_and_has_the_papers_widths():
    layer = build("guided", 4, 6, 5)
    shapes = [tuple(m.weight.shape) for m in layer.offset]
    assert shapes == [(64, 4, 1, 1), (128, 64, 1, 1), (50, 128, 1, 1)]
    layer = randomised("guided")
    guidance = random(1, 4, 6, 6)

    def offsets():
        return layer.offsets(MapReader(guidance, guidance)).permute(0, 3, 1, 2)

    before = offsets()
    guidance[0, :, 2, 3] += 1
    changed = (offsets() != before).any(dim=1)[0]
    assert torch.nonzero(changed).tolist() == [[2, 3]]
    # ReLU between the layers, none behind the last: offsets go both ways.
    assert before.min() < 0 < before.max()
    hidden = F.relu(F.conv2d(guidance, layer.offset[0].weight, layer.offset[0].bias))
    hidden = F.relu(F.conv2d(hidden, layer.offset[1].weight, layer.offset[1].bias))
    expected = F.conv2d(hidden, layer.offset[2].weight, layer.offset[2].bias)
    torch.testing.assert_close(offsets(), expected)


@pytest.mark.parametrize("name", sorted(ALIGNMENTS))
@pytest.mark.parametrize("height, width, kernel", [(7, 5, 3), (6, 6, 5), (1, 1, 5), (2, 1, 3)])
def test_at_some_locations_is_the_dense_layer(name, height, width, kernel):
    layer = randomised(name, kernel)
    x = random(2, 4, height, width).requires_grad_()
    guidance = random(2, 4, height, width, seed=1).requires_grad_()
    index = torch.randint(0, height * width, (2, 5), generator=torch.Generator().manual_seed(1))
    places = places_of(index, height, width)
    expected = pyramid_rows([dense(layer, x, guidance)])[rows_of(places)]
    guides = pyramid_rows([guidance])[rows_of(places)]
    sparse = layer(RowReader(pyramid_rows([x]), guides, places))
    bound = 1e-4 * float(expected.detach().abs().max())
    torch.testing.assert_close(sparse, expected, atol=bound, rtol=1e-4)


@pytest.mark.parametrize("name", ["deform", "guided"])
def test_offsets_keep_their_digits_in_mixed_precision(name):
    """Places are computed in float32 from half-precision maps too, dense and sparse alike."""
    layer = randomised(name)
    x, guidance = random(1, 4, 6, 5), random(1, 4, 6, 5, seed=1)
    places = places_of(torch.arange(30)[None], 6, 5)
    half = x.bfloat16()
    expected = layer.offsets(MapReader(half.float(), guidance))
    with torch.autocast("cpu", torch.bfloat16):
        on_maps = layer.offsets(MapReader(half, guidance))
        on_rows = layer.offsets(RowReader(pyramid_rows([half]), pyramid_rows([guidance]), places))
    for offsets in (on_maps, on_rows):
        assert offsets.dtype == torch.float32
        torch.testing.assert_close(offsets.reshape(30, -1), expected.reshape(30, -1))


def test_nan_offsets_do_no_harm_on_whole_maps():
    x, weight = random(1, 2, 3, 3), random(2, 2, 3, 3)
    offset = torch.full((1, 18, 3, 3), float("nan"))
    assert not deform_conv2d(x, offset, weight, None).any()


def test_unknown_names_and_even_kernels_are_named():
    with pytest.raises(UserError, match="STUDENT.ALIGNMENT.*guided.*'magic'"):
        build("magic", 4, 4, 3)
    with pytest.raises(UserError, match="STUDENT.KERNEL_SIZES.*4"):
        build("conv", 4, 4, 4)

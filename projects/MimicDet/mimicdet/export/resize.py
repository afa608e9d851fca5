"""
Detectron2's ResizeShortestEdge inside the graph, for files that take an image at its full size.

Detectron2 resizes 8-bit images with Pillow, which filters (antialiasing) and rounds to whole
values. Here the same filter runs on float32 and nothing is rounded: pixels differ by at most about
one of 255.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .detector import INPUT_NAMES, OUTPUT_NAMES

if TYPE_CHECKING:  # onnx is an extra, and other formats do without it
    import onnx

# Sizes are computed in float64 as Python does, so that they come out the same to the pixel.
_BEFORE = """
resize (float[N, 3, H, W] images, int64[N, 2] image_sizes)
    => (float[N, 3, h, w] resized, int64[N, 2] resized_sizes, float[4] scale, float[4] limit)
{
    zero = Constant <value_ints = [0]> ()
    min_size = Constant <value = double[1] {%(min_size)r}> ()
    max_size = Constant <value = double[1] {%(max_size)r}> ()
    one = Constant <value = double[1] {1.0}> ()
    half = Constant <value = double[1] {0.5}> ()
    size = Gather <axis = 0> (image_sizes, zero)
    flat_size = Squeeze (size, zero)
    axes = Constant <value_ints = [2, 3]> ()
    starts = Constant <value_ints = [0, 0]> ()
    image = Slice (images, starts, flat_size, axes)
    old = Cast <to = 11> (flat_size)
    shortest = ReduceMin <keepdims = 1> (old)
    enlarge = Div (min_size, shortest)
    enlarged = Mul (old, enlarge)
    longest = ReduceMax <keepdims = 1> (enlarged)
    fit = Div (max_size, longest)
    limited = Min (fit, one)
    fitted = Mul (enlarged, limited)
    shifted = Add (fitted, half)
    new = Floor (shifted)
    new_size = Cast <to = 7> (new)
    shape = Shape <start = 0, end = 2> (image)
    sizes = Concat <axis = 0> (shape, new_size)
    resized = Resize <mode = "linear", antialias = 1,
                      coordinate_transformation_mode = "half_pixel"> (image, , , sizes)
    resized_sizes = Unsqueeze (new_size, zero)
    ratio = Div (old, new)
    order = Constant <value_ints = [1, 0, 1, 0]> ()
    scale64 = Gather <axis = 0> (ratio, order)
    scale = Cast <to = 1> (scale64)
    limit64 = Gather <axis = 0> (old, order)
    limit = Cast <to = 1> (limit64)
}
"""

_AFTER = """
rescale (float[N, D, 4] small_boxes, float[N, D] small_scores, int64[N, D] small_classes,
         int64[N] small_num_detections, float[4] box_scale, float[4] box_limit)
    => (float[N, D, 4] boxes, float[N, D] scores, int64[N, D] classes, int64[N] num_detections)
{
    scaled = Mul (small_boxes, box_scale)
    boxes = Min (scaled, box_limit)
    scores = Identity (small_scores)
    classes = Identity (small_classes)
    num_detections = Identity (small_num_detections)
}
"""


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """(height, width) after ResizeShortestEdge; TorchScript can compile it."""
    scale = float(min_size) / float(min(height, width))
    new_height, new_width = scale * height, scale * width
    fit = min(float(max_size) / max(new_height, new_width), 1.0)
    return int(new_height * fit + 0.5), int(new_width * fit + 0.5)


class ResizingDetector(nn.Module):
    """A detector for one image at its full size; boxes come out in that image's pixels."""

    def __init__(self, detector: nn.Module, min_size: int, max_size: int):
        """detector: ExportableDetector, or traced; sizes: INPUT.MIN_SIZE_TEST and MAX_SIZE_TEST."""
        super().__init__()
        self.detector = detector
        self.min_size = min_size
        self.max_size = max_size

    def forward(self, images: Tensor, image_sizes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See ExportableDetector.forward; the batch must be of one image."""
        height, width = int(image_sizes[0, 0]), int(image_sizes[0, 1])
        new = resized_shape(height, width, self.min_size, self.max_size)
        resized = F.interpolate(
            images[:, :, :height, :width],
            size=[new[0], new[1]],
            mode="bilinear",
            align_corners=False,
            antialias=True,
        )
        sizes = torch.tensor([[new[0], new[1]]], device=images.device)
        boxes, scores, classes, num_detections = self.detector(resized, sizes)
        scale_y, scale_x = float(height) / new[0], float(width) / new[1]
        scale = torch.tensor([scale_x, scale_y, scale_x, scale_y], device=images.device)
        limit = torch.tensor(
            [width, height, width, height], dtype=torch.float32, device=images.device
        )
        return torch.minimum(boxes * scale, limit), scores, classes, num_detections


def add_resize(model: "onnx.ModelProto", min_size: int, max_size: int) -> "onnx.ModelProto":
    """The ONNX graph with the resize before it and the scaling of the boxes after it."""
    import onnx
    from onnx import compose, parser

    def parse(graph: str) -> "onnx.ModelProto":
        versions = {"ir_version": model.ir_version, "opset_imports": model.opset_import}
        return onnx.helper.make_model(parser.parse_graph(graph), **versions)

    core = compose.add_prefix(model, "detector/")
    before = parse(_BEFORE % {"min_size": float(min_size), "max_size": float(max_size)})
    inputs = list(zip(("resized", "resized_sizes"), (f"detector/{x}" for x in INPUT_NAMES)))
    whole = compose.merge_models(before, core, io_map=inputs)
    outputs = [(f"detector/{x}", f"small_{x}") for x in OUTPUT_NAMES]
    outputs += [("scale", "box_scale"), ("limit", "box_limit")]
    return compose.merge_models(whole, parse(_AFTER), io_map=outputs, outputs=list(OUTPUT_NAMES))

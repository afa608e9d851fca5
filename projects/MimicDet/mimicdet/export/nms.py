"""
NMS with a result of fixed shape: a mask of what is kept.

One operator with two bodies: in PyTorch torchvision's NMS, in ONNX the native NonMaxSuppression,
which knows batches and classes.
"""

import torch
from torch import Tensor
from torchvision.ops import nms


def kept_by_nms(
    boxes: Tensor, scores: Tensor, score_thresh: float, nms_thresh: float, topk: int
) -> Tensor:
    """
    What NMS keeps, for each image and class on its own.

    Args:
        boxes: (N, M, 4) XYXY; scores: (N, M, K).
        score_thresh: only scores above it take part.
        nms_thresh: a box that overlaps a kept one by more (IoU) is dropped.
        topk: how many boxes an image are requested in the end: no more of a class need be kept. Not
            used here; ONNX's operator asks for it.

    Returns:
        (N, M, K) bool.
    """
    count, num_classes = scores.shape[0] * scores.shape[1] * scores.shape[2], scores.shape[2]
    all_scores, boxes = scores.flatten(), boxes.double()
    places = torch.nonzero(all_scores > score_thresh).squeeze(1)
    # One call for all groups: each is moved to a place of its own. In float64, since the places of
    # many classes lie far out, where float32 has no digits left for the boxes.
    low = boxes.amin()
    apart = boxes.amax() - low + 1
    image = places // (scores.shape[1] * num_classes)
    group = image * num_classes + places % num_classes
    moved = boxes.flatten(0, 1)[places // num_classes] + (group * apart)[:, None]
    # Two more, far from all and from each other, which NMS always keeps: torchvision tells
    # torch.export that it keeps at least two, and a pt2 file would stop where it keeps fewer.
    extra = torch.arange(2, device=scores.device)
    unit = torch.tensor([0.0, 0.0, 1.0, 1.0], device=scores.device, dtype=boxes.dtype)
    group = scores.shape[0] * num_classes + extra
    moved = torch.cat([moved, low + unit + (group * apart)[:, None]])
    ranks = torch.cat([all_scores[places].double(), extra.double()])
    keep = torch.cat([places, count + extra])[nms(moved, ranks, nms_thresh)]
    kept = torch.zeros(count + 2, device=scores.device, dtype=torch.bool)
    kept = kept.index_put((keep,), torch.ones_like(keep, dtype=torch.bool))
    return kept[:count].view_as(scores)


# The operator that becomes ONNX's NonMaxSuppression.
kept_by_nms_op = torch.library.custom_op("mimicdet::kept_by_nms", kept_by_nms, mutates_args=())


@kept_by_nms_op.register_fake
def _(boxes, scores, score_thresh, nms_thresh, topk):
    return torch.empty_like(scores, dtype=torch.bool)


def onnx_translation(opset):
    """
    The operator's body in ONNX, as torch.onnx.export's custom_translation_table takes it.

    Args:
        opset: a module of onnxscript, e.g. onnxscript.opset18.
    """

    def translate(boxes, scores, score_thresh: float, nms_thresh: float, topk: int):
        selected = opset.NonMaxSuppression(
            boxes,
            opset.Transpose(scores, perm=[0, 2, 1]),
            opset.Constant(value_ints=[topk]),
            opset.Constant(value_floats=[nms_thresh]),
            opset.Constant(value_floats=[score_thresh]),
        )
        # (S, 3) of image, class, box -> image, box, class
        places = opset.Gather(selected, opset.Constant(value_ints=[0, 2, 1]), axis=1)
        count = opset.Gather(opset.Shape(selected), opset.Constant(value_ints=[0]), axis=0)
        nothing = opset.Expand(opset.Constant(value_float=0.0), opset.Shape(scores))
        ones = opset.Expand(opset.Constant(value_float=1.0), count)
        return opset.Cast(opset.ScatterND(nothing, places, ones), to=9)

    return translate

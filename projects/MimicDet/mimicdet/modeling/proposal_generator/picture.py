"""Pictures of the refinement module's proposals, for TensorBoard during training."""

import numpy as np
import torch
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Boxes, Instances, pairwise_iou
from PIL import Image

from ...utils.drawing import Color, draw_labelled_boxes

_HIT: Color = (27, 200, 90)
_MISS: Color = (255, 127, 14)
_TRUTH: Color = (31, 119, 255)
_NUM_LABELLED = 5


def _to_picture(image: torch.Tensor, input_format: str) -> Image.Image:
    if image.dim() != 3 or image.shape[0] != 3:
        raise ValueError(f"image must have shape (3, H, W), got {tuple(image.shape)}")
    pixels = convert_image_to_rgb(image.detach().cpu().permute(1, 2, 0), input_format)
    return Image.fromarray(np.ascontiguousarray(np.clip(pixels, 0, 255).astype(np.uint8)))


@torch.no_grad()
def draw_proposals(
    image: torch.Tensor,
    proposals: Instances,
    gt_boxes: Boxes | torch.Tensor,
    top: int = 20,
    input_format: str = "BGR",
    iou_threshold: float = 0.6,
) -> np.ndarray:
    """
    Draw the best proposals of an image beside its ground truth.

    Left: the ground truth, blue. Right: the `top` proposals of highest objectness, green where
    they overlap a ground-truth box at `iou_threshold` or more (what the heads call foreground),
    orange elsewhere; the best few carry their objectness as a probability.

    Args:
        image: (3, H, W), values 0..255, channels in `input_format`, on any device.
        proposals: with `proposal_boxes` (input pixels) and `objectness_logits`, in any order.
        gt_boxes: (M, 4) XYXY in input pixels; M may be 0.
        top: how many proposals are drawn.
        input_format: "BGR" or "RGB", cfg.INPUT.FORMAT.
        iou_threshold: IoU that makes a proposal a hit.

    Returns:
        uint8 RGB array of shape (H, 2W, 3). EventStorage.put_image takes (3, H, 2W).

    Raises:
        ValueError: `image` is not (3, H, W).
    """
    picture = _to_picture(image, input_format)
    style = {"line_width": 2, "font_size": 12}
    truth = gt_boxes.tensor if isinstance(gt_boxes, Boxes) else gt_boxes
    truth = truth.detach().cpu().float().reshape(-1, 4)
    logits = proposals.objectness_logits.detach().cpu().float()
    order = torch.argsort(logits, descending=True, stable=True)[:top]
    boxes = proposals.proposal_boxes.tensor.detach().cpu().float()[order]

    hits = torch.zeros(len(boxes), dtype=torch.bool)
    if len(truth) and len(boxes):
        hits = pairwise_iou(Boxes(boxes), Boxes(truth)).amax(dim=1) >= iou_threshold
    labels = [
        f"{probability:.2f}" if rank < _NUM_LABELLED else ""
        for rank, probability in enumerate(logits[order].sigmoid().tolist())
    ]
    left, right = picture.copy(), picture
    draw_labelled_boxes(left, truth.numpy(), [_TRUTH] * len(truth), [""] * len(truth), **style)
    colors = [_HIT if hit else _MISS for hit in hits.tolist()]
    draw_labelled_boxes(right, boxes.numpy(), colors, labels, **style)
    return np.concatenate([np.asarray(left), np.asarray(right)], axis=1)

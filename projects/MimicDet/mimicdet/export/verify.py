"""A written file against the eager model: the same images, the same detections."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch.nn import functional as F

from ..data.datasets.shapes import make_scene
from ..data.images import read_image
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError
from .formats import Runner
from .resize import resized_shape

BOX_TOLERANCE = 1e-2  # pixels
SCORE_TOLERANCE = 1e-4
# What another precision or another runtime's resize may change: these many of the eager model's
# detections are found again, of the same class, with IoU above 0.9.
MIN_AGREEMENT = 0.9
# Of 8 bits that is asked of detections above this score alone, with IoU above this.
INT8_MIN_SCORE, INT8_MIN_IOU = 0.3, 0.7
VERIFIED_IMAGES = 16  # of a folder, at most
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def sample_images(
    folder: str, input_format: str, at_most: int = VERIFIED_IMAGES
) -> list[np.ndarray]:
    """
    Pictures to verify with: (H, W, 3) uint8 in input_format.

    Args:
        folder: its pictures; empty: some are made, of different sizes, and one is blank.

    Raises:
        UserError: there is no such folder, no picture in it, or one that cannot be read.
    """
    if not folder:
        rng = np.random.default_rng(0)
        return [make_scene(rng).image for _ in range(4)] + [np.zeros((120, 90, 3), np.uint8)]
    if not Path(folder).is_dir():
        raise UserError(f"--sample-images: there is no folder {folder!r}")
    paths = sorted(x for x in Path(folder).iterdir() if x.suffix.lower() in IMAGE_ENDINGS)
    if not paths:
        raise UserError(f"--sample-images: no picture in {folder!r}")
    return [read_image(x, input_format) for x in paths[:at_most]]


def to_batch(
    images: Sequence[np.ndarray], canvas: Sequence[int] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The two inputs of a graph for (H, W, 3) images of any sizes; canvas: (height, width) of what
    they lie on, None: as large as need be.
    """
    sizes = np.array([x.shape[:2] for x in images], np.int64)
    batch = np.zeros((len(images), 3, *(canvas or sizes.max(axis=0))), np.float32)
    for row, image in zip(batch, images):
        row[:, : image.shape[0], : image.shape[1]] = image.transpose(2, 0, 1)
    return batch, sizes


def verify(run: Runner, model: MimicDet, images: list[np.ndarray], metadata: dict) -> int:
    """
    Compare on each image alone and, where the graph takes it, on pairs of different sizes.

    Args:
        run: the written file; model: in evaluation, on the CPU.
        images: at the size that the graph takes.
        metadata: says which comparison is meant: exact, or `MIN_AGREEMENT` for float16, int8 and
            a resize inside the graph.

    Returns:
        the detections that were compared.

    Raises:
        UserError: on the first difference; it says how large it is.
    """
    resize = metadata["resize"] if metadata["includes_resize"] else None
    limits = (metadata["score_threshold"], metadata["detections_per_image"])
    exact = metadata["precision"] == "float32" and resize is None
    least, iou = (INT8_MIN_SCORE, INT8_MIN_IOU) if metadata["precision"] == "int8" else (0.0, 0.9)
    canvas = metadata["fixed_size"]
    batches = [[x] for x in images]
    if resize is None and not canvas:
        batches += [list(pair) for pair in zip(images[::2], images[1::2])]
    count, matched = 0, 0
    for batch in batches:
        # On a larger canvas an image has other maps: a black one makes the eager model's as large.
        beside = [np.zeros((*canvas, 3), np.uint8)] if canvas else []
        expected = _eager(model, batch + beside, resize)[: len(batch)]
        outputs = run(*to_batch(batch, canvas))
        for name, output in zip(("boxes", "scores"), outputs):
            if not np.isfinite(output).all():
                raise UserError(f"the file's {name} are not finite")
        for i, instances in enumerate(expected):
            actual = [torch.as_tensor(x[i]) for x in outputs]
            instances = instances[instances.scores >= least]
            count += len(instances)
            if exact:
                _check_equal(actual, instances, *limits)
            else:
                matched += _count_matched(actual, instances, iou)
    if not exact and matched < MIN_AGREEMENT * count:
        raise UserError(
            f"the file finds {matched} of the eager model's {count} detections again (same class, "
            f"IoU above {iou}); {MIN_AGREEMENT:.0%} are required"
        )
    return count


def _eager(model: MimicDet, images: list[np.ndarray], resize: dict | None) -> list[Instances]:
    inputs = []
    for image in images:
        pixels = torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32))
        height, width = image.shape[:2]
        if resize is not None:
            size = resized_shape(height, width, resize["min_size"], resize["max_size"])
            pixels = F.interpolate(
                pixels[None], size, mode="bilinear", align_corners=False, antialias=True
            )[0]
        inputs.append({"image": pixels, "height": height, "width": width})
    return [x["instances"] for x in model(inputs)]


def _check_equal(
    actual: list[torch.Tensor], expected: Instances, score_thresh: float, topk: int
) -> None:
    """
    Each detection of the one side is one of the other, within the tolerances.

    Their order may differ where scores are equal but for rounding, and so may which of them pass
    the score threshold or the cut to topk.
    """
    count = int(actual[3])
    boxes, scores, classes = (x[:count] for x in actual[:3])
    box_error = (expected.pred_boxes.tensor[:, None] - boxes).abs().amax(dim=2)
    score_error = (expected.scores[:, None] - scores).abs()
    alike = (box_error <= BOX_TOLERANCE) & (score_error <= SCORE_TOLERANCE)
    alike &= expected.pred_classes[:, None] == classes
    for pairs, own, axis, who in (
        (alike, expected.scores, 1, "the file does not find what the model finds"),
        (alike, scores, 0, "the file finds what the model does not find"),
    ):
        limit = float(own.min()) if len(own) == topk else score_thresh
        missing = ~pairs.any(dim=axis) & (own > limit + SCORE_TOLERANCE)
        if missing.any():
            raise UserError(
                f"{who}: {int(missing.sum())} of {len(own)} objects, the first of score "
                f"{float(own[missing][0]):.3f}; boxes may differ by {BOX_TOLERANCE} px, scores by "
                f"{SCORE_TOLERANCE}"
            )


def _count_matched(actual: list[torch.Tensor], expected: Instances, least_iou: float) -> int:
    boxes, _, classes, count = actual
    boxes, classes = boxes[: int(count)], classes[: int(count)]
    iou = pairwise_iou(expected.pred_boxes, Boxes(boxes))
    same = expected.pred_classes[:, None] == classes
    return int(((iou > least_iou) & same).any(dim=1).sum())

"""Where the S-head looks: adjusted anchor boxes and sampling points, as in the paper's Fig. 3."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.structures import Boxes, pairwise_iou
from PIL import Image, ImageDraw, ImageOps
from torch import Tensor

from ..modeling.layers import SparsePyramid
from ..modeling.meta_arch.mimicdet import MimicDet
from ..modeling.postprocess import best_detections
from ..utils.drawing import Color, draw_key, draw_labelled_boxes, load_font, text_color
from ..utils.errors import UserError

ADJUSTED: Color = (255, 214, 10)  # Fig. 3: yellow box, red dots
POINT: Color = (240, 30, 40)
DETECTION: Color = (0, 200, 120)
TRUTH: Color = (40, 130, 255)
_BAND: Color = (28, 32, 40)
_HEADER_SIZE = 13


@dataclass(frozen=True)
class SamplingRecord:
    """
    What the S-head sampled for n objects of one image. All places are XY pixels of the image in the
    size that `height` and `width` of the model's input ask for, as detections are.
    """

    image_size: tuple[int, int]  # (height, width) of the pixels that everything here is told in
    proposals: np.ndarray  # (n, 4) XYXY: adjusted anchor boxes, before the S-head's own regression
    anchors: np.ndarray  # (n, 4) XYXY
    points: list[np.ndarray]  # n x (k * k, 2) as (x, y), row-major over the kernel
    levels: list[str]  # n names of feature maps, "p3" for one
    strides: list[int]  # n strides of these levels, pixels of the network's input
    objectness: np.ndarray  # (n,) probabilities of the refinement module
    boxes: np.ndarray  # (n, 4) XYXY: what the S-head makes of the proposals
    classes: np.ndarray  # (n,) int64, contiguous ids
    scores: np.ndarray  # (n,) probabilities of these classes

    def to_json(self) -> dict[str, Any]:
        """As lists and numbers that json.dump takes; places are rounded to 1/100 pixel."""
        content = vars(self) | {"points": [points.round(2).tolist() for points in self.points]}
        for key, value in vars(self).items():
            if isinstance(value, np.ndarray):  # (n, 4) places, or (n,) probabilities or classes
                content[key] = value.round(2 if value.ndim == 2 else 4).tolist()
        return content


@torch.no_grad()
def sampling_points(
    model: MimicDet,
    batched_input: dict[str, Any],
    *,
    num_objects: int = 5,
    score_threshold: float = 0.0,
    reference_boxes: np.ndarray | Tensor | None = None,
) -> SamplingRecord:
    """
    Find objects of an image and the points at which the S-head's alignment layer read them (3.3).

    A kernel point at the map's location (y, x) is told by its place relative to the centre of that
    location's anchor, which is (x + 0.5, y + 0.5) * stride with MODEL.ANCHOR_GENERATOR.OFFSET 0.5.

    Args:
        model: in evaluation mode.
        batched_input: Detectron2's dict of one image: "image" (3, H, W), 0..255, in the model's
            input format; optionally "height" and "width" of the image to tell the places in.
        num_objects, score_threshold: the best detections, as many at most, of this score at least.
        reference_boxes: (G, 4) XYXY in pixels of height and width, ground truth or another model's
            detections; then num_objects and score_threshold do not count, and the record holds for
            each of them the adjusted anchor box that overlaps it most, with its best class. A box
            that no adjusted box overlaps gets one of the highest objectness.

    Returns:
        a record of n objects, best score first, or in the order of reference_boxes; n may be 0.

    Raises:
        UserError: the model is in training mode, or its eval_head is the T-head.
    """
    if model.training or model.eval_head != "student":
        raise UserError("sampling points need a model in evaluation mode whose S-head is run")
    images = model.preprocess_image([batched_input])
    size = images.image_sizes[0]
    features = model.backbone(images.tensor)
    outputs = model.predict(features, images.image_sizes)
    head = model.student_head
    settings = head.settings
    proposals = outputs.proposals
    boxes, scores = settings.decode(
        proposals.boxes, outputs.predictions, images.image_sizes, proposals.valid
    )
    boxes, scores = boxes[0], scores[0]
    height, width = batched_input.get("height", size[0]), batched_input.get("width", size[1])
    scale = boxes.new_tensor([width / size[1], height / size[0]])
    if reference_boxes is None or not proposals.boxes.numel():
        chosen, classes = best_detections(boxes, scores, *settings.test_thresholds)
        kept = torch.nonzero(scores[chosen, classes] >= score_threshold).squeeze(1)[:num_objects]
        chosen, classes = chosen[kept], classes[kept]
    else:
        references = torch.as_tensor(reference_boxes, dtype=boxes.dtype, device=boxes.device)
        references = references.reshape(-1, 4) / scale.repeat(2)
        chosen = pairwise_iou(Boxes(references), Boxes(proposals.boxes[0])).argmax(dim=1)
        classes = scores[chosen].argmax(dim=1)
    locations = proposals.locations[0, chosen]
    anchors = outputs.refined.anchors[locations]
    levels = proposals.levels[0, chosen].tolist()
    strides = [model.proposal_generator.strides[level] for level in levels]
    pyramid = head.pyramid(features, outputs.refined.delta_maps, [locations], SparsePyramid)
    moved = pyramid.points(head.layers)
    centers = Boxes(anchors).get_centers()
    points = [
        (center + own.flip(-1) * stride) * scale
        for center, own, stride in zip(centers, moved, strides)
    ]
    whole = scale.repeat(2)
    return SamplingRecord(
        image_size=(int(height), int(width)),
        proposals=_numpy(proposals.boxes[0, chosen] * whole),
        anchors=_numpy(anchors * whole),
        points=[_numpy(xy) for xy in points],
        levels=[model.proposal_generator.in_features[level] for level in levels],
        strides=strides,
        objectness=_numpy(proposals.objectness_logits[0, chosen].sigmoid()),
        boxes=_numpy(boxes[chosen] * whole),
        classes=classes.cpu().numpy(),
        scores=_numpy(scores[chosen, classes]),
    )


def _numpy(x: Tensor) -> np.ndarray:
    return x.double().cpu().numpy()


def draw_sampling(
    image: np.ndarray,
    record: SamplingRecord,
    class_names: Sequence[str],
    *,
    width: int = 720,
    title: str = "",
    show_detections: bool = True,
    gt_boxes: np.ndarray | None = None,
) -> np.ndarray:
    """
    Draw adjusted anchor boxes (yellow) and their sampling points (red), as the paper's Fig. 3.

    Args:
        image: (H, W, 3) uint8, RGB, of any size; record.image_size says what it is resized from.
        width: of the picture in pixels, to which the image is resized first.
        show_detections: also the S-head's boxes, green, with class and score.
        gt_boxes: (G, 4) XYXY in record.image_size; drawn dashed, blue.

    Returns:
        uint8 RGB array (H', width, 3); a band above the image says what the colours mean.
    """
    height = max(round(width * record.image_size[0] / record.image_size[1]), 1)
    scale = width / record.image_size[1]
    picture = Image.fromarray(np.ascontiguousarray(image))
    picture = picture.resize((width, height), Image.Resampling.LANCZOS)
    # (boxes, colour, dashed, labels), the top one first; dots under them, to keep labels readable.
    layers = [(record.proposals, ADJUSTED, False, [""] * len(record.proposals))]
    keys = [("adjusted anchor box", ADJUSTED), ("sampling points", POINT)]
    if show_detections:
        names = [class_names[index] for index in record.classes]
        labels = [f"{name} {score:.2f}" for name, score in zip(names, record.scores)]
        layers.append((record.boxes, DETECTION, False, labels))
        keys.append(("detection", DETECTION))
    if gt_boxes is not None:
        layers.append((gt_boxes, TRUTH, True, [""] * len(gt_boxes)))
        keys.append(("ground truth", TRUTH))
    points = np.concatenate([*record.points, np.zeros((0, 2))])
    picture = _with_dots(picture, points * scale, radius=width / 240)
    draw_labelled_boxes(
        picture,
        np.concatenate([boxes for boxes, *_ in layers]) * scale,
        [color for boxes, color, *_ in layers for _ in boxes],
        [label for *_, labels in layers for label in labels],
        [dashed for boxes, _, dashed, _ in layers for _ in boxes],
        line_width=max(width // 280, 2),
        font_size=int(np.clip(width // 44, 11, 17)),
    )
    return np.asarray(_with_header(picture, title, keys))


def _with_dots(picture: Image.Image, points: np.ndarray, radius: float) -> Image.Image:
    """Red dots with a white rim, drawn on a layer of thrice the size to be smooth."""
    factor = 3
    size = (picture.width * factor, picture.height * factor)
    layer = Image.new("RGBA", size, (255, 255, 255, 0))
    draw = ImageDraw.Draw(layer)
    for x, y in points * factor:
        for r, fill in ((factor * radius * 1.45, (255, 255, 255)), (factor * radius, POINT)):
            draw.ellipse((x - r, y - r, x + r, y + r), fill=(*fill, 255))
    layer = layer.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), layer).convert("RGB")


def _with_header(
    picture: Image.Image, title: str, keys: Sequence[tuple[str, Color]]
) -> Image.Image:
    """The picture under a band with its title and what the colours mean."""
    size = _HEADER_SIZE
    band = round(1.9 * size * (2 if title else 1))
    out = ImageOps.expand(picture, (0, band, 0, 0), fill=_BAND)
    draw = ImageDraw.Draw(out)
    top = 0.5 * size
    if title:
        draw.text((size, top), title, font=load_font(size + 2, bold=True), fill=text_color(_BAND))
        top += 1.8 * size
    draw_key(draw, keys, (size, top), math.inf, size, text_color(_BAND))
    return out

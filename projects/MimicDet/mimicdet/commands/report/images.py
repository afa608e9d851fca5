"""The best and the worst images of an evaluation, drawn beside their ground truth."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ...data.images import read_image
from ...evaluation.error_split import FOREGROUND
from ...evaluation.matching import ImageBoxes, match
from ...visualization.grid import draw_detections
from .runs import GroundTruth

_WIDTH = 400  # pixels of each picture; two of them are a phone's width twice over


@dataclass(frozen=True)
class ImageScore:
    """How well an image went at one score threshold and IoU 0.5."""

    image: ImageBoxes  # with the detections above the threshold alone
    correct: int
    wrong: int  # detections
    missed: int  # objects

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; 1 where neither objects nor detections are."""
        total = 2 * self.correct + self.wrong + self.missed
        return 2 * self.correct / total if total else 1.0


def score_image(image: ImageBoxes, threshold: float) -> ImageScore:
    """Count correct, wrong and missed of an image; crowds and what lies in them do not count."""
    image = image.above(threshold)
    matched, ignored = match(image, image.ious(), FOREGROUND)
    correct = int((matched >= 0).sum())
    wrong = int((~ignored).sum()) - correct
    return ImageScore(image, correct, wrong, int((~image.gt_crowd).sum()) - correct)


def best_and_worst(
    images: Sequence[ImageBoxes], threshold: float, count: int
) -> tuple[list[ImageScore], list[ImageScore]]:
    """
    The `count` images of highest and of lowest F1; no image is in both.

    Of equal ones the best is that with the most objects, the worst that with the most errors.
    """
    scores = [score_image(image, threshold) for image in images]
    worst = sorted(scores, key=lambda s: (s.f1, -s.wrong - s.missed))[
        : min(count, len(scores) // 2)
    ]
    taken = {id(s) for s in worst}
    best = sorted(scores, key=lambda s: (-s.f1, -s.correct))
    return [s for s in best if id(s) not in taken][:count], worst


def picture_pair(score: ImageScore, truth: GroundTruth) -> str:
    """An HTML figure: detections left, ground truth right; UserError: it cannot be read."""
    image = score.image
    file = truth.files[image.image_id]
    pixels = read_image(file, "RGB")
    detected = _embedded(pixels, image.boxes, image.classes, image.scores, None, truth)
    annotated = _embedded(pixels, image.gt_boxes, image.gt_classes, None, image.gt_crowd, truth)
    name = html.escape(file.replace("\\", "/").rsplit("/", 1)[-1])
    caption = (
        f"{name}: F1 {score.f1:.2f}; {score.correct} correct, {score.wrong} wrong, "
        f"{score.missed} missed"
    )
    return (
        f'<figure class="pair"><img alt="detections in {name}" src="{detected}">'
        f'<img alt="ground truth of {name}" src="{annotated}"><figcaption>{caption}</figcaption>'
        "</figure>"
    )


def _embedded(
    pixels: np.ndarray,
    boxes: np.ndarray,
    classes: np.ndarray,
    scores: np.ndarray | None,
    crowd: np.ndarray | None,
    truth: GroundTruth,
) -> str:
    """A drawn picture as a data URI; boxes: XYWH in pixels of the image."""
    corners = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    names = truth.class_names
    drawn = draw_detections(pixels, corners, classes, scores, names, width=_WIDTH, crowd=crowd)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()

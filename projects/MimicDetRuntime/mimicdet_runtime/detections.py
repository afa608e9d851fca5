"""What a detector returns for one image."""

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Detections:
    """
    Boxes of one image, best first.

    boxes: (N, 4) float32, XYXY in pixels of the image as it was given.
    scores: (N,) float32, probabilities.
    classes: (N,) int64, indices of class_names.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Those whose score is at least `score`."""
        keep = self.scores >= score
        return Detections(self.boxes[keep], self.scores[keep], self.classes[keep], self.class_names)

    def name(self, index: int) -> str:
        """The class name of detection `index`; its number where the model gave no name."""
        number = int(self.classes[index])
        return self.class_names[number] if number < len(self.class_names) else str(number)

    def to_coco(self, image_id: int) -> list[dict[str, Any]]:
        """COCO result records: bbox is XYWH, category_id counts from 1."""
        return [
            {
                "image_id": image_id,
                "category_id": int(number) + 1,
                "bbox": [round(float(v), 3) for v in (x0, y0, x1 - x0, y1 - y0)],
                "score": round(float(score), 6),
            }
            for (x0, y0, x1, y1), score, number in zip(
                self.boxes.astype(float), self.scores, self.classes
            )
        ]


def rescale(
    boxes: np.ndarray, from_size: tuple[int, int], to_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Bring boxes from one size of an image to another, as Detectron2's detector_postprocess does.

    Args:
        boxes: (N, 4) XYXY in pixels of the image at from_size.
        from_size, to_size: (height, width) in pixels.

    Returns:
        (N, 4) float32 boxes clipped to to_size, and (N,) bool: the box has an area.
    """
    scale_y, scale_x = to_size[0] / from_size[0], to_size[1] / from_size[1]
    scaled = boxes.astype(np.float32) * np.array([scale_x, scale_y] * 2, dtype=np.float32)
    scaled[:, 0::2] = scaled[:, 0::2].clip(0, to_size[1])
    scaled[:, 1::2] = scaled[:, 1::2].clip(0, to_size[0])
    has_area = (scaled[:, 2] > scaled[:, 0]) & (scaled[:, 3] > scaled[:, 1])
    return scaled, has_area

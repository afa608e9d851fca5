"""Boxes with class names and scores, drawn by OpenCV."""

import colorsys

import numpy as np

from .detections import Detections
from .images import import_cv2

Color = tuple[int, int, int]
_GOLDEN_RATIO = 0.618033988749895


def class_color(number: int) -> Color:
    """The BGR colour of a class, 0..255: hues apart from each other, the same in every picture."""
    hue = (0.6 + number * _GOLDEN_RATIO) % 1.0
    red, green, blue = colorsys.hsv_to_rgb(hue, 0.85, 0.95 if number % 2 else 0.8)
    return round(blue * 255), round(green * 255), round(red * 255)


def text_color(background: Color) -> Color:
    """Black or white, whichever is easier to read on a BGR background."""
    blue, green, red = background
    return (0, 0, 0) if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else (255, 255, 255)


def draw_detections(image: np.ndarray, detections: Detections) -> np.ndarray:
    """
    Return a copy of a BGR image (H, W, 3) with boxes, class names and scores in per cent.

    The best box is drawn last. OpenCV's font has no letters beyond ASCII: they become "?".
    """
    cv2 = import_cv2()
    picture = np.ascontiguousarray(image).copy()
    # As large as can be read when the picture fills a screen.
    unit = max(max(picture.shape[:2]) / 1000, 0.4)
    width, scale = max(round(2 * unit), 2), 0.55 * unit
    for index in reversed(range(len(detections))):
        color = class_color(int(detections.classes[index]))
        x0, y0, x1, y1 = (round(float(value)) for value in detections.boxes[index])
        cv2.rectangle(picture, (x0, y0), (x1, y1), color, width)
        label = f"{detections.name(index)} {100 * float(detections.scores[index]):.0f}%"
        label = label.encode("ascii", "replace").decode()
        _draw_label(cv2, picture, label, (x0, y0), color, scale)
    return picture


def _draw_label(cv2, picture: np.ndarray, label: str, corner, color: Color, scale: float) -> None:
    """A filled label above the corner, or below it where the picture ends."""
    font, thickness = cv2.FONT_HERSHEY_SIMPLEX, max(round(2 * scale), 1)
    (width, height), below = cv2.getTextSize(label, font, scale, thickness)
    pad = max(round(4 * scale), 1)
    full = height + below + 2 * pad
    left = min(max(corner[0], 0), max(picture.shape[1] - width - 2 * pad, 0))
    top = corner[1] - full if corner[1] >= full else corner[1]
    cv2.rectangle(picture, (left, top), (left + width + 2 * pad, top + full), color, cv2.FILLED)
    place = (left + pad, top + pad + height)
    cv2.putText(picture, label, place, font, scale, text_color(color), thickness, cv2.LINE_AA)

"""Drawing primitives that all pictures share: fonts, class colours, labelled boxes."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from mimicdet_runtime import drawing

Color = tuple[int, int, int]
Rect = tuple[float, float, float, float]

_EDGE: Color = (20, 20, 24)


@dataclass(frozen=True)
class BoxStyle:
    """How boxes are drawn; sizes in pixels of the picture."""

    line_width: int = 3
    font_size: int = 14


def class_color(index: int) -> Color:
    """Return the RGB colour (0..255) of class `index`, the same in every picture."""
    blue, green, red = drawing.class_color(index)
    return red, green, blue


def text_color(background: Color) -> Color:
    """Return black or near-white, whichever is easier to read on `background` (RGB, 0..255)."""
    red, green, blue = background
    luminance = 0.299 * red + 0.587 * green + 0.114 * blue
    return (0, 0, 0) if luminance > 150 else (255, 255, 255)


@functools.lru_cache(maxsize=32)
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """
    Return DejaVu Sans in `size` pixels.

    The file comes with matplotlib, which Detectron2 needs anyway, so that no font of the system
    is required.
    """
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)


def draw_grid(axes: Axes) -> None:
    """Pale lines at the ticks, and no frame right and above."""
    axes.grid(True, which="major", color="black", alpha=0.15, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_box(draw: ImageDraw.ImageDraw, box: Rect, color: Color, width: int, dashed: bool) -> None:
    """Draw one XYXY box (pixels) with a thin dark edge that keeps it visible on any background."""
    x0, y0, x1, y1 = box
    half = width // 2
    outer = (x0 - half - 1, y0 - half - 1, x1 + half + 1, y1 + half + 1)
    if dashed:
        _draw_dashed(draw, box, color, width)
        return
    draw.rectangle(outer, outline=_EDGE, width=width + 2)
    draw.rectangle((x0 - half, y0 - half, x1 + half, y1 + half), outline=color, width=width)


def _draw_dashed(draw: ImageDraw.ImageDraw, box: Rect, color: Color, width: int) -> None:
    x0, y0, x1, y1 = box
    dash = 4 * width
    across = [(x, y, min(x + dash, x1), y) for x in np.arange(x0, x1, 2 * dash) for y in (y0, y1)]
    down = [(x, y, x, min(y + dash, y1)) for y in np.arange(y0, y1, 2 * dash) for x in (x0, x1)]
    for line in across + down:
        draw.line(line, fill=color, width=width)


def _overlap(a: Rect, b: Rect) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(width, 0.0) * max(height, 0.0)


def place_label(box: Rect, size: tuple[float, float], bounds: Rect, taken: Sequence[Rect]) -> Rect:
    """
    Choose where the label of `box` goes.

    Args:
        box: XYXY, pixels.
        size: width and height of the label, pixels.
        bounds: XYXY of the picture; the label is kept inside.
        taken: labels placed before, XYXY.

    Returns:
        XYXY of the label: the first of above, inside, below and their right-aligned twins that
        covers the least of the labels placed before.
    """
    x0, y0, x1, y1 = box
    width, height = size
    candidates = [
        (x, y)
        for x in (x0, x1 - width)
        for y in (y0 - height, y0, y1 - height, y1)
        if bounds[1] <= y <= bounds[3] - height
    ] or [(x0, y0)]
    rects = []
    for x, y in candidates:
        left = min(max(x, bounds[0]), max(bounds[2] - width, bounds[0]))
        top = min(max(y, bounds[1]), max(bounds[3] - height, bounds[1]))
        rects.append((left, top, left + width, top + height))
    return min(rects, key=lambda rect: sum(_overlap(rect, other) for other in taken))


def draw_labelled_boxes(
    image: Image.Image,
    boxes: np.ndarray,
    colors: Sequence[Color],
    labels: Sequence[str],
    dashed: Sequence[bool] | None = None,
    style: BoxStyle | None = None,
) -> None:
    """
    Draw boxes and their labels on `image`, in place; the first box ends up on top.

    Args:
        image: an RGB picture.
        boxes: (N, 4) XYXY in pixels of `image`.
        colors: N RGB colours.
        labels: N texts; an empty one draws no label.
        dashed: N flags; None: every line is solid.
        style: line and font size.
    """
    style = style or BoxStyle()
    draw = ImageDraw.Draw(image)
    font = load_font(style.font_size, bold=True)
    flags = dashed if dashed is not None else [False] * len(boxes)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
    # Pillow refuses a rectangle whose right side is left of its left one.
    rects = np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1).tolist()
    for rect, color, flag in reversed(list(zip(rects, colors, flags, strict=True))):
        draw_box(draw, rect, color, style.line_width, flag)
    # Labels after all the boxes: no line runs through a text.
    taken: list[Rect] = []
    for rect, color, label in zip(rects, colors, labels, strict=True):
        if not label:
            continue
        ascent, descent = font.getmetrics()
        size = (font.getlength(label) + 8, float(ascent + descent + 2))
        where = place_label(rect, size, (0.0, 0.0, float(image.width), float(image.height)), taken)
        taken.append(where)
        draw.rounded_rectangle(where, radius=3, fill=color, outline=_EDGE, width=1)
        draw.text((where[0] + 4, where[1] + 1), label, font=font, fill=text_color(color))

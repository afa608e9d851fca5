"""Drawing primitives that all pictures share: fonts, class colours, labelled boxes."""

import functools
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from PIL import Image, ImageDraw, ImageFont

from mimicdet_runtime import drawing

Color = tuple[int, int, int]
Rect = tuple[float, float, float, float]

_EDGE: Color = (20, 20, 24)


def class_color(index: int) -> Color:
    """Return the RGB colour (0..255) of class `index`, the same in every picture."""
    return drawing.class_color(index)[::-1]


def text_color(background: Color) -> Color:
    """Return black or white, whichever is easier to read on `background` (RGB, 0..255)."""
    return drawing.text_color(background[::-1])


@functools.lru_cache(maxsize=32)
def load_font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans in `size` pixels: matplotlib's file, so that the system needs no font."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)


def draw_key(
    draw: ImageDraw.ImageDraw,
    keys: Sequence[tuple[str, Color]],
    start: tuple[float, float],
    right: float,
    font_size: int,
    ink: Color,
) -> float:
    """
    Write what colours mean in rows from `start` (x, y) to x = `right` at most; returns the last
    row's y. All in pixels.
    """
    font = load_font(font_size)
    x, y = start
    for name, color in keys:
        width = 3 * font_size + font.getlength(name)
        if x > start[0] and x + width > right:
            x, y = start[0], y + 1.7 * font_size
        draw.rounded_rectangle((x, y + 1, x + font_size, y + 1 + font_size), radius=3, fill=color)
        draw.text((x + 1.5 * font_size, y), name, font=font, fill=ink)
        x += width
    return y


def draw_grid(axes: Axes) -> None:
    """Pale lines at the ticks, and no frame right and above."""
    axes.grid(True, which="major", color="black", alpha=0.15, linewidth=0.8)
    axes.spines[["top", "right"]].set_visible(False)


def draw_box(draw: ImageDraw.ImageDraw, box: Rect, color: Color, width: int, dashed: bool) -> None:
    """Draw one XYXY box (pixels) with a thin dark edge that keeps it visible on any background."""
    x0, y0, x1, y1 = box
    if not dashed:
        for outside, fill in ((width // 2 + 1, _EDGE), (width // 2, color)):
            rect = (x0 - outside, y0 - outside, x1 + outside, y1 + outside)
            draw.rectangle(rect, outline=fill, width=width + 2 * (outside - width // 2))
        return
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
    Choose where the label of `box` goes: the first of above, inside, below and their right-aligned
    twins that covers the least of the labels `taken` before. All are XYXY in pixels but `size`,
    the label's (width, height); the label is kept inside `bounds`.
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
    *,
    line_width: int = 3,
    font_size: int = 14,
) -> None:
    """
    Draw boxes and their labels on `image`, in place; the first box ends up on top.

    Args:
        image: an RGB picture.
        boxes: (N, 4) XYXY in pixels of `image`.
        labels: N texts; an empty one draws no label.
        dashed: N flags; None: every line is solid.
        line_width, font_size: pixels.
    """
    draw = ImageDraw.Draw(image)
    font = load_font(font_size, bold=True)
    flags = dashed if dashed is not None else [False] * len(boxes)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2)
    # Pillow refuses a rectangle whose right side is left of its left one.
    rects = np.concatenate([boxes.min(axis=1), boxes.max(axis=1)], axis=1).tolist()
    for rect, color, flag in reversed(list(zip(rects, colors, flags, strict=True))):
        draw_box(draw, rect, color, line_width, flag)
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

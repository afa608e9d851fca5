"""Drawing for the embedded data set: outlines of the classes, textures, backgrounds, clutter."""

import cv2
import numpy as np
import numpy.typing as npt

SHAPE_NAMES = ("circle", "square", "triangle", "star", "cross")

Image = npt.NDArray[np.uint8]
Color = npt.NDArray[np.float32]


def unit_outline(name: str) -> npt.NDArray[np.float32]:
    """(N, 2) corners of a class's shape about the origin, before rotation and scaling."""
    if name == "circle":
        angles = np.linspace(0, 2 * np.pi, 72, endpoint=False)
        radii = np.ones(72)
    elif name == "star":
        angles = np.arange(10) * np.pi / 5
        radii = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    elif name == "cross":
        t = 0.32
        corners = [(-t, -1), (t, -1), (t, -t), (1, -t), (1, t), (t, t)]
        corners += [(t, 1), (-t, 1), (-t, t), (-1, t), (-1, -t), (-t, -t)]
        return np.asarray(corners, dtype=np.float32)
    else:
        sides = {"square": 4, "triangle": 3}[name]
        angles = np.arange(sides) * 2 * np.pi / sides + np.pi / 4
        radii = np.ones(sides)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii[:, None]
    return points.astype(np.float32)


def placed_outline(
    name: str, angle: float, center: npt.ArrayLike, size: npt.ArrayLike
) -> npt.NDArray[np.int32]:
    """
    (N, 2) integer pixel corners of a shape rotated by `angle` (radians) and then stretched along
    the image axes so that its tight box has exactly `size` (width, height in pixels).
    """
    cos, sin = np.cos(angle), np.sin(angle)
    points = unit_outline(name) @ np.array([[cos, sin], [-sin, cos]], dtype=np.float32)
    low, high = points.min(axis=0), points.max(axis=0)
    points = (points - (low + high) / 2) / (high - low) * np.asarray(size) + np.asarray(center)
    return np.round(points).astype(np.int32)


def random_color(rng: np.random.Generator) -> Color:
    """A saturated random BGR colour, float32 in [0, 255]."""
    hue, saturation, value = rng.uniform([0, 110, 90], [180, 256, 256])
    hsv = np.array([[[hue, saturation, value]]]).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def contrasting_color(rng: np.random.Generator, other: Color, distance: float = 140.0) -> Color:
    """A random colour at a Euclidean BGR distance of at least `distance` from `other`, if found."""
    candidates = np.stack([random_color(rng) for _ in range(8)])
    gaps = np.linalg.norm(candidates - other, axis=1)
    far_enough = np.flatnonzero(gaps >= distance)
    return candidates[far_enough[0] if len(far_enough) else gaps.argmax()]


def textured_patch(rng: np.random.Generator, height: int, width: int, color: Color) -> Image:
    """(height, width, 3) of `color`: flat, shaded, striped, checked or dotted."""
    kind = rng.choice(["flat", "shaded", "stripes", "checks", "dots"], p=[0.4, 0.2, 0.2, 0.1, 0.1])
    if kind == "flat":
        return np.broadcast_to(color.astype(np.uint8), (height, width, 3)).copy()
    second = np.clip(color + rng.choice([-1, 1]) * rng.uniform(40, 70), 0, 255)
    angle = rng.uniform(0, np.pi)
    y = np.arange(height, dtype=np.float32)[:, None]
    x = np.arange(width, dtype=np.float32)[None, :]
    along = x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle))
    if kind == "shaded":
        weight = (along - along.min()) / max(float(np.ptp(along)), 1.0)
        levels = (weight * 15).astype(np.uint8)  # few levels keep the PNG small
        ramp = np.linspace(color, second, 16).astype(np.uint8)
        return ramp[levels]
    period = max(4.0, min(height, width) * rng.uniform(0.08, 0.2))
    across = y * np.float32(np.cos(angle)) - x * np.float32(np.sin(angle))
    if kind == "stripes":
        pattern = np.mod(along, 2 * period) < period
    elif kind == "checks":
        pattern = (np.mod(along, 2 * period) < period) ^ (np.mod(across, 2 * period) < period)
    else:
        du, dv = np.mod(along, 2 * period) - period, np.mod(across, 2 * period) - period
        pattern = du * du + dv * dv < (0.6 * period) ** 2
    return np.where(pattern[..., None], color, second).astype(np.uint8)


def background(rng: np.random.Generator, height: int, width: int) -> Image:
    """(height, width, 3): a colour gradient with blotches and coarse noise."""
    base = rng.uniform(40, 215, size=3)
    corners = np.clip(base + rng.uniform(-45, 45, size=(2, 2, 3)), 0, 255)
    blotches = rng.normal(0, rng.uniform(3, 14), size=(8, 8, 3))
    size = (width // 4, height // 4)
    gradient = np.asarray(cv2.resize(corners, size, interpolation=cv2.INTER_LINEAR))
    image = gradient + np.asarray(cv2.resize(blotches, size, interpolation=cv2.INTER_CUBIC))
    # Noise in blocks of 4 pixels: per-pixel noise would make the PNG files six times larger.
    image = image + rng.normal(0, rng.uniform(0, 9), size=image.shape[:2])[..., None]
    small = np.clip(image, 0, 255).astype(np.uint8)
    full = cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST)
    return np.asarray(full, dtype=np.uint8)


def draw_distractors(rng: np.random.Generator, image: Image, count: int) -> None:
    """Draw `count` strokes that are no object in place: lines, arcs, scribbles, rows of dashes."""
    height, width = image.shape[:2]
    for _ in range(count):
        kind = rng.choice(["line", "arc", "scribble", "dashes"])
        color = random_color(rng).tolist()
        thickness = int(rng.integers(1, 5))
        start = rng.uniform([0, 0], [width, height])
        if kind == "line":
            end = start + rng.uniform(-0.5, 0.5, size=2) * (width, height)
            cv2.line(image, start.astype(int).tolist(), end.astype(int).tolist(), color, thickness)
        elif kind == "arc":
            axes = rng.integers(15, 120, size=2).tolist()
            first, sweep = rng.uniform([0, 40], [360, 150])
            center = start.astype(int).tolist()
            cv2.ellipse(image, center, axes, first, 0, sweep, color, thickness)
        elif kind == "scribble":
            steps = rng.normal(0, 25, size=(int(rng.integers(4, 10)), 2)).cumsum(axis=0)
            cv2.polylines(image, [(start + steps).astype(np.int32)], False, color, thickness)
        else:
            step = rng.uniform(-14, 14, size=2)
            for i in range(int(rng.integers(4, 9))):
                first_end = start + 2 * i * step
                ends = np.stack([first_end, first_end + step]).astype(np.int32)
                cv2.line(image, ends[0].tolist(), ends[1].tolist(), color, thickness)


def paint_shape(
    rng: np.random.Generator, image: Image, outline: npt.NDArray[np.int32], mask: Image
) -> None:
    """
    Paint the pixels of `mask` (height, width; non-zero inside the shape) with a texture whose
    colour differs from what lies there, and mostly with an edge line inside the mask.
    """
    x, y, w, h = cv2.boundingRect(mask)
    region, inside = image[y : y + h, x : x + w], mask[y : y + h, x : x + w]
    under = np.asarray(cv2.mean(region, mask=inside)[:3], dtype=np.float32)
    patch = textured_patch(rng, h, w, contrasting_color(rng, under))
    if rng.random() < 0.75:
        edge = [0, 0, 0] if rng.random() < 0.6 else [255, 255, 255]
        thickness = int(np.clip(round(min(w, h) * rng.uniform(0.02, 0.06)), 1, 8))
        cv2.polylines(patch, [outline - np.array([x, y], np.int32)], True, edge, 2 * thickness)
    cv2.copyTo(patch, inside, region)

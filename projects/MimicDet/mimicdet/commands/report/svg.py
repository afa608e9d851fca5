"""Line charts as inline SVG that takes the page's colours, dark or light."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

WIDTH, HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 10, 10, 36


@dataclass(frozen=True)
class Series:
    """One line: its name in the legend, points, colour (CSS), whether it is dashed."""

    name: str
    x: np.ndarray
    y: np.ndarray
    color: str
    dashed: bool = False


@dataclass(frozen=True)
class Axis:
    """Label and range of an axis; a range of None is taken from the data."""

    label: str
    low: float | None = None
    high: float | None = None
    log: bool = False


def line_chart(title: str, series: Sequence[Series], x_axis: Axis, y_axis: Axis) -> str:
    """
    An HTML figure: title, chart, legend. Values that are not finite, or not positive on a
    logarithmic axis, are left out.

    Raises:
        ValueError: nothing is left to be drawn.
    """
    lines = [_drawable(item, y_axis.log) for item in series]
    lines = [item for item in lines if len(item.x)]
    if not lines:
        raise ValueError(f"'{title}' has nothing to draw")
    x_range = _range(x_axis, np.concatenate([item.x for item in lines]))
    y_range = _range(y_axis, np.concatenate([item.y for item in lines]))
    parts = [_grid(x_axis, x_range, y_axis, y_range)]
    for item in lines:
        x = _LEFT + (item.x - x_range[0]) / (x_range[1] - x_range[0]) * _plot_width()
        y = _y_places(item.y, y_range, y_axis.log)
        parts.append(_line(item, x, y))
    label = html.escape(f"{title}: {', '.join(item.name for item in lines)}")
    return (
        f'<figure class="chart"><figcaption>{html.escape(title)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">{"".join(parts)}'
        f"</svg>{_legend(lines)}</figure>"
    )


def _drawable(item: Series, log: bool) -> Series:
    keep = np.isfinite(item.y) & ((item.y > 0) | (not log))
    return Series(item.name, item.x[keep], item.y[keep], item.color, item.dashed)


def _plot_width() -> int:
    return WIDTH - _LEFT - _RIGHT


def _range(axis: Axis, values: np.ndarray) -> tuple[float, float]:
    low = float(values.min()) if axis.low is None else axis.low
    high = float(values.max()) if axis.high is None else axis.high
    if axis.log:
        low, high = math.log10(low), math.log10(high)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    margin = 0.04 * (high - low)
    free = axis.low is None and (axis.log or low < 0 or high / max(low, 1e-12) < 2)
    return (low - margin if free else low), (high + margin if axis.high is None else high)


def _y_places(values: np.ndarray, y_range: tuple[float, float], log: bool) -> np.ndarray:
    values = np.log10(values) if log else values
    part = (values - y_range[0]) / (y_range[1] - y_range[0])
    return HEIGHT - _BOTTOM - part * (HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers in [low, high]: steps of 1, 2 or 5 times a power of ten, about `wanted`."""
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 10) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_text(value: float) -> str:
    """A tick's label of at most some five letters."""
    text = f"{value:.4g}"
    return text if len(text) <= 5 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")


def _log_ticks(low: float, high: float) -> list[float]:
    """Round numbers in 10^low..10^high: the fewer powers of ten, the more between them."""
    factors = (1.0,)
    if high - low < 2.2:
        factors = (1.0, 2.0, 5.0) if high - low > 0.9 else (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
    powers = range(math.floor(low), math.ceil(high) + 1)
    places = [
        (math.log10(factor) + power, factor * 10.0**power) for power in powers for factor in factors
    ]
    return [value for place, value in places if low <= place <= high]


def _grid(
    x_axis: Axis, x_range: tuple[float, float], y_axis: Axis, y_range: tuple[float, float]
) -> str:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    parts = []
    values = _log_ticks(*y_range) if y_axis.log else ticks(*y_range)
    for value, y in zip(values, _y_places(np.array(values), y_range, y_axis.log)):
        parts.append(f'<path class="grid" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick_text(value)}</text>'
        )
    for value in ticks(*x_range):
        x = _LEFT + (value - x_range[0]) / (x_range[1] - x_range[0]) * _plot_width()
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{tick_text(value)}</text>'
        )
    parts.append(f'<path class="axis" d="M{_LEFT} {bottom}H{right}"/>')
    name = html.escape(x_axis.label)
    parts.append(f'<text x="{right}" y="{HEIGHT - 4}" text-anchor="end">{name}</text>')
    if y_axis.label:
        parts.append(f'<text x="2" y="{HEIGHT - 4}">&#8593; {html.escape(y_axis.label)}</text>')
    return "".join(parts)


def _line(item: Series, x: np.ndarray, y: np.ndarray) -> str:
    dash = ' stroke-dasharray="5 3"' if item.dashed else ""
    path = "M" + "L".join(f"{a:.1f} {b:.1f}" for a, b in zip(x, y))
    parts = [f'<path class="line" stroke="{item.color}"{dash} d="{path}"/>']
    if len(x) <= 30:  # a curve of a few evaluations: its points are what was measured
        for a, b, at, value in zip(x, y, item.x, item.y):
            told = html.escape(f"{item.name}: {value:.4g} at {at:.4g}")
            parts.append(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.6" fill="{item.color}">'
                f"<title>{told}</title></circle>"
            )
    return "".join(parts)


def _legend(lines: Sequence[Series]) -> str:
    entries = []
    for item in lines:
        style = "dashed" if item.dashed else "solid"
        entries.append(
            f'<li><i style="border-top:3px {style} {item.color}"></i>{html.escape(item.name)}</li>'
        )
    return f'<ul class="legend">{"".join(entries)}</ul>'

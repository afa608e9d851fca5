"""The pictures of distillation, drawn from the records of distillation.py with matplotlib."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.structures import Boxes
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .distillation import ChannelVariance, DifferenceMaps, ObjectRanks, RankSignal, Region

_STUDENT, _TEACHER, _TRUTH, _MASK = "#ff7f0e", "#1f77ff", "#1b9e47", "#d62728"
_CELL = 2.7  # inches, the width of one picture in a grid


def draw_regions(
    image: np.ndarray, gt_boxes: Tensor, regions: Sequence[Region], strides: Sequence[int]
) -> Figure:
    """
    FGFI's Fig. 3: a row for each level, a column for each rule, the region in red over the image.

    Args:
        image: (H, W, 3) uint8 RGB; gt_boxes: (G, 4) XYXY.
    """
    style = {"cmap": ListedColormap([_MASK]), "alpha": 0.55, "vmin": 0, "vmax": 1}
    columns = []
    for region in regions:
        titles = [f"{region.label}: {share:.1%}" for share in region.shares]
        masks = [np.ma.masked_equal(mask.cpu().numpy(), False) for mask in region.masks]
        columns.append((titles, masks))
    return _draw_levels(image, gt_boxes, strides, columns, style)


def draw_differences(
    image: np.ndarray, gt_boxes: Tensor, maps: DifferenceMaps, strides: Sequence[int]
) -> Figure:
    """
    RM+PFI's Fig. 3: a row for each level; prediction difference, feature difference, their product.
    Each map has a colour scale of its own, from 0 to the largest value, which its title tells.
    """
    named = (("P_dif", maps.prediction), ("F_dif", maps.feature), ("P_dif x F_dif", maps.product))
    columns = [
        ([f"{name}, up to {float(x.max()):.2g}" for x in levels], [x.cpu().numpy() for x in levels])
        for name, levels in named
    ]
    style = {"cmap": "inferno", "alpha": 0.8, "vmin": 0}
    return _draw_levels(image, gt_boxes, strides, columns, style)


def _draw_levels(
    image: np.ndarray,
    gt_boxes: Tensor,
    strides: Sequence[int],
    columns: Sequence[tuple[Sequence[str], Sequence[np.ndarray]]],
    style: dict[str, Any],
) -> Figure:
    """
    A row for each level: the objects, then of each column its (Hl, Wl) map over the image, each
    cell on its stride x stride pixels, under the map's title.
    """
    height, width = image.shape[:2]
    size = (_CELL * (1 + len(columns)), (_CELL * height / width + 0.3) * len(strides))
    figure = Figure(figsize=size, dpi=110)
    # matplotlib's own layouts take seconds for so many pictures of one size.
    top = 1 - 0.3 / size[1]
    spaces = {"left": 0.01, "right": 0.99, "bottom": 0.01, "top": top, "wspace": 0.03}
    figure.subplots_adjust(**spaces, hspace=0.3 * width / (_CELL * height))
    grid = figure.subplots(len(strides), 1 + len(columns), squeeze=False)
    for row, stride in enumerate(strides):
        _show(grid[row][0], image, f"objects, stride {stride}")
        _draw_boxes(grid[row][0], gt_boxes, _TRUTH)
        for axes, (titles, levels) in zip(grid[row][1:], columns):
            _show(axes, image, titles[row])
            rows, across = levels[row].shape
            extent = (0, across * stride, rows * stride, 0)
            axes.imshow(levels[row], extent=extent, interpolation="nearest", **style)
            axes.set_xlim(0, width)
            axes.set_ylim(height, 0)
    return figure


def draw_variance(levels: Sequence[ChannelVariance], strides: Sequence[int]) -> Figure:
    """FGFI's Fig. 6 (b), (c): a panel for each level, channels in order of the outer variance."""
    figure = Figure(figsize=(4.2 * len(levels), 3.4), dpi=110, layout="constrained")
    for index, (level, stride) in enumerate(zip(levels, strides)):
        axes = figure.add_subplot(1, len(levels), index + 1)
        order = level.outside.argsort().cpu()
        told = f"smaller inside in {level.calmer_inside} of {len(order)} channels"
        for values, color, label in (
            (level.outside, "#7f7f7f", "outside"),
            (level.inside, _MASK, "inside"),
        ):
            axes.plot(values.cpu()[order].numpy(), color=color, label=label, linewidth=1.2)
            told = f"no location {label}" if values.isnan().any() else told
        axes.set_title(f"stride {stride}: {told}", loc="left", fontsize=9)
        axes.set_xlabel("channel")
        axes.set_ylabel("variance")
        axes.set_ylim(bottom=0)
        _legend(axes)
    return figure


def draw_ranks(image: np.ndarray, ranks: ObjectRanks, class_name: str) -> Figure:
    """
    RM+PFI's Fig. 2 and 4 for one object. Left: the anchors' centres by class score, and the anchor
    and box that come first. Right: score and IoU of the anchors, in the teacher's order, before
    and after the softmax of Eq. 5.
    """
    figure = Figure(figsize=(12, 6.6), dpi=110, layout="constrained")
    grid = figure.subplots(2, 3)
    top = float(max(ranks.class_scores.student.max(), ranks.class_scores.teacher.max()))
    sides = (
        ("teacher", _TEACHER, ranks.class_scores.teacher, ranks.teacher_boxes),
        ("student", _STUDENT, ranks.class_scores.student, ranks.student_boxes),
    )
    for axes, (name, color, values, boxes) in zip(grid[:, 0], sides):
        _show(axes, image, f"{name}: first anchor (dashed) and its box; {class_name} (green)")
        _draw_candidates(axes, ranks, values, boxes, color, top)
    for row, (label, signal) in enumerate(
        (("class score", ranks.class_scores), ("IoU of the predicted box", ranks.ious))
    ):
        _plot_signal(grid[row][1], (signal.student, signal.teacher), signal, label)
        title = f"rank, KL {signal.divergence:.2g}"
        _plot_signal(grid[row][2], signal.distributions, signal, title)
    return figure


def _draw_candidates(
    axes: Axes, ranks: ObjectRanks, values: Tensor, boxes: Tensor, color: str, top: float
) -> None:
    """The object with as much again around it: the anchors' centres, the first one and its box."""
    x0, y0, x1, y1 = ranks.gt_box.tolist()
    margin = 0.75 * max(x1 - x0, y1 - y0)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()  # the image's
    axes.set_xlim(max(x0 - margin, left), min(x1 + margin, right))
    axes.set_ylim(min(y1 + margin, low), max(y0 - margin, high))
    centres = Boxes(ranks.anchors.cpu()).get_centers()
    order = values.argsort().cpu()  # anchors share centres: the best on top
    axes.scatter(
        *centres[order].T.numpy(),
        c=values.cpu()[order].numpy(),
        cmap="viridis",
        vmin=0,
        vmax=top,
        s=36,
        edgecolors="white",
        linewidths=0.5,
    )
    first = int(values.argmax())
    _draw_boxes(axes, ranks.gt_box[None], _TRUTH)
    _draw_boxes(axes, ranks.anchors[first : first + 1], color, linestyle="--")
    _draw_boxes(axes, boxes[first : first + 1], color)


def _plot_signal(axes: Axes, values: tuple[Tensor, Tensor], signal: RankSignal, title: str) -> None:
    """A line each for (student, teacher), the anchors in the teacher's order."""
    order = signal.teacher.argsort(descending=True).cpu()
    places = range(1, len(order) + 1)
    for side, color, label in zip(values, (_STUDENT, _TEACHER), ("student", "teacher")):
        axes.plot(places, side.cpu()[order].numpy(), "o-", color=color, label=label, markersize=3)
    axes.set_title(title, loc="left", fontsize=9)
    axes.set_xlabel("positive anchors, in the teacher's order")
    axes.xaxis.get_major_locator().set_params(integer=True)
    _legend(axes)


def _legend(axes: Axes) -> None:
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _show(axes: Axes, image: np.ndarray, title: str) -> None:
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0))
    axes.set_title(title, fontsize=8)
    axes.set_axis_off()


def _draw_boxes(axes: Axes, boxes: Tensor, color: str, linestyle: str = "-") -> None:
    for x0, y0, x1, y1 in boxes.tolist():
        box = Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, ec=color, lw=1.4, ls=linestyle)
        axes.add_patch(box)

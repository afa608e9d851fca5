"""Pictures: detections beside ground truth, training curves, proposals during training."""

from .curves import plot_curves, read_metrics
from .grid import detection_grid, draw_detections
from .proposals import draw_proposals

__all__ = [
    "detection_grid",
    "draw_detections",
    "draw_proposals",
    "plot_curves",
    "read_metrics",
]

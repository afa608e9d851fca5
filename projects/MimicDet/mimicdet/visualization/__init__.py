"""Pictures: detections beside ground truth, training curves, sampling points."""

from .curves import plot_curves, read_metrics
from .grid import detection_grid, draw_detections
from .sampling import SamplingRecord, draw_sampling, sampling_points

__all__ = [
    "SamplingRecord",
    "detection_grid",
    "draw_detections",
    "draw_sampling",
    "plot_curves",
    "read_metrics",
    "sampling_points",
]

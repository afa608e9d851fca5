"""Metrics beside Detectron2's: KITTI's AP, and where a detector's AP is lost."""

from .coco import CocoEvaluator
from .error_split import ErrorSplit, split_errors
from .finite import finite_predictions
from .kitti import KittiEvaluator

__all__ = ["CocoEvaluator", "ErrorSplit", "KittiEvaluator", "finite_predictions", "split_errors"]

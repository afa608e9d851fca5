"""Metrics beside COCO's: KITTI's AP, and where a detector's AP is lost."""

from .error_split import ErrorSplit, split_errors
from .kitti import KittiEvaluator

__all__ = ["ErrorSplit", "KittiEvaluator", "split_errors"]

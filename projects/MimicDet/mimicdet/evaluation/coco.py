"""Detectron2's COCO evaluation, also of a model that detects nothing."""

from detectron2.evaluation import COCOEvaluator
from pycocotools.cocoeval import COCOeval

from .matching import no_detections


class CocoEvaluator(COCOEvaluator):
    """
    Detectron2's COCOEvaluator that gives a model without any detection what COCO's metric gives
    it: 0 where there are objects to detect. Detectron2's own gives NaN, and no AP by class.
    """

    def _derive_coco_results(self, coco_eval, iou_type, class_names=None):
        if coco_eval is None:
            coco_eval = COCOeval(self._coco_api, no_detections(self._coco_api), iou_type)
            coco_eval.evaluate()
            coco_eval.accumulate()
            coco_eval.summarize()
        return super()._derive_coco_results(coco_eval, iou_type, class_names)

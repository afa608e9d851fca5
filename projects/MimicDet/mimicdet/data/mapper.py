"""Detectron2's dataset mapper, keeping the boxes of crowds for the losses that ignore them."""

from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import TransformList
from detectron2.structures import Boxes

from .augmentation import add_jitter


class MimicDatasetMapper(DatasetMapper):
    """
    DatasetMapper whose training output also has "crowd_boxes".

    "crowd_boxes" is a Boxes of (C, 4) float32, XYXY in pixels of the augmented image, clipped to
    it: the annotations with iscrowd=1, which Detectron2's own mapper drops. C may be 0.
    """

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict[str, Any]:
        """As Detectron2's, with the keys of `add_jitter` in training."""
        arguments = super().from_config(cfg, is_train)
        if is_train:
            arguments["augmentations"] = add_jitter(cfg, arguments["augmentations"])
        return arguments

    def _transform_annotations(
        self, dataset_dict: dict[str, Any], transforms: TransformList, image_shape: tuple[int, int]
    ) -> None:
        crowds = [
            utils.transform_instance_annotations(
                {"bbox": x["bbox"], "bbox_mode": x["bbox_mode"]}, transforms, image_shape
            )["bbox"]
            for x in dataset_dict["annotations"]
            if x.get("iscrowd", 0) == 1
        ]
        super()._transform_annotations(dataset_dict, transforms, image_shape)
        boxes = Boxes(np.array(crowds))
        # Augmentation by cropping can leave nothing of a crowd.
        dataset_dict["crowd_boxes"] = boxes[boxes.nonempty()]

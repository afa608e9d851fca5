"""Detectron2's dataset mapper with its own reading of images, and with the boxes of crowds."""

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import detection_utils as utils
from detectron2.data.transforms import AugInput, TransformList
from detectron2.structures import Boxes

from .augmentation import add_jitter
from .images import read_image, read_record


class MimicDatasetMapper(DatasetMapper):
    """
    DatasetMapper that reads images by `read_record`, whose errors name file and image, and whose
    training output also has "crowd_boxes".

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

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """As DatasetMapper's, of which only the reading differs; UserError as of read_record."""
        record = copy.deepcopy(dataset_dict)
        image = read_record(record, self.image_format)
        sem_seg_file = record.pop("sem_seg_file_name", None)
        sem_seg = read_image(sem_seg_file, "L").squeeze(2) if sem_seg_file else None
        augmented = AugInput(image, sem_seg=sem_seg)
        transforms = self.augmentations(augmented)
        shape = augmented.image.shape[:2]
        pixels = np.ascontiguousarray(augmented.image.transpose(2, 0, 1))
        record["image"] = torch.as_tensor(pixels)
        if augmented.sem_seg is not None:
            record["sem_seg"] = torch.as_tensor(augmented.sem_seg.astype("long"))
        if self.proposal_topk is not None:
            utils.transform_proposals(record, shape, transforms, proposal_topk=self.proposal_topk)
        if not self.is_train:
            record.pop("annotations", None)
        elif "annotations" in record:
            self._transform_annotations(record, transforms, shape)
        return record

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

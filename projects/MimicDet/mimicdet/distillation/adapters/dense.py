"""Detectors on Detectron2's DenseDetector: a backbone, and one head on all of its levels."""

from functools import cached_property
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ...modeling.layers.precision import at_least_float32
from ..tensors import JOINT, SIGMOID, SOFTMAX, DetectorTensors, Locations, Positives, gather_at
from .base import ADAPTER_REGISTRY, DetectorAdapter, layout_of


class DenseTeacherTensors(DetectorTensors):
    """A dense detector's features, and its predictions where they are read."""

    def __init__(self, adapter: "DenseDetectorAdapter", features: list[Tensor]):
        self._adapter = adapter
        self.features = features

    @cached_property
    def predictions(self) -> list[list[Tensor]]:
        """The head's outputs, class logits and box deltas first: L x (N, A * dims, Hl, Wl) each."""
        return self._adapter.model.head(self.features)

    @property
    def prediction_maps(self) -> list[Tensor]:
        if not self._adapter.map_scores:
            raise self._lacks("prediction_maps")
        return self.predictions[0]

    @cached_property
    def anchor_boxes(self) -> list[Boxes]:
        return self._adapter.model.anchor_generator(self.features)

    @property
    def anchors(self) -> list[Tensor]:
        return [x.tensor for x in self.anchor_boxes]

    def class_logits_at(self, locations: Locations) -> Tensor:
        return gather_at(self.predictions[0], self._adapter.output_dims[0], locations)

    def pred_boxes_at(self, locations: Locations) -> Tensor:
        outputs = gather_at(self.predictions[1], self._adapter.output_dims[1], locations)
        # Half precision has too few digits for box coordinates.
        anchors = torch.cat(self.anchors)[locations.anchors]
        transform = self._adapter.model.box2box_transform
        return transform.apply_deltas(at_least_float32(outputs), anchors)


class DenseStudentTensors(DenseTeacherTensors):
    """The same of a student, whose head has run and whose anchors are labelled already."""

    def __init__(
        self,
        adapter: "DenseDetectorAdapter",
        features: list[Tensor],
        predictions: list[list[Tensor]],
        anchor_boxes: list[Boxes],
        labels: tuple[list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ):
        super().__init__(adapter, features)
        self.predictions = predictions
        self.anchor_boxes = anchor_boxes
        self._labels = labels
        self._gt_instances = gt_instances
        self.gt_boxes = [x.gt_boxes.tensor for x in gt_instances]

    @cached_property
    def positives(self) -> Positives:
        return find_positives(*self._labels, self._gt_instances, self._adapter.model.num_classes)


class DenseDetectorAdapter(DetectorAdapter):
    """
    For a detector that keeps to RetinaNet's interface: num_classes, anchor_generator,
    box2box_transform, label_anchors(anchors, gt_instances) -> (labels, boxes), and losses(anchors,
    pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, further predictions...).

    A detector's own adapter sets what differs: dims of the head's outputs, how scores are read.
    """

    map_scores = SIGMOID
    class_scores = SIGMOID

    teacher_offers = frozenset(
        {"features", "prediction_maps", "anchors", "class_logits_at", "pred_boxes_at"}
    )
    student_offers = teacher_offers | {"gt_boxes", "positives"}

    def __init__(self, model: DenseDetector, input_format: str):
        super().__init__(model, input_format)
        self.layout = layout_of(
            model,
            model.num_classes,
            model.head_in_features,
            model.anchor_generator,
            input_format,
            map_scores=self.map_scores,
            class_scores=self.class_scores,
        )

    @property
    def output_dims(self) -> list[int]:
        """Numbers an anchor of the head's outputs: of classes, of the box, of further ones."""
        return getattr(self.model, "output_dims", [self.model.num_classes, 4])

    def forward_training(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], DenseStudentTensors]:
        """DenseDetector.forward and its subclass's forward_training, which keep nothing."""
        model = self.model
        features = self._features(batched_inputs)
        gt_instances = [x["instances"].to(model.device) for x in batched_inputs]
        predictions = model.head(features)
        anchors = model.anchor_generator(features)
        gt_labels, gt_boxes = model.label_anchors(anchors, gt_instances)
        logits, deltas, *further = model._transpose_dense_predictions(predictions, self.output_dims)
        losses = model.losses(anchors, logits, gt_labels, deltas, gt_boxes, *further)
        return losses, DenseStudentTensors(
            self, features, predictions, anchors, (gt_labels, gt_boxes), gt_instances
        )

    def forward_teacher(self, batched_inputs: list[dict[str, Any]]) -> DenseTeacherTensors:
        return DenseTeacherTensors(self, self._features(batched_inputs))

    def _features(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        features = self.model.backbone(self.model.preprocess_image(batched_inputs).tensor)
        return [features[f] for f in self.model.head_in_features]


@ADAPTER_REGISTRY.register()
class RetinaNetAdapter(DenseDetectorAdapter):
    """RetinaNet: class logits and deltas of A anchors a location."""


@ADAPTER_REGISTRY.register()
class FCOSAdapter(DenseDetectorAdapter):
    """FCOS: one point a location, with a centerness. Its class scores are taken without it."""

    @property
    def output_dims(self) -> list[int]:
        return [self.model.num_classes, 4, 1]


@ADAPTER_REGISTRY.register()
class ATSSAdapter(FCOSAdapter):
    """ATSS: one anchor a location, with a centre-ness."""


@ADAPTER_REGISTRY.register()
class GFLAdapter(DenseDetectorAdapter):
    """GFL: scores that join class and quality; a side of a box is a distribution over bins."""

    map_scores = class_scores = JOINT


@ADAPTER_REGISTRY.register()
class MultiClassRPNAdapter(DenseDetectorAdapter):
    """FGFI's lightweight detector: a softmax an anchor, background last; no map of sigmoids."""

    map_scores = ""
    class_scores = SOFTMAX
    teacher_offers = DenseDetectorAdapter.teacher_offers - {"prediction_maps"}
    student_offers = DenseDetectorAdapter.student_offers - {"prediction_maps"}


@torch.no_grad()
def find_positives(
    gt_labels: list[Tensor],
    matched_boxes: list[Tensor],
    gt_instances: list[Instances],
    num_classes: int,
) -> Positives:
    """
    The positives of each object, from what label_anchors gives: it names the matched box and
    class, not the object. Two objects of one box and class count as the first of them.

    Args:
        gt_labels: N x (R,) int64, the class; num_classes: background, -1: ignored.
        matched_boxes: N x (R, 4), copied from the objects' boxes.
    """
    images, anchors, objects, first_object = [], [], [], 0
    for n, (labels, boxes, gt) in enumerate(zip(gt_labels, matched_boxes, gt_instances)):
        positive = torch.nonzero((labels >= 0) & (labels < num_classes)).squeeze(1)
        same_box = (boxes[positive, None] == gt.gt_boxes.tensor[None]).all(dim=2)
        same = same_box & (labels[positive, None] == gt.gt_classes[None])
        # Without an object nothing is positive, and there is no first of none.
        objects.append(first_object + same.byte().argmax(dim=1) if len(gt) else positive)
        images.append(torch.full_like(positive, n))
        anchors.append(positive)
        first_object += len(gt)
    return Positives.of(torch.cat(images), torch.cat(anchors), torch.cat(objects), gt_instances)

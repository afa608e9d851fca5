"""Detectors on Detectron2's DenseDetector: a backbone, and one head on all of its levels."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from ...modeling.layers.precision import at_least_float32
from ..tensors import (
    JOINT,
    SIGMOID,
    SOFTMAX,
    DetectorTensors,
    Locations,
    Positives,
    TowerFeatures,
    by_anchor,
    gather_at,
)
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
        return self._boxes(outputs, torch.cat(self.anchors)[locations.anchors])

    @cached_property
    def pred_boxes(self) -> Tensor:
        outputs = by_anchor(self.predictions[1], self._adapter.output_dims[1])
        anchors = torch.cat(self.anchors).repeat(len(outputs), 1)
        return self._boxes(outputs.flatten(0, 1), anchors).view(len(outputs), -1, 4)

    def _boxes(self, outputs: Tensor, anchors: Tensor) -> Tensor:
        """Half precision has too few digits for box coordinates."""
        transform = self._adapter.model.box2box_transform
        return transform.apply_deltas(at_least_float32(outputs), anchors)

    @cached_property
    def edge_logits(self) -> Tensor:
        if not self._adapter.edge_bins:
            raise self._lacks("edge_logits")
        outputs = by_anchor(self.predictions[1], self._adapter.output_dims[1])
        return outputs.unflatten(2, (4, -1))

    def cross_head(self, features: TowerFeatures) -> "DenseTeacherTensors":
        if not self._adapter.layout.tower_channels:
            raise self._lacks("cross_head")
        crossed = DenseTeacherTensors(self._adapter, self.features)
        crossed.predictions = self._adapter.rest_of_head(features)
        return crossed


class DenseStudentTensors(DenseTeacherTensors):
    """The same of a student, whose head has run and whose anchors are labelled already."""

    def __init__(
        self,
        adapter: "DenseDetectorAdapter",
        features: list[Tensor],
        predictions: list[list[Tensor]],
        towers: list[list[list[Tensor]]],
        anchor_boxes: list[Boxes],
        labels: tuple[list[Tensor], list[Tensor]],
        gt_instances: list[Instances],
    ):
        super().__init__(adapter, features)
        self.predictions = predictions
        self._towers = towers
        self.anchor_boxes = anchor_boxes
        self._labels = labels
        self._gt_instances = gt_instances
        self.gt_boxes = [x.gt_boxes.tensor for x in gt_instances]

    @cached_property
    def positives(self) -> Positives:
        return find_positives(*self._labels, self._gt_instances, self._adapter.model.num_classes)

    def tower_features(self, last_convs: int) -> TowerFeatures:
        if not self._towers:
            raise self._lacks("tower_features")
        maps = ([self.features, *tower][-1 - last_convs] for tower in self._towers)
        return TowerFeatures(*maps, last_convs)


class DenseDetectorAdapter(DetectorAdapter):
    """
    For a detector that keeps to RetinaNet's interface: num_classes, anchor_generator,
    box2box_transform, label_anchors(anchors, gt_instances) -> (labels, boxes), and losses(anchors,
    pred_logits, gt_labels, pred_anchor_deltas, gt_boxes, further predictions...).

    A detector's own adapter sets what differs: dims of the head's outputs, how scores are read.
    """

    map_scores = SIGMOID
    class_scores = SIGMOID
    # Bins of the distribution of each box edge, where that is what the head gives.
    edge_bins = 0
    # The head's attributes that are its towers, for the classes and for the boxes: in each every
    # convolution is followed by what belongs to it. With them goes head_outputs.
    tower_names: tuple[str, ...] = ()

    teacher_offers = frozenset(
        {
            *("features", "prediction_maps", "anchors"),
            *("class_logits_at", "pred_boxes_at", "pred_boxes"),
        }
    )
    student_offers = teacher_offers | {"gt_boxes", "positives"}

    def __init__(self, model: DenseDetector, input_format: str):
        super().__init__(model, input_format)
        towers = [getattr(model.head, name, None) for name in self.tower_names]
        if not all(isinstance(tower, nn.Sequential) for tower in towers):
            towers = []  # a subclass's head of its own
        self.tower_blocks = [_conv_blocks(tower) for tower in towers]
        if towers:
            self.teacher_offers = self.teacher_offers | {"cross_head"}
            self.student_offers = self.student_offers | {"cross_head", "tower_features"}
        self.layout = layout_of(
            model,
            model.num_classes,
            model.head_in_features,
            model.anchor_generator,
            input_format,
            map_scores=self.map_scores,
            class_scores=self.class_scores,
            edge_bins=self.edge_bins,
            tower_channels=self._tower_channels(),
        )

    def _tower_channels(self) -> tuple[int, ...]:
        if not self.tower_blocks:
            return ()
        shapes = self.model.backbone.output_shape()
        first = shapes[self.model.head_in_features[0]].channels
        return first, *(block[0].out_channels for block in self.tower_blocks[0])

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
        with self._recorded_towers() as towers:
            predictions = model.head(features)
        anchors = model.anchor_generator(features)
        gt_labels, gt_boxes = model.label_anchors(anchors, gt_instances)
        logits, deltas, *further = model._transpose_dense_predictions(predictions, self.output_dims)
        losses = model.losses(anchors, logits, gt_labels, deltas, gt_boxes, *further)
        return losses, DenseStudentTensors(
            self, features, predictions, towers, anchors, (gt_labels, gt_boxes), gt_instances
        )

    @contextmanager
    def _recorded_towers(self) -> Iterator[list[list[list[Tensor]]]]:
        """Of each tower, after each convolution and what belongs to it, the maps of the levels."""
        towers: list[list[list[Tensor]]] = [[[] for _ in blocks] for blocks in self.tower_blocks]
        hooks = []
        for blocks, tower in zip(self.tower_blocks, towers):
            for block, maps in zip(blocks, tower):
                # What autograd keeps anyway.
                hook = block[-1].register_forward_hook(lambda *call, to=maps: to.append(call[-1]))
                hooks.append(hook)
        try:
            yield towers
        finally:
            for hook in hooks:
                hook.remove()

    def rest_of_head(self, features: TowerFeatures) -> list[list[Tensor]]:
        """Class logits and box values, as the head gives them, of maps inside its towers."""
        ends = []
        for blocks, maps in zip(self.tower_blocks, (features.class_maps, features.box_maps)):
            rest = nn.Sequential(*blocks[len(blocks) - features.last_convs :])
            # Another's maps may be of half precision where these layers are not.
            ends.append([rest(at_least_float32(x)) for x in maps])
        return self.head_outputs(*ends)

    def head_outputs(self, class_maps: list[Tensor], box_maps: list[Tensor]) -> list[list[Tensor]]:
        """The same of the maps at the towers' ends, L x (N, C, Hl, Wl)."""
        raise TypeError(f"{type(self).__name__} must define head_outputs")

    def forward_teacher(self, batched_inputs: list[dict[str, Any]]) -> DenseTeacherTensors:
        return DenseTeacherTensors(self, self._features(batched_inputs))

    def _features(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        features = self.model.backbone(self.model.preprocess_image(batched_inputs).tensor)
        return [features[f] for f in self.model.head_in_features]


def _conv_blocks(tower: nn.Sequential) -> list[nn.Sequential]:
    """A tower cut before each of its convolutions."""
    starts = [i for i, layer in enumerate(tower) if isinstance(layer, nn.Conv2d)]
    return [tower[i:j] for i, j in zip(starts, [*starts[1:], len(tower)])]


@ADAPTER_REGISTRY.register()
class RetinaNetAdapter(DenseDetectorAdapter):
    """RetinaNet: class logits and deltas of A anchors a location."""

    tower_names = "cls_subnet", "bbox_subnet"

    def head_outputs(self, class_maps: list[Tensor], box_maps: list[Tensor]) -> list[list[Tensor]]:
        head = self.model.head
        return [[head.cls_score(x) for x in class_maps], [head.bbox_pred(x) for x in box_maps]]


@ADAPTER_REGISTRY.register()
class FCOSAdapter(RetinaNetAdapter):
    """FCOS: one point a location, with a centerness. Its class scores are taken without it."""

    @property
    def output_dims(self) -> list[int]:
        return [self.model.num_classes, 4, 1]


class TowerHeadAdapter(DenseDetectorAdapter):
    """What ATSS and GFL share: a TowerHead."""

    tower_names = "class_tower", "box_tower"

    def head_outputs(self, class_maps: list[Tensor], box_maps: list[Tensor]) -> list[list[Tensor]]:
        head = self.model.head
        boxes = [head.box_values(x) * scale for x, scale in zip(box_maps, head.box_scales)]
        return [[head.class_logits(x) for x in class_maps], boxes]


@ADAPTER_REGISTRY.register()
class ATSSAdapter(TowerHeadAdapter):
    """ATSS: one anchor a location, with a centre-ness."""


@ADAPTER_REGISTRY.register()
class GFLAdapter(TowerHeadAdapter):
    """GFL: scores that join class and quality; a side of a box is a distribution over bins."""

    map_scores = class_scores = JOINT
    teacher_offers = DenseDetectorAdapter.teacher_offers | {"edge_logits"}
    student_offers = DenseDetectorAdapter.student_offers | {"edge_logits"}

    @property
    def edge_bins(self) -> int:
        return self.model.box2box_transform.reg_max + 1


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

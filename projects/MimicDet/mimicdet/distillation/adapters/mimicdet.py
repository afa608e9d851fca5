"""
MimicDet as student and as teacher.

It has no class scores for whole maps: the S-head classifies proposals, the refinement module sees
every location and knows one class, object or not. Not in the papers, chosen so that the cost stays
bounded whatever the size of the map:

- prediction_maps are the refinement module's objectness;
- positives are the refinement module's own assignment, one anchor a location;
- class_logits_at and pred_boxes_at run the S-head at the requested anchors, a few dozen an image,
  beside the proposals; their boxes start from the adjusted anchor box of the same detector.
"""

from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ...modeling.meta_arch.mimicdet import MimicDet
from ...modeling.structures import BoxQuery, HeadPredictions, RefinementPredictions, TrainingTensors
from ..tensors import OBJECTNESS, SOFTMAX, DetectorTensors, Locations, Positives
from .base import ADAPTER_REGISTRY, DetectorAdapter, layout_of


class MimicDetTensors(DetectorTensors):
    """What both roles have in common; a subclass says where the refinement's outputs are from."""

    refined: RefinementPredictions

    def __init__(
        self, model: MimicDet, maps: dict[str, Tensor], image_sizes: list[tuple[int, int]]
    ):
        """maps: the backbone's by name."""
        self._model = model
        self._maps = maps
        self.features = [maps[f] for f in model.proposal_generator.in_features]
        self._image_sizes = image_sizes
        self._last: tuple[Locations, HeadPredictions] | None = None

    @property
    def prediction_maps(self) -> list[Tensor]:
        sizes = [x.shape[-2:] for x in self.features]
        logits = self.refined.pred_objectness_logits.split([h * w for h, w in sizes], dim=1)
        return [x.unflatten(1, (1, *size)) for x, size in zip(logits, sizes)]

    @property
    def anchors(self) -> list[Tensor]:
        return list(self.refined.anchors.split([x.shape[-2:].numel() for x in self.features]))

    def class_logits_at(self, locations: Locations) -> Tensor:
        return self._s_head_at(locations).pred_class_logits

    def pred_boxes_at(self, locations: Locations) -> Tensor:
        deltas = self._s_head_at(locations).pred_box_deltas
        boxes = self._model.proposal_generator.adjusted_boxes(self.refined, self._image_sizes)
        adjusted = boxes[locations.images, locations.anchors]
        return self._model.student_head.settings.box2box_transform.apply_deltas(deltas, adjusted)

    def _s_head_at(self, locations: Locations) -> HeadPredictions:
        """One call of the S-head for the logits and the boxes of the same anchors."""
        if self._last is None or self._last[0] is not locations:
            requested = [
                locations.anchors[locations.images == n] for n in range(len(self._image_sizes))
            ]
            head = self._model.student_head
            self._last = locations, head(self._maps, self.refined.delta_maps, requested)
        return self._last[1]


class MimicDetStudentTensors(MimicDetTensors):
    """
    The records of MimicDet.forward_training. It can also stand in the teacher's place, for its own
    T-head's view of the boxes of box_query (3.4).
    """

    def __init__(self, model: MimicDet, step: TrainingTensors):
        super().__init__(model, step.maps, step.image_sizes)
        self.refined = step.refined
        self._step = step
        self.gt_boxes = [x.gt_boxes.tensor for x in step.gt_instances]
        self.box_query, self.query_labels = step.query, step.labelled
        if step.student is not None:
            self.head_predictions = step.student

    @cached_property
    def positives(self) -> Positives:
        labels, gt_instances = self._step.anchor_labels, self._step.gt_instances
        images, anchors = torch.nonzero(labels.labels == 1, as_tuple=True)
        counts = [0, *(len(x) for x in gt_instances[:-1])]
        first = torch.as_tensor(counts, device=images.device).cumsum(0)
        objects = first[images] + labels.matched_idxs[images, anchors]
        return Positives.of(images, anchors, objects, gt_instances)

    def box_head_predictions_at(self, query: BoxQuery) -> HeadPredictions:
        if self._step.teacher is None or query is not self._step.query:
            raise self._lacks("box_head_predictions_at for boxes that it did not sample itself")
        averaged = self._model.averaged_teacher
        return averaged.predict(self._step.maps, query) if averaged else self._step.teacher

    def cross_predictions(self, other: HeadPredictions) -> HeadPredictions:
        averaged = self._model.averaged_teacher
        return (averaged.head if averaged else self._model.roi_heads).cross_outputs(other)


class MimicDetTeacherTensors(MimicDetTensors):
    """A frozen MimicDet: pyramid at once, refinement module and heads where they are read."""

    @cached_property
    def refined(self) -> RefinementPredictions:
        return self._model.proposal_generator.predict(self.features)

    def box_head_predictions_at(self, query: BoxQuery) -> HeadPredictions:
        return self._model.roi_heads.predict(self._maps, query.boxes, query.levels)

    def cross_predictions(self, other: HeadPredictions) -> HeadPredictions:
        return self._model.roi_heads.cross_outputs(other)


@ADAPTER_REGISTRY.register()
class MimicDetAdapter(DetectorAdapter):
    """MimicDet; what it offers depends on the heads that it has."""

    def __init__(self, model: MimicDet, input_format: str):
        super().__init__(model, input_format)
        module = model.proposal_generator
        self.layout = layout_of(
            model,
            model.num_classes,
            module.in_features,
            module.anchor_generator,
            input_format,
            map_scores=OBJECTNESS,
            class_scores=SOFTMAX if model.student_head is not None else "",
        )
        both = {"features", "prediction_maps", "anchors"}
        student = {"gt_boxes", "positives", "box_query", "query_labels"}
        if model.student_head is not None:
            both |= {"class_logits_at", "pred_boxes_at"}
            student |= {"head_predictions"}
        if model.roi_heads is not None:
            # In evaluation the levels of the T-head are there only where it is the head that runs.
            offers = both if model.eval_head == "teacher" else student
            offers |= {"box_head_predictions_at", "cross_predictions"}
        self.student_offers = frozenset(both | student)
        self.teacher_offers = frozenset(both)

    def forward_training(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], MimicDetStudentTensors]:
        losses, step = self.model.forward_training(batched_inputs)
        return losses, MimicDetStudentTensors(self.model, step)

    def forward_teacher(self, batched_inputs: list[dict[str, Any]]) -> MimicDetTeacherTensors:
        images = self.model.preprocess_image(batched_inputs)
        maps = self.model.backbone(images.tensor)
        return MimicDetTeacherTensors(self.model, maps, images.image_sizes)

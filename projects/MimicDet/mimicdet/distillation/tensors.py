"""
The vocabulary between detectors and distillation methods.

A detector's adapter offers some of the attributes of `DetectorTensors`, a method asks for some of
them by name. Shape shorthand as in structures.py, and:

    A: anchors a location (1 for anchor points)     R: anchors of all levels = sum of Hl * Wl * A
    P: requested anchors, of all images  M: ground-truth objects of the batch

An anchor's index is level by level, row-major inside a level, then by A: Detectron2's order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from detectron2.structures import Instances
from torch import Tensor

from ..modeling.structures import BoxQuery, HeadPredictions, LabelledBoxes

# How a logit is turned into a score. "joint": sigmoid of class and localisation quality at once
# (GFL); "objectness": sigmoid of one class, object or not.
SIGMOID, JOINT, OBJECTNESS, SOFTMAX = "sigmoid", "joint", "objectness", "softmax"


@dataclass(frozen=True)
class Locations:
    """Anchors of the batch that somebody asks about, image after image."""

    images: Tensor  # (P,) int64 in [0, N), ascending
    anchors: Tensor  # (P,) int64 in [0, R)


@dataclass(frozen=True)
class Positives(Locations):
    """The anchors that a student's own assignment makes positive, and their objects."""

    objects: Tensor  # (P,) int64 in [0, M): the batch's objects, image after image
    gt_boxes: Tensor  # (P, 4) XYXY in input pixels: the object's box
    gt_classes: Tensor  # (P,) int64 in [0, K): the object's class
    num_objects: int  # M, objects without a positive anchor among them

    @classmethod
    def of(
        cls, images: Tensor, anchors: Tensor, objects: Tensor, gt_instances: Sequence[Instances]
    ) -> "Positives":
        """What the objects of the batch, gt_instances, add to the first three fields."""
        return cls(
            images=images,
            anchors=anchors,
            objects=objects,
            gt_boxes=torch.cat([x.gt_boxes.tensor for x in gt_instances])[objects],
            gt_classes=torch.cat([x.gt_classes for x in gt_instances])[objects],
            num_objects=sum(len(x) for x in gt_instances),
        )


@dataclass(frozen=True)
class TowerFeatures:
    """Maps inside a dense head: all but the last convolutions of its two towers have been there."""

    class_maps: list[Tensor]  # L x (N, C, Hl, Wl), in the tower that classifies
    box_maps: list[Tensor]  # the same in the other
    last_convs: int  # of each tower, that the maps have not passed


@dataclass(frozen=True)
class DetectorLayout:
    """What is known of a detector when it is built; a pair must agree where a method says so."""

    name: str  # its meta-architecture
    num_classes: int
    strides: tuple[int, ...]  # of the levels that it offers
    channels: tuple[int, ...]  # of the same
    size_divisibility: int  # what its images are padded to
    cell_anchors: tuple[tuple[tuple[float, ...], ...], ...]  # L x A x (x0, y0, x1, y1)
    anchor_offset: float  # of the first anchor's centre, in strides
    input_format: str  # "BGR" or "RGB"
    map_scores: str = ""  # how prediction_maps are read; "": none are offered
    class_scores: str = ""  # how class_logits_at is read; "": not offered
    edge_bins: int = 0  # of the distribution of each box edge, edge_logits; 0: there is none
    # Of a dense head's towers: of what they read and of each convolution; (): it has none.
    tower_channels: tuple[int, ...] = ()

    @property
    def anchors_per_location(self) -> tuple[int, ...]:
        return tuple(len(level) for level in self.cell_anchors)


class DetectorTensors:
    """
    What a detector offers of one batch. Every attribute is computed when it is first read, so
    that a method pays for nothing that it does not use. An adapter's subclass defines those that
    its detector has, or sets what is there already, and names them in its offers; asking for
    another is an error.
    """

    @cached_property
    def features(self) -> list[Tensor]:
        """L x (N, C, Hl, Wl): the maps that the dense head reads, fine to coarse."""
        raise self._lacks("features")

    @cached_property
    def prediction_maps(self) -> list[Tensor]:
        """L x (N, A * K, Hl, Wl) logits of every location, to be read as layout.map_scores."""
        raise self._lacks("prediction_maps")

    @cached_property
    def anchors(self) -> list[Tensor]:
        """L x (Hl * Wl * A, 4) XYXY in input pixels; anchor points as squares of their stride."""
        raise self._lacks("anchors")

    @cached_property
    def gt_boxes(self) -> list[Tensor]:
        """N x (Gi, 4) XYXY in input pixels. Of a student alone."""
        raise self._lacks("gt_boxes")

    @cached_property
    def positives(self) -> Positives:
        """The student's own assignment. Of a student alone."""
        raise self._lacks("positives")

    def class_logits_at(self, locations: Locations) -> Tensor:
        """(P, K) logits of the anchors, or (P, K + 1) with the background last (softmax)."""
        raise self._lacks("class_logits_at")

    def pred_boxes_at(self, locations: Locations) -> Tensor:
        """(P, 4) XYXY in input pixels: the boxes that the anchors predict, not clipped."""
        raise self._lacks("pred_boxes_at")

    @cached_property
    def pred_boxes(self) -> Tensor:
        """(N, R, 4) XYXY in input pixels: the boxes of all anchors, not clipped."""
        raise self._lacks("pred_boxes")

    @cached_property
    def edge_logits(self) -> Tensor:
        """(N, R, 4, layout.edge_bins) before the softmax: of each edge of all anchors' boxes."""
        raise self._lacks("edge_logits")

    def tower_features(self, last_convs: int) -> TowerFeatures:
        """What the head's last convolutions read. Of a student alone."""
        raise self._lacks("tower_features")

    def cross_head(self, features: TowerFeatures) -> "DetectorTensors":
        """
        What the rest of this detector's head makes of another's features: prediction_maps,
        pred_boxes, edge_logits. A frozen teacher's has gradients too, to the features.
        """
        raise self._lacks("cross_head")

    @cached_property
    def box_query(self) -> BoxQuery:
        """The boxes that a two-stage head is run on, for head_predictions. MimicDet's."""
        raise self._lacks("box_query")

    @cached_property
    def query_labels(self) -> LabelledBoxes:
        """The boxes of box_query, image after image, with their objects. MimicDet's."""
        raise self._lacks("query_labels")

    @cached_property
    def head_predictions(self) -> HeadPredictions:
        """The S-head's outputs for the boxes of box_query. MimicDet's."""
        raise self._lacks("head_predictions")

    def box_head_predictions_at(self, query: BoxQuery) -> HeadPredictions:
        """A two-stage head's outputs for the boxes of the query. MimicDet's T-head."""
        raise self._lacks("box_head_predictions_at")

    def cross_predictions(self, other: HeadPredictions) -> HeadPredictions:
        """
        The outputs that the two-stage head's last layers compute of another head's features, which
        get gradients; the layers get none. MimicDet's T-head.
        """
        raise self._lacks("cross_predictions")

    def _lacks(self, name: str) -> Exception:
        # No AttributeError: Python would look for the name elsewhere and lose this message.
        return NotImplementedError(f"{type(self).__name__} does not offer {name}")


def scores(logits: Tensor, reading: str) -> Tensor:
    """Probabilities in [0, 1] of the foreground classes: (P, K), whatever the reading."""
    if reading == SOFTMAX:
        return logits.softmax(dim=1)[:, :-1]
    return logits.sigmoid()


def gather_at(maps: list[Tensor], dims: int, locations: Locations) -> Tensor:
    """
    Rows of dense predictions, without a copy of the maps.

    Args:
        maps: L x (N, A * dims, Hl, Wl), as a dense head gives them.

    Returns:
        (P, dims), in the order of the locations.
    """
    rows, order, start = [], [], 0
    for x in maps:
        batch, channels, height, width = x.shape
        per_location = channels // dims
        count = height * width * per_location
        inside = (locations.anchors >= start) & (locations.anchors < start + count)
        chosen = torch.nonzero(inside).squeeze(1)
        index = locations.anchors[chosen] - start
        cell = torch.div(index, per_location, rounding_mode="floor")
        split = x.view(batch, per_location, dims, height * width)
        rows.append(split[locations.images[chosen], index % per_location, :, cell])
        order.append(chosen)
        start += count
    return torch.cat(rows)[torch.cat(order).argsort()]


def by_anchor(maps: list[Tensor], dims: int) -> Tensor:
    """L x (N, A * dims, Hl, Wl), as a dense head gives them -> (N, R, dims)."""
    levels = [x.unflatten(1, (-1, dims)).permute(0, 3, 4, 1, 2).flatten(1, 3) for x in maps]
    return torch.cat(levels, dim=1)

"""MimicDet's own method: the S-head imitates the T-head box by box (3.4, Eq. 1)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import torch
from detectron2.config import configurable
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from detectron2.structures.boxes import matched_pairwise_iou
from torch import Tensor, nn

from ...config import config_check
from ...modeling.layers.precision import at_least_float32
from ...modeling.losses import cosine_gap
from ...modeling.meta_arch.config_checks import is_mimicdet
from ...modeling.structures import HeadPredictions, LabelledBoxes
from ...utils.errors import check_choice, check_choices
from ..head_losses import (
    BOX_LOSSES,
    FEATURE_LOSSES,
    SCORE_LOSSES,
    WEIGHTINGS,
    box_weights,
    weighted_mean,
)
from ..tensors import DetectorLayout, DetectorTensors
from .base import DISTILLATION_REGISTRY, DistillationMethod

# Which output of a head each term compares: of heads that are split, and of those that are not
# (Table 3's light and heavy rows).
FEATURE_TERMS = {
    True: {
        "CLS": "pred_class_logits",
        "LOC": "box_features",
        "CLASS_FEATURES": "class_features",
    },
    False: {"SHARED": "box_features"},
}
PAPER_TERMS = ("CLS", "LOC", "SHARED")  # Eq. 1
OUTPUT_TERMS = ("SCORES", "BOXES", "CROSS_SCORES", "CROSS_BOXES", "QUALITY")


@DISTILLATION_REGISTRY.register()
class HeadMimic(DistillationMethod):
    """
    L_mimic = 1/N * (sum(1 - cos(F_tr, F_sr)) + sum(1 - cos(F_tc, F_sc))) over the N boxes that were
    sampled for the T-head: F_c the (K + 1)-d classification logits, F_r the D-d regression feature.

    With heads that are not split (Table 3's light and heavy rows) there is one term, over the last
    shared D-d feature.

    Not in the paper: terms of the heads' outputs, and factors of all terms. A term NAME that has a
    factor writes loss_mimic_<name>; it is a function of a box, averaged over the boxes:

        CLS, LOC: the paper's two; SHARED: the one of heads that are not split.
        CLASS_FEATURES: the D-d feature that the logits are made of. With few classes the logits say
            little about it.
        SCORES: class probabilities. BOXES: predicted boxes, over the boxes that have an object.
        CROSS_SCORES, CROSS_BOXES: the same, of what the T-head's output layers make of the S-head's
        features; those layers do not learn from it. Source: Wang et al., CrossKD: Cross-Head
        Knowledge Distillation for Object Detection, CVPR 2024; here the cut is the last layer.
        QUALITY: as SCORES, but the target is the IoU of the T-head's box with the object for the
        object's class, the rest for the background: a score that says how good a box is.

    It has no node in DISTILLATION: MODEL.MIMICDET.MIMIC switches it on. The teacher is the T-head
    on the student's own backbone, or the separate one of Table 5.
    """

    needs_student = frozenset({"head_predictions", "box_query"})
    needs_teacher = frozenset({"box_head_predictions_at"})

    @configurable
    def __init__(
        self,
        *,
        dual_path: bool,
        detach_teacher: bool = True,
        terms: Mapping[str, float] | None = None,
        feature_loss: str = "cosine",
        projector: tuple[int, int] | None = None,
        score_loss: str = "softmax",
        box_loss: str = "giou",
        delta_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
        weighting: Sequence[str] = (),
        max_background: float = 1.0,
    ):
        """
        Args:
            dual_path: two terms of Eq. 1 (the paper's design) or one.
            detach_teacher: no gradient reaches the teacher. Not in the paper, which leaves it open.
            terms: factor of each term, 0: without it; None: those of Eq. 1. Of FEATURE_TERMS those
                count that the heads have.
            feature_loss: a name of FEATURE_LOSSES, of FEATURE_TERMS.
            projector: widths of the student's and of the teacher's features: a linear layer on the
                student's, which trains with it and is no part of it; None: without.
            score_loss: a name of SCORE_LOSSES; box_loss: of BOX_LOSSES.
            delta_weights: of both heads' deltas, as Box2BoxTransform takes them.
            weighting, max_background: how much each box counts, see head_losses.box_weights.
        """
        super().__init__()
        check_choice("MODEL.MIMICDET.MIMIC.FEATURE_LOSS", feature_loss, FEATURE_LOSSES)
        check_choice("MODEL.MIMICDET.MIMIC.SCORE_LOSS", score_loss, SCORE_LOSSES)
        check_choice("MODEL.MIMICDET.MIMIC.BOX_LOSS", box_loss, BOX_LOSSES)
        check_choices("MODEL.MIMICDET.MIMIC.WEIGHTING", weighting, WEIGHTINGS)
        self.detach_teacher = detach_teacher
        terms = dict.fromkeys(PAPER_TERMS, 1.0) if terms is None else terms
        features = FEATURE_TERMS[dual_path]
        self.compared = {k: x for k, x in features.items() if k in PAPER_TERMS or terms.get(k)}
        self.terms = {k: terms[k] for k in (*self.compared, *OUTPUT_TERMS) if terms.get(k)}
        self.loss_names = tuple(f"loss_mimic_{name.lower()}" for name in self.terms)
        self.feature_gap = FEATURE_LOSSES[feature_loss]
        self.score_gap = SCORE_LOSSES[score_loss]
        self.box_gap = BOX_LOSSES[box_loss]
        self.box2box_transform = Box2BoxTransform(tuple(delta_weights))
        self.weighs = (weighting, max_background) if weighting or max_background < 1 else ()
        if any(term.startswith("CROSS") for term in self.terms):
            self.needs_teacher |= {"cross_predictions"}
        if {"BOXES", "CROSS_BOXES", "QUALITY"} & set(self.terms) or self.weighs:
            self.needs_student |= {"query_labels"}
        self.projectors = nn.ModuleDict()
        if projector:
            for name in _projected(self.terms):
                self.projectors[name] = _projector(*projector)
        self._cosines: dict[str, Tensor] = {}  # of the last step, for the logs

    @classmethod
    def from_config(cls, cfg, student: DetectorLayout, teacher: DetectorLayout):
        keys = cfg.MODEL.MIMICDET
        # A separate teacher has the same FC_DIM, see teacher.check_fit.
        widths = keys.STUDENT.FEATURE_DIM, cfg.MODEL.ROI_BOX_HEAD.FC_DIM
        return {
            "dual_path": keys.STUDENT.DUAL_PATH,
            "detach_teacher": keys.MIMIC.DETACH_TEACHER,
            "terms": dict(keys.MIMIC.TERMS),
            "feature_loss": keys.MIMIC.FEATURE_LOSS,
            "projector": widths if keys.MIMIC.PROJECTOR else None,
            "score_loss": keys.MIMIC.SCORE_LOSS,
            "box_loss": keys.MIMIC.BOX_LOSS,
            "delta_weights": cfg.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS,
            "weighting": keys.MIMIC.WEIGHTING,
            "max_background": keys.MIMIC.MAX_BACKGROUND,
        }

    def forward(self, student: DetectorTensors, teacher: DetectorTensors) -> dict[str, Tensor]:
        """Both heads look at the boxes that the student sampled for the T-head."""
        own = self._project(student.head_predictions)
        target = teacher.box_head_predictions_at(student.box_query)
        if self.detach_teacher:  # the one place where the student's own T-head is detached
            target = HeadPredictions(*(x.detach() for x in vars(target).values()))
        self._keep_cosines(own, target)
        weights = None
        if self.weighs:
            classes = student.query_labels.gt_classes
            weights = box_weights(target.pred_class_logits, classes, *self.weighs)
        crosses = "cross_predictions" in self.needs_teacher
        crossed = teacher.cross_predictions(own) if crosses else own
        losses = {}
        for term, factor in self.terms.items():
            outputs = crossed if term.startswith("CROSS") else own
            if output := self.compared.get(term):
                gap = self.feature_gap(getattr(own, output), getattr(target, output))
                loss = weighted_mean(gap, weights)
            elif term.endswith("BOXES"):
                loss = self._box_loss(outputs, target, student.query_labels, weights)
            else:
                aim = target.pred_class_logits
                if term == "QUALITY":
                    aim = self._quality(target, student.query_labels)
                loss = weighted_mean(self.score_gap(outputs.pred_class_logits, aim), weights)
            losses[f"loss_mimic_{term.lower()}"] = factor * loss
        return losses

    def _project(self, own: HeadPredictions) -> HeadPredictions:
        return replace(own, **{k: layer(getattr(own, k)) for k, layer in self.projectors.items()})

    def _box_loss(
        self,
        own: HeadPredictions,
        target: HeadPredictions,
        boxes: LabelledBoxes,
        weights: Tensor | None,
    ) -> Tensor:
        """Over the boxes with an object: the T-head's deltas of others learn nothing."""
        chosen = boxes.foreground(own.pred_class_logits.shape[1] - 1)
        deltas = own.pred_box_deltas[chosen], target.pred_box_deltas[chosen]
        gap = self.box_gap(*deltas, boxes.boxes[chosen], self.box2box_transform)
        return weighted_mean(gap, None if weights is None else weights[chosen])

    @torch.no_grad()
    def _quality(self, target: HeadPredictions, boxes: LabelledBoxes) -> Tensor:
        """The T-head's boxes as (b, K + 1) log-probabilities, see QUALITY."""
        logits = target.pred_class_logits
        chosen = boxes.foreground(logits.shape[1] - 1)
        boxes = boxes.select(chosen)
        deltas = at_least_float32(target.pred_box_deltas[chosen])
        found = self.box2box_transform.apply_deltas(deltas, boxes.boxes)
        iou = matched_pairwise_iou(Boxes(found), Boxes(boxes.gt_boxes)).clamp(max=1)
        scores = torch.zeros_like(logits, dtype=iou.dtype)
        scores[chosen] = scores[chosen].scatter(1, boxes.gt_classes[:, None], iou[:, None])
        scores[:, -1] = 1 - scores.sum(dim=1)
        return scores.log()

    @torch.no_grad()
    def _keep_cosines(self, own: HeadPredictions, target: HeadPredictions) -> None:
        self._cosines = {
            term.lower(): 1 - weighted_mean(cosine_gap(getattr(own, name), getattr(target, name)))
            for term, name in self.compared.items()
        }

    def metrics(self, losses: dict[str, Tensor]) -> dict[str, float]:
        """Mean cosine of each branch in the last step, whatever the terms are."""
        return {f"mimic/cosine_{name}": value.item() for name, value in self._cosines.items()}


@config_check
def check_mimic_terms(cfg) -> list[str]:
    """Factors of MIMIC.TERMS below 0, and none above 0 that heads of this design have."""
    keys = cfg.MODEL.MIMICDET
    if not is_mimicdet(cfg) or not keys.MIMIC.ENABLED:
        return []
    problems = [
        f"MODEL.MIMICDET.MIMIC.TERMS.{name} must not be below 0, got {factor}"
        for name, factor in keys.MIMIC.TERMS.items()
        if factor < 0
    ]
    terms = (*FEATURE_TERMS[keys.STUDENT.DUAL_PATH], *OUTPUT_TERMS)
    if not any(keys.MIMIC.TERMS[name] for name in terms):
        problems.append(
            f"MODEL.MIMICDET.MIMIC.ENABLED is True, but {', '.join(terms)} of MIMIC.TERMS are all "
            "0. LOSS_WEIGHT 0 logs the cosines without a mimic loss"
        )
    return problems


def _projected(terms: Collection[str]) -> list[str]:
    """The features of the student that the terms look at."""
    users = {
        "class_features": {"CLASS_FEATURES", "CROSS_SCORES"},
        "box_features": {"LOC", "SHARED", "CROSS_BOXES"},
    }
    return [name for name, own in users.items() if own & set(terms)]


def _projector(student: int, teacher: int) -> nn.Linear:
    """It begins as the identity where the widths are equal: as if it were not there."""
    layer = nn.Linear(student, teacher)
    if student == teacher:
        nn.init.eye_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

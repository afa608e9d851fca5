"""The MimicDet meta-architecture: orchestration only. Shape shorthand: see structures.py."""

import logging
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from detectron2.config import configurable
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    Backbone,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import ImageList, Instances
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from ...config import check_config
from ...utils.errors import UserError, check_choice
from ..heads.averaged_teacher import AveragedTeacher
from ..heads.copies import COPIES, OUTPUT_LAYERS
from ..heads.labels import BoxSampling
from ..heads.settings import HeadSettings
from ..heads.student_head import StudentHead
from ..heads.teacher_head import MimicTeacherHeads
from ..layers import PyramidReader
from ..postprocess import rescale_detections
from ..proposal_generator.picture import draw_proposals
from ..proposal_generator.refinement import RefinementModule
from ..structures import BoxQuery, LabelledBoxes, ModelOutputs, TrainingTensors, flat_indices

EVAL_HEADS = ("student", "teacher")

logger = logging.getLogger(__name__)


@META_ARCH_REGISTRY.register()
class MimicDet(nn.Module):
    """
    One-stage detector that learns from a two-stage head on the same backbone (the paper's Fig. 1).

    In training it returns the losses of refinement module, S-head and T-head; the mimic loss
    between the two heads is a distillation method and is added by `mimicdet.distillation.Distiller`
    (which MimicTrainer uses) from what `forward_training` offers. In evaluation the T-head is not
    touched and P2 not computed, unless eval_head is "teacher".
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        proposal_generator: RefinementModule,
        student_head: StudentHead | None,
        roi_heads: MimicTeacherHeads | None,
        sampling: BoxSampling,
        pixel_mean: tuple[float, ...],
        pixel_std: tuple[float, ...],
        input_format: str = "BGR",
        vis_period: int = 0,
        eval_head: str = "student",
        mimics: bool = False,
        student_start: int = 0,
        teacher_decay: float = 0.0,
        copies: Sequence[str] = (),
        copy_at: int = 0,
        share_outputs: bool = False,
    ):
        """
        Args:
            student_head: None makes a two-stage detector (Table 5's separate teacher).
            roi_heads: the T-head; None: Table 1's first row, or a teacher that lives elsewhere.
            sampling: labels the proposals, and samples those that train the T-head and the mimic
                loss.
            pixel_mean, pixel_std, input_format: as in Detectron2's meta-architectures.
            vis_period: iterations between two pictures of proposals; 0: none.
            eval_head: "student" or "teacher".
            mimics: the config asks for the mimic loss, which a Distiller adds: training without
                one warns once.
            student_start: the iteration before which the losses of the S-head are 0.
            teacher_decay: above 0: an average of the T-head is kept and imitated, see
                AveragedTeacher.
            copies: names of COPIES: layers of the T-head that the S-head takes over at the
                beginning of iteration copy_at.
            share_outputs: the S-head's output layers are the T-head's.
        """
        super().__init__()
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.student_head = student_head
        self.roi_heads = roi_heads
        self.sampling = sampling
        self.num_classes = sampling.num_classes
        self.input_format = input_format
        self.vis_period = vis_period
        self.mimics = mimics
        self.student_start = student_start
        self.copies = tuple(copies)
        self.copy_at = copy_at
        if share_outputs:
            for name in OUTPUT_LAYERS:
                setattr(student_head, name, getattr(roi_heads, name))
        self.averaged_teacher = AveragedTeacher(roi_heads, teacher_decay) if teacher_decay else None
        # Mixed precision of inference; optimize_for_inference sets it.
        self.autocast_dtype: torch.dtype | None = None
        self.register_buffer("pixel_mean", torch.tensor(pixel_mean).view(-1, 1, 1), False)
        self.register_buffer("pixel_std", torch.tensor(pixel_std).view(-1, 1, 1), False)
        self.set_eval_head(eval_head)

    @classmethod
    def from_config(cls, cfg):
        check_config(cfg)
        backbone = build_backbone(cfg)
        shapes = backbone.output_shape()
        keys = cfg.MODEL.MIMICDET
        return {
            "backbone": backbone,
            "proposal_generator": build_proposal_generator(cfg, shapes),
            "student_head": StudentHead(cfg, shapes) if keys.STUDENT.ENABLED else None,
            "roi_heads": build_roi_heads(cfg, shapes) if keys.TEACHER.ENABLED else None,
            "sampling": BoxSampling.from_config(cfg),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "eval_head": keys.EVAL_HEAD,
            "mimics": keys.MIMIC.ENABLED,
            "student_start": keys.STUDENT.START_ITER,
            "copies": [x for x in COPIES if keys.MIMIC.ENABLED and keys.MIMIC[x]],
            "copy_at": keys.MIMIC.START_ITER,
            "share_outputs": keys.MIMIC.ENABLED and keys.MIMIC.SHARE_OUTPUTS,
            "teacher_decay": keys.MIMIC.TEACHER_EMA if keys.MIMIC.ENABLED else 0.0,
        }

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def set_eval_head(self, eval_head: str) -> None:
        """Choose the head that evaluation runs; UserError where the model lacks it."""
        check_choice("MODEL.MIMICDET.EVAL_HEAD", eval_head, EVAL_HEADS)
        if (self.student_head if eval_head == "student" else self.roi_heads) is None:
            raise UserError(
                f"MODEL.MIMICDET.EVAL_HEAD is {eval_head!r}, but the model has no such head: "
                f"MODEL.MIMICDET.{eval_head.upper()}.ENABLED is False, or the model is a copy "
                "for inference, which holds one head"
            )
        self.eval_head = eval_head
        if hasattr(self.backbone, "eval_out_features"):
            head = self.student_head if eval_head == "student" else self.roi_heads
            levels = [*self.proposal_generator.in_features, *head.in_features]
            self.backbone.eval_out_features = levels

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """
        Args:
            batched_inputs: Detectron2's standard dicts: image (C, H, W) in input_format, 0..255;
                in training instances; optionally crowd_boxes (Boxes), height, width.

        Returns:
            in training the dict of losses; else [{"instances": Instances}], in the size given by
            height and width.
        """
        if not self.training:
            return self.inference(batched_inputs)
        if self.mimics:  # a Distiller calls forward_training
            self.mimics = False
            logger.warning(
                "MODEL.MIMICDET.MIMIC.ENABLED is True, but this training adds no mimic loss: "
                "wrap the model by mimicdet.build_distiller, as MimicTrainer does"
            )
        return self.forward_training(batched_inputs)[0]

    def forward_training(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], TrainingTensors]:
        """The losses, and the tensors that a distillation adapter reads."""
        iteration = get_event_storage().iter if has_event_storage() else 0
        if self.averaged_teacher is not None:
            self.averaged_teacher.follow(self.roi_heads, restart=iteration == 0)
        if iteration == self.copy_at:
            for name in self.copies:
                COPIES[name](self.student_head, self.roi_heads)
        images = self.preprocess_image(batched_inputs)
        gt_instances = self._ground_truth(batched_inputs)
        features = self.backbone(images.tensor)
        maps = [features[f] for f in self.proposal_generator.in_features]
        refined = self.proposal_generator.predict(maps)
        losses, labels = self.proposal_generator.losses(
            refined, [x.gt_boxes.tensor for x in gt_instances], self._crowd_boxes(batched_inputs)
        )
        proposals = self.proposal_generator.propose(refined, images.image_sizes)
        self._visualize(batched_inputs, proposals)
        proposals = self.sampling.label(proposals, gt_instances)
        indices = self.sampling.sample([x.gt_classes for x in proposals])
        sampled = [x[index] for x, index in zip(proposals, indices)]
        student = teacher = None
        queried = indices
        if self.student_head is not None:
            student_losses, student, queried = self.student_head.forward_training(
                features,
                refined.delta_maps,
                proposals,
                indices,
            )
            if iteration < self.student_start:
                student_losses = {key: 0 * loss for key, loss in student_losses.items()}
            losses.update(student_losses)
        mimicked = [x[index] for x, index in zip(proposals, queried)]
        if self.roi_heads is not None:
            # Sampled boxes, which alone train the T-head, come first in every image.
            teacher = self.roi_heads.predict_proposals(features, mimicked)
            training = teacher
            if queried is not indices:
                first = [torch.arange(len(x), device=x.device) for x in indices]
                training = teacher.select(flat_indices(first, [len(x) for x in queried]))
            losses.update(self.roi_heads.losses(training, sampled))
        self._log(labels.positives_per_level, proposals, sampled)
        query = BoxQuery([x.proposal_boxes.tensor for x in mimicked], [x.levels for x in mimicked])
        return losses, TrainingTensors(
            maps,
            refined,
            labels,
            gt_instances,
            images.image_sizes,
            student,
            teacher,
            query,
            features,
            LabelledBoxes.of(mimicked),
        )

    @torch.no_grad()
    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ):
        """
        Args:
            batched_inputs: see forward.
            detected_instances: must be None; there for Detectron2's test-time augmentation.
            do_postprocess: rescale to the dicts' height and width, as [{"instances": ...}];
                else the Instances in the size of the network's input.
        """
        if detected_instances is not None:
            raise ValueError("MimicDet detects boxes only; detected_instances must be None")
        images = self.preprocess_image(batched_inputs)
        precision = nullcontext()  # the caller's autocast holds
        if self.autocast_dtype is not None:
            precision = torch.autocast(self.device.type, self.autocast_dtype)
        with precision:
            outputs = self.predict(self.backbone(images.tensor), images.image_sizes)
        proposals = outputs.proposals
        results = self.eval_settings.detect(
            proposals.boxes, outputs.predictions, images.image_sizes, proposals.valid
        )
        if not do_postprocess:
            return results
        rescaled = []
        for result, inputs, size in zip(results, batched_inputs, images.image_sizes):
            height, width = inputs.get("height", size[0]), inputs.get("width", size[1])
            rescaled.append({"instances": rescale_detections(result, (height, width))})
        return rescaled

    @torch.no_grad()
    def predict(
        self,
        features: dict[str, Tensor],
        image_sizes: Sequence[tuple[int, int]] | Tensor,
        graph_pyramid: type[PyramidReader] | None = None,
    ) -> ModelOutputs:
        """
        From maps to predictions in evaluation: the one data flow of detection, pictures and
        exported graphs (4.2).

        Args:
            features: the backbone's maps by name.
            image_sizes: see postprocess.clip_to_images.
            graph_pyramid: reads the maps in a graph of fixed shapes, with the locations as one
                (N, M) tensor; M is MODEL.RPN.POST_NMS_TOPK_TEST also where there are fewer.
        """
        maps = [features[f] for f in self.proposal_generator.in_features]
        refined = self.proposal_generator.predict(maps)
        in_graph = graph_pyramid is not None
        proposals = self.proposal_generator.top_proposals(refined, image_sizes, in_graph)
        if self.eval_head == "student":
            locations = proposals.locations if in_graph else proposals.locations.unbind()
            predictions = self.student_head(features, refined.delta_maps, locations, graph_pyramid)
        else:
            predictions = self.roi_heads.predict(
                features, proposals.boxes.unbind(), proposals.levels.unbind()
            )
        if not in_graph:
            predictions = predictions.by_image(len(proposals.locations))
        return ModelOutputs(maps, refined, proposals, predictions)

    @property
    def eval_settings(self) -> HeadSettings:
        """Of the head that evaluation runs."""
        return (self.student_head if self.eval_head == "student" else self.roi_heads).settings

    def preprocess_image(self, batched_inputs: list[dict[str, Any]]) -> ImageList:
        """Normalise, pad and batch the images."""
        images = [x["image"].to(self.device) for x in batched_inputs]
        images = [(x - self.pixel_mean) / self.pixel_std for x in images]
        return ImageList.from_tensors(
            images,
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )

    def _ground_truth(self, batched_inputs: list[dict[str, Any]]) -> list[Instances]:
        if any("instances" not in x for x in batched_inputs):
            raise ValueError("training needs the key 'instances' in every input dict")
        return [x["instances"].to(self.device) for x in batched_inputs]

    def _crowd_boxes(self, batched_inputs: list[dict[str, Any]]) -> list[Tensor]:
        none = torch.zeros(0, 4, device=self.device)
        return [
            x["crowd_boxes"].tensor.to(self.device) if "crowd_boxes" in x else none
            for x in batched_inputs
        ]

    def _log(self, positives: Tensor, proposals: list[Instances], sampled: list[Instances]) -> None:
        """Counts that tell whether training is healthy: a mean over the images of the batch."""
        if not has_event_storage():
            return
        storage = get_event_storage()
        for name, count in zip(self.proposal_generator.in_features, positives.tolist()):
            storage.put_scalar(f"refine/num_positives_{name}", count / len(proposals))
        for name, boxes in (("student", proposals), ("teacher", sampled)):
            classes = torch.cat([x.gt_classes for x in boxes])
            foreground = ((classes >= 0) & (classes < self.num_classes)).sum()
            storage.put_scalar(f"{name}/num_foreground", int(foreground) / len(boxes))

    def _visualize(self, batched_inputs: list[dict[str, Any]], proposals: list[Instances]) -> None:
        if not (self.vis_period and has_event_storage()):
            return
        storage = get_event_storage()
        if storage.iter % self.vis_period == 0:
            first = batched_inputs[0]
            picture = draw_proposals(
                first["image"],
                proposals[0],
                first["instances"].gt_boxes.tensor,
                input_format=self.input_format,
            )
            storage.put_image("ground truth left, proposals right", picture.transpose(2, 0, 1))

"""What the methods of feature imitation share: levels, adaptation layers, checks of settings."""

from collections.abc import Sequence

import fvcore.nn.weight_init as weight_init
from detectron2.config import CfgNode as CN
from torch import Tensor, nn

from ...utils.errors import UserError
from ..masks import box_masks
from ..tensors import DetectorLayout, DetectorTensors
from .base import DistillationMethod


def feature_settings(adaptation: bool, kernel: int = 1) -> CN:
    """The keys of a method that imitates feature maps."""
    node = CN()
    # A convolution a level on the student's map, to the teacher's number of channels. It trains
    # with the student, is saved in training checkpoints for --resume, and is no part of the model.
    node.ADAPTATION = adaptation
    # Its kernel. Not in the papers.
    node.ADAPTATION_KERNEL = kernel
    # Levels that are imitated, by their index, 0 the finest; empty: all.
    node.LEVELS = []
    return node


class FeatureMethod(DistillationMethod):
    """A method that compares feature maps level by level; maps are never resized."""

    needs_student = frozenset({"features"})
    needs_teacher = frozenset({"features"})

    def __init__(
        self,
        *,
        student: DetectorLayout,
        teacher: DetectorLayout,
        adaptation: bool,
        adaptation_kernel: int,
        levels: Sequence[int],
    ):
        """
        Args:
            student, teacher: the two detectors.
            adaptation, adaptation_kernel, levels: see feature_settings.
        """
        super().__init__()
        self.student_layout = student
        count = len(student.channels)
        name = f"DISTILLATION.{type(self).__name__}"
        self.levels = list(levels) or list(range(count))
        outside = [x for x in self.levels if not 0 <= x < count]
        if outside or len(set(self.levels)) < len(self.levels):
            raise UserError(
                f"{name}.LEVELS {list(levels)} must be different numbers from 0 to {count - 1}"
            )
        if adaptation_kernel < 1 or adaptation_kernel % 2 == 0:
            raise UserError(f"{name}.ADAPTATION_KERNEL must be odd, got {adaptation_kernel}")
        self.agrees_on = frozenset({"levels"} if adaptation else {"levels", "channels"})
        pairs = list(zip(student.channels, teacher.channels)) if adaptation else []
        self.adaptation = nn.ModuleDict()
        for level in [x for x in self.levels if x < len(pairs)]:
            conv = nn.Conv2d(*pairs[level], adaptation_kernel, padding=adaptation_kernel // 2)
            weight_init.c2_xavier_fill(conv)
            self.adaptation[str(level)] = conv

    def box_mask(self, student: DetectorTensors, level: int) -> Tensor:
        """See masks.box_masks."""
        height, width = student.features[level].shape[-2:]
        return box_masks(student.gt_boxes, (height, width), self.student_layout.strides[level])

    def feature_pairs(
        self, student: DetectorTensors, teacher: DetectorTensors
    ) -> list[tuple[Tensor, Tensor]]:
        """Of each level in self.levels (student's, adapted; teacher's), both (N, C, Hl, Wl)."""
        pairs = []
        for level in self.levels:
            x = student.features[level]
            x = self.adaptation[str(level)](x) if self.adaptation else x
            pairs.append((x, teacher.features[level]))
        return pairs

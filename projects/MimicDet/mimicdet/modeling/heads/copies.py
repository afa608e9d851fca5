"""An S-head that begins with layers of a trained T-head. Not in the paper."""

from collections.abc import Callable

import torch
from torch import Tensor

from .student_head import StudentHead
from .teacher_head import MimicTeacherHeads

OUTPUT_LAYERS = ("class_logits", "box_deltas")  # of both heads


@torch.no_grad()
def copy_outputs(student: StudentHead, teacher: MimicTeacherHeads) -> None:
    """The two output layers."""
    for name in OUTPUT_LAYERS:
        getattr(student, name).load_state_dict(getattr(teacher, name).state_dict())


@torch.no_grad()
def copy_branch(student: StudentHead, teacher: MimicTeacherHeads) -> None:
    """
    The branch from the pooled box to the logits, and to the deltas where the heads are not split:
    two fully connected layers over a grid of bins are an alignment layer, whose points lie on a
    grid over the box, and a feature.

    The T-head's bins are read from the S-head's points by linear interpolation, so that a first
    layer over k x k points does to the maps what the T-head's does to its bins. Channels of the
    alignment layer beyond the T-head's are not read by the feature at first.
    """
    if student.dual_path:
        branch, feature = teacher.class_branch, student.class_feature
        student.class_logits.load_state_dict(teacher.class_logits.state_dict())
    else:
        branch, feature = teacher.shared_branch, student.shared_feature
        copy_outputs(student, teacher)
    first, second = (x for x in branch if isinstance(x, torch.nn.Linear))
    width = first.out_features
    feature.bias.copy_(second.bias)
    feature.weight.zero_()[:, :width] = second.weight
    resolution = teacher.pooler.resolution
    grid = first.weight.view(width, -1, resolution, resolution)
    for alignment in student.alignments.values():
        read = interpolation(resolution, alignment.conv.kernel_size[0]).to(grid)
        alignment.conv.weight[:width] = torch.einsum("ocyx,yj,xi->ocji", grid, read, read)
        alignment.conv.bias[:width] = first.bias


def interpolation(bins: int, points: int) -> Tensor:
    """
    (bins, points) matrix: the values at the centres of `bins` equal parts of a line from those at
    the centres of `points` equal parts, linear in between and constant beyond the outermost.
    """
    place = ((torch.arange(bins) + 0.5) / bins * points - 0.5).clamp(0, points - 1)
    return (1 - (place[:, None] - torch.arange(points)).abs()).clamp(min=0)


COPIES: dict[str, Callable[[StudentHead, MimicTeacherHeads], None]] = {
    "COPY_OUTPUTS": copy_outputs,
    "COPY_BRANCH": copy_branch,
}

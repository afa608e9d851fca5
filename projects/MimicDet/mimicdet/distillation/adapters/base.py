"""What makes a Detectron2 model a student or a teacher: one adapter a family of detectors."""

from collections.abc import Sequence
from typing import Any

from fvcore.common.registry import Registry
from torch import Tensor, nn

from ...utils.errors import UserError
from ..tensors import DetectorLayout, DetectorTensors

ADAPTER_REGISTRY = Registry("DETECTOR_ADAPTER")
ADAPTER_REGISTRY.__doc__ = """
Adapters of detectors. <Name>Adapter serves the meta-architecture <Name> and its subclasses; it is
called as adapter(model, input_format).
"""


class DetectorAdapter:
    """
    Reads one family of detectors for the distillation methods; the model itself is not changed.

    student_offers and teacher_offers name the attributes of DetectorTensors that the two calls
    below give, layout holds what is known without an image. It is no nn.Module: a teacher stays
    out of the student's state_dict, optimizer and DDP buckets.
    """

    student_offers: frozenset[str]
    teacher_offers: frozenset[str]
    layout: DetectorLayout

    def __init__(self, model: nn.Module, input_format: str):
        """input_format: the order of channels that the model was trained on, INPUT.FORMAT."""
        self.model = model
        self.input_format = input_format

    def forward_training(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[dict[str, Tensor], DetectorTensors]:
        """The student's own losses, as its forward gives them, and what it offers of the batch."""
        raise TypeError(f"{type(self).__name__} must define forward_training")

    def forward_teacher(self, batched_inputs: list[dict[str, Any]]) -> DetectorTensors:
        """What the model offers of the batch; no ground truth is looked at, no loss computed."""
        raise TypeError(f"{type(self).__name__} must define forward_teacher")


def build_adapter(model: nn.Module, input_format: str) -> DetectorAdapter:
    """The adapter of the model's class or of its nearest base; UserError where there is none."""
    for base in type(model).__mro__:
        name = f"{base.__name__}Adapter"
        if name in ADAPTER_REGISTRY:
            return ADAPTER_REGISTRY.get(name)(model, input_format)
    known = sorted(name.removesuffix("Adapter") for name, _ in ADAPTER_REGISTRY)
    raise UserError(
        f"{type(model).__name__} can be no student or teacher of DISTILLATION: it has no adapter. "
        f"There are adapters of {', '.join(known)}"
    )


def layout_of(
    model: nn.Module,
    num_classes: int,
    levels: Sequence[str],
    anchor_generator: nn.Module,
    input_format: str,
    **offered: Any,
) -> DetectorLayout:
    """
    What a model with a backbone and an anchor generator tells of itself.

    Args:
        levels: names of the backbone's maps that it offers.
        offered: the layout's facts about what not every detector offers.
    """
    shapes = [model.backbone.output_shape()[name] for name in levels]
    return DetectorLayout(
        name=type(model).__name__,
        num_classes=num_classes,
        strides=tuple(s.stride for s in shapes),
        channels=tuple(s.channels for s in shapes),
        size_divisibility=model.backbone.size_divisibility,
        cell_anchors=tuple(
            tuple(map(tuple, level.tolist())) for level in anchor_generator.cell_anchors
        ),
        anchor_offset=anchor_generator.offset,
        input_format=input_format,
        **offered,
    )

"""What several tests need: a small MimicDet, and inputs whose proposals hit their objects."""

from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from detectron2.structures import Boxes, Instances

from mimicdet import MimicDet
from mimicdet.config import load_config

REPOSITORY = Path(__file__).resolve().parents[1]
NUM_CLASSES = 3
STRIDES = (8, 16, 32, 64, 128)
LOSS_KEYS = {
    "loss_refine_cls",
    "loss_refine_loc",
    "loss_student_cls",
    "loss_student_loc",
    "loss_teacher_cls",
    "loss_teacher_loc",
}
MIMIC_KEYS = {"loss_mimic_cls", "loss_mimic_loc"}

# The anchors at (y, x) = (3, 3) of P3 and (1, 2) of P4, clipped to an image: small_model proposes
# boxes of IoU near 1 with them.
P3_BOX = [12.0, 12.0, 44.0, 44.0]
P4_BOX = [8.0, 0.0, 72.0, 56.0]


@META_ARCH_REGISTRY.register()
class ExtendedMimicDet(MimicDet):
    """A user's own meta-architecture."""


def small_cfg(*opts: Any) -> CfgNode:
    """The paper's config with few channels; opts: KEY, VALUE, KEY, VALUE ..."""
    small = ["MODEL.DEVICE", "cpu", "MODEL.RESNETS.DEPTH", 18]
    small += ["MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.FPN.OUT_CHANNELS", 16]
    small += ["MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 80]
    small += ["MODEL.ROI_BOX_HEAD.CONV_DIM", 8, "MODEL.ROI_BOX_HEAD.FC_DIM", 24]
    small += ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.RPN.POST_NMS_TOPK_TEST", 60]
    small += ["MODEL.MIMICDET.STUDENT.FEATURE_DIM", 24]
    small += ["MODEL.MIMICDET.STUDENT.ALIGNMENT_DIM", 16]
    return load_config(str(REPOSITORY / "configs" / "Base-MimicDet.yaml"), small + list(opts))


def small_model(*opts: Any, seed: int = 0) -> MimicDet:
    """A MimicDet of small_cfg, seeded, in training mode; adjusted boxes stay near the anchors."""
    torch.manual_seed(seed)
    model = build_model(small_cfg(*opts)).train()
    # Without pretrained weights frozen batch norms let activations grow.
    model.proposal_generator.anchor_deltas.weight.data.mul_(1e-3)
    return model


def instances(size: tuple[int, int], boxes: list[list[float]], classes: list[int]) -> Instances:
    result = Instances(size)
    result.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    result.gt_classes = torch.tensor(classes, dtype=torch.int64)
    return result


def make_input(
    size: tuple[int, int] = (64, 96),
    boxes: list[list[float]] | None = None,
    crowds: list[list[float]] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """One image of noise as Detectron2's dict; boxes: P3_BOX unless told, of classes 0, 1, ..."""
    boxes = [P3_BOX] if boxes is None else boxes
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randint(0, 256, (3, *size), generator=generator).float(),
        "instances": instances(size, boxes, [i % NUM_CLASSES for i in range(len(boxes))]),
        "crowd_boxes": Boxes(torch.tensor(crowds or []).reshape(-1, 4)),
    }


def randomise_refinement(model: MimicDet, seed: int = 0, std: float = 0.02) -> None:
    """Give every anchor an objectness and deltas of its own, so that nothing is a tie."""
    generator = torch.Generator().manual_seed(seed)
    module = model.proposal_generator
    for layer in (module.objectness_logits, module.anchor_deltas):
        layer.weight.data = torch.randn(layer.weight.shape, generator=generator) * std


def count_calls(module: torch.nn.Module) -> list[int]:
    """A list of one number that grows by one with each call of the module."""
    calls = [0]

    def count(*_: Any) -> None:
        calls[0] += 1

    module.register_forward_hook(count)
    return calls


def gradients_of(module: torch.nn.Module) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in module.named_parameters()}


def one_of_each(names: Iterable[str], key: Callable[[str], Hashable]) -> list[str]:
    """The first name of each group; `key` says to which group a name belongs."""
    first: dict[Hashable, str] = {}
    for name in names:
        first.setdefault(key(name), name)
    return list(first.values())

"""What is timed: detection or a training step, on synthetic images that are the same for all."""

from collections.abc import Callable
from typing import Any

import torch
from detectron2.solver import get_default_optimizer_params
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from ...distillation import Distiller, Term, build_adapter
from ...distillation.methods.head_mimic import HeadMimic
from ...modeling.meta_arch.mimicdet import MimicDet

MODES = ("eval", "train")
BOXES_PER_IMAGE = 7  # COCO's mean
_ASPECT = 1.52  # of 800 x 1216, the usual size of a COCO image in the network
_DIVISOR = 32
_SCALES = (4, 16, 64)


def image_size(short_side: int) -> tuple[int, int]:
    """(height, width) of the image that stands for a short side: 1.52 as wide, padded to 32."""
    height, width = short_side, round(short_side * _ASPECT)
    return -(-height // _DIVISOR) * _DIVISOR, -(-width // _DIVISOR) * _DIVISOR


def make_inputs(
    size: tuple[int, int], batch: int, num_classes: int, seed: int = 0
) -> list[dict[str, Any]]:
    """Dicts of `batch` images of `size` (height, width), each with BOXES_PER_IMAGE objects."""
    generator = torch.Generator().manual_seed(seed)
    return [
        {
            "image": _image(size, generator),
            "instances": _objects(size, num_classes, generator),
            "height": size[0],
            "width": size[1],
        }
        for _ in range(batch)
    ]


def _image(size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Noise at several scales, so that features differ from place to place: (3, H, W) uint8."""
    image = torch.zeros(1, 3, *size)
    for scale in _SCALES:
        coarse = torch.randn(1, 3, *(-(-side // scale) for side in size), generator=generator)
        image += F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    return (127.5 + 40 * image[0]).clamp(0, 255).to(torch.uint8)


def _objects(size: tuple[int, int], num_classes: int, generator: torch.Generator) -> Instances:
    """Boxes from 1/32 to 3/4 of the short side, their sides log-uniform."""
    low, high = torch.log(torch.tensor([min(size) / 32, min(size) * 0.75]))
    uniform = torch.rand(BOXES_PER_IMAGE, 4, generator=generator)
    sides = torch.exp(low + (high - low) * uniform[:, :2])
    corner = uniform[:, 2:] * (torch.tensor([size[1], size[0]]) - sides)
    objects = Instances(size)
    objects.gt_boxes = Boxes(torch.cat([corner, corner + sides], dim=1))
    objects.gt_classes = torch.randint(num_classes, (BOXES_PER_IMAGE,), generator=generator)
    return objects


def make_workload(
    mode: str, model: nn.Module, inputs: list[dict[str, Any]]
) -> Callable[[], object]:
    """The work of one measurement: detections of a batch ("eval") or one step ("train")."""
    if mode == "train":
        return training_step(model, inputs)

    def detect() -> object:
        with torch.no_grad():
            return model(inputs)

    return detect


def training_step(model: nn.Module, inputs: list[dict[str, Any]]) -> Callable[[], object]:
    """
    Forward, backward and Detectron2's SGD with momentum; MimicDet with its mimic loss.

    The learning rate is zero: the work is the same, and all measurements see the same model.
    """
    if isinstance(model, MimicDet):
        model = Distiller(model, [Term(HeadMimic(dual_path=True))], build_adapter(model, "BGR"))
    model.train()
    optimizer = torch.optim.SGD(
        get_default_optimizer_params(model, base_lr=0.0),
        lr=0.0,
        momentum=0.9,
        weight_decay=1e-4,
    )
    storage = EventStorage()

    def step() -> None:
        with storage:
            losses = model(inputs)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()

    return step

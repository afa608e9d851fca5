"""
Random weights that flatter nobody.

With random weights as they come one detector lets no box pass its score threshold and another lets
all of them pass, and what follows is not comparable. Every detector gets the same treatment on the
benchmark's own image: frozen batch norms with the statistics of that image, output layers whose
channels have a stated mean and spread, and one shift of the class logits after which the asked
number of boxes passes the detector's own SCORE_THRESH_TEST and is left to its NMS.
"""

from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn

from ...utils.errors import UserError
from .detectors import Detector
from .observe import observe

_SHIFTS = (-60.0, 20.0)
_STEPS = 22


def calibrate(
    detector: Detector, model: nn.Module, inputs: list[dict[str, Any]], nms_boxes: int
) -> None:
    """
    Prepare a model in evaluation mode, in place.

    Args:
        inputs: Detectron2's dicts of one or several images.
        nms_boxes: boxes an image that shall be left to the final NMS; met within 5 % where the
            image gives such a number.

    Raises:
        UserError: no shift of the class logits gives that number within 10 %.
    """
    randomise_norms(model, inputs)
    for output in detector.outputs:
        standardise(model, model.get_submodule(output.path), inputs, output.mean, output.std)
    if detector.classifier:
        _shift_to(detector, model, inputs, nms_boxes * len(inputs))


@torch.no_grad()
def randomise_norms(model: nn.Module, inputs: list[dict[str, Any]], seed: int = 0) -> None:
    """Frozen batch norms: random scale and shift, running statistics of these images."""
    generator = torch.Generator().manual_seed(seed)
    hooks = []
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            count = module.num_features
            module.weight.copy_(torch.rand(count, generator=generator) + 0.5)
            module.bias.copy_(torch.randn(count, generator=generator) * 0.1)
            hooks.append(module.register_forward_pre_hook(_take_statistics))
    model(inputs)
    for hook in hooks:
        hook.remove()


def _take_statistics(norm: FrozenBatchNorm2d, args: tuple[Tensor]) -> None:
    variance, mean = torch.var_mean(args[0], dim=(0, 2, 3), correction=0)
    norm.running_mean.copy_(mean)
    norm.running_var.copy_(variance)


@torch.no_grad()
def standardise(
    model: nn.Module, layer: nn.Module, inputs: list[dict[str, Any]], mean: float, std: float
) -> None:
    """
    Give each output channel of a convolution or linear layer this mean and standard deviation over
    all the places at which the model evaluates it. Raises ValueError for a layer that is not run.
    """
    moments: list[tuple[int, Tensor, Tensor]] = []

    def collect(_: nn.Module, __: Any, output: Tensor) -> None:
        channel = 1 if isinstance(layer, nn.Conv2d) else output.dim() - 1
        others = [d for d in range(output.dim()) if d != channel]
        variance, average = torch.var_mean(output, dim=others, correction=0)
        moments.append((output.numel() // output.shape[channel], average, variance))

    hook = layer.register_forward_hook(collect)
    model(inputs)
    hook.remove()
    if not moments:
        raise ValueError(f"{type(model).__name__} does not call its output layer {layer}")
    total = sum(count for count, _, _ in moments)
    found_mean = sum(count * average for count, average, _ in moments) / total
    found_var = sum(c * (v + (a - found_mean) ** 2) for c, a, v in moments) / total
    scale = std / found_var.clamp(min=1e-12).sqrt()
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - found_mean) * scale + mean)


@torch.no_grad()
def _shift_to(
    detector: Detector, model: nn.Module, inputs: list[dict[str, Any]], wanted: int
) -> None:
    """Bisect the shift of the foreground logits: the higher, the more boxes pass."""
    layer = model.get_submodule(detector.classifier)
    start = layer.bias.clone()
    foreground = slice(0, -1 if detector.softmax else None)
    score_thresh = detector.score_thresh(model)
    low, high = _SHIFTS
    error, best, closest = float("inf"), 0.0, 0
    for _ in range(_STEPS):
        shift = (low + high) / 2
        layer.bias[foreground] = start[foreground] + shift
        boxes = observe(model, inputs, score_thresh).passed_boxes
        if abs(boxes / wanted - 1) < error:
            error, best, closest = abs(boxes / wanted - 1), shift, boxes
        if error <= 0.05:
            break
        low, high = (shift, high) if boxes < wanted else (low, shift)
    layer.bias[foreground] = start[foreground] + best
    if error > 0.1:
        raise UserError(
            f"{type(model).__name__} cannot be made to send about {wanted} boxes to its NMS, at "
            f"best {closest}: ask for fewer or take larger images"
        )

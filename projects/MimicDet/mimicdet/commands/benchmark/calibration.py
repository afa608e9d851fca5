"""
Calibration of random weights, and what a forward pass does with them.

With random weights as they come one detector lets no box pass its score threshold and another lets
all of them pass, and what follows is not comparable. Every detector gets the same treatment on the
benchmark's own image: frozen batch norms with the statistics of that image, output layers whose
channels have a stated mean and spread, and one shift of the class logits after which the requested
number of boxes passes the detector's own SCORE_THRESH_TEST and is left to its NMS.
"""

from contextlib import ExitStack
from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.utils.analysis import FlopCountAnalysis
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ...utils.errors import UserError
from .detectors import Detector

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
    _randomise_norms(model, inputs)
    for path, mean, std in detector.outputs:
        standardise(model, model.get_submodule(path), inputs, mean, std)
    if detector.classifier:
        _shift_to(detector, model, inputs, nms_boxes * len(inputs))


@torch.no_grad()
def _randomise_norms(model: nn.Module, inputs: list[dict[str, Any]]) -> None:
    """Frozen batch norms: random scale and shift, running statistics of these images."""
    generator = torch.Generator().manual_seed(0)
    with ExitStack() as stack:
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                count = module.num_features
                module.weight.copy_(torch.rand(count, generator=generator) + 0.5)
                module.bias.copy_(torch.randn(count, generator=generator) * 0.1)
                stack.enter_context(module.register_forward_pre_hook(_take_statistics))
        model(inputs)


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
    outputs: list[Tensor] = []  # (channels, places) of each call

    def collect(_: nn.Module, __: Any, output: Tensor) -> None:
        channel = 1 if isinstance(layer, nn.Conv2d) else output.dim() - 1
        # A copy: a detector may go on in place.
        outputs.append(output.transpose(0, channel).flatten(1).clone())

    with layer.register_forward_hook(collect):
        model(inputs)
    if not outputs:
        raise ValueError(f"{type(model).__name__} does not call its output layer {layer}")
    variance, average = torch.var_mean(torch.cat(outputs, dim=1), dim=1, correction=0)
    scale = std / variance.clamp(min=1e-12).sqrt()
    layer.weight.mul_(scale.view(-1, *[1] * (layer.weight.dim() - 1)))
    layer.bias.copy_((layer.bias - average) * scale + mean)


@torch.no_grad()
def _shift_to(
    detector: Detector, model: nn.Module, inputs: list[dict[str, Any]], requested: int
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
        if abs(boxes / requested - 1) < error:
            error, best, closest = abs(boxes / requested - 1), shift, boxes
        if error <= 0.05:
            break
        low, high = (shift, high) if boxes < requested else (low, shift)
    layer.bias[foreground] = start[foreground] + best
    if error > 0.1:
        raise UserError(
            f"{type(model).__name__} cannot be made to send about {requested} boxes to its NMS, at "
            f"best {closest}: ask for fewer or take larger images"
        )


class ForwardObserver(TorchDispatchMode):
    """
    Counts while it is entered, in the operators that run, whatever the detector's code looks like:

    - passed_boxes: scores above the detector's threshold, which are what its NMS has to deal with;
    - nms_boxes: boxes in all calls of the NMS operator (MimicDet takes the best boxes first and
      may leave the rest out; torchvision may call it class by class);
    - proposal_nms_boxes: the same while `proposing`, inside Faster R-CNN's proposal generator;
    - which parameters are read.
    """

    def __init__(self, model: nn.Module, score_thresh: float | None):
        """score_thresh: SCORE_THRESH_TEST of the model; None: it detects nothing."""
        super().__init__()
        self.passed_boxes = self.nms_boxes = self.proposal_nms_boxes = 0
        self.proposing = False
        self._score_thresh = score_thresh
        self._parameters = {id(p) for p in model.parameters()}
        self._read: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for arg in args:
            if id(arg) in self._parameters:
                self._read[id(arg)] = arg.numel()
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.torchvision.nms.default:
            if self.proposing:
                self.proposal_nms_boxes += len(args[0])
            else:
                self.nms_boxes += len(args[0])
        elif func is torch.ops.aten.gt.Scalar and args[1] == self._score_thresh:
            self.passed_boxes += int(result.sum())
        return result

    @property
    def num_parameters_read(self) -> int:
        """Numbers in the parameters that some operator has read."""
        return sum(self._read.values())


@torch.no_grad()
def observe(
    model: nn.Module, inputs: list[dict[str, Any]], score_thresh: float | None = None
) -> ForwardObserver:
    """The observer of one forward pass of a model in evaluation mode."""
    observer = ForwardObserver(model, score_thresh)
    generator = getattr(model, "proposal_generator", None) or nn.Identity()
    with (
        generator.register_forward_pre_hook(lambda *_: setattr(observer, "proposing", True)),
        generator.register_forward_hook(lambda *_: setattr(observer, "proposing", False)),
        observer,
    ):
        model(inputs)
    return observer


@torch.no_grad()
def count_flops(model: nn.Module, inputs: list[dict[str, Any]]) -> float:
    """
    fvcore's count for one forward pass in evaluation, in 1e9; a multiply with its add is one.

    Deformable convolutions and samples at locations, which fvcore does not know, are counted as
    mimicdet.modeling.layers says; element-wise work, RoIAlign, sorting and NMS are not counted.
    """
    images = [{"image": x["image"]} for x in inputs]
    analysis = FlopCountAnalysis(model, images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return analysis.total() / 1e9

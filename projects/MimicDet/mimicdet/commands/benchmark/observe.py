"""What a forward pass does: boxes that reach the NMS, parameters that are read, FLOPs."""

from typing import Any

import torch
from detectron2.utils.analysis import FlopCountAnalysis
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class ForwardObserver(TorchDispatchMode):
    """
    Counts while it is entered, in the operators that run, whatever the detector's code looks like:

    - passed_boxes: scores above the detector's threshold, which are what its NMS has to deal with;
    - nms_boxes: boxes in all calls of the NMS operator (MimicDet takes the best boxes first and
      may leave the rest out; torchvision may call it class by class);
    - proposal_nms_boxes: the same inside a proposal generator, Faster R-CNN's;
    - which parameters are read.
    """

    def __init__(self, model: nn.Module, score_thresh: float | None):
        """score_thresh: SCORE_THRESH_TEST of the model; None: it detects nothing."""
        super().__init__()
        self.passed_boxes = 0
        self.nms_boxes = 0
        self.proposal_nms_boxes = 0
        self._score_thresh = score_thresh
        self._parameters = {id(p) for p in model.parameters()}
        self._read: dict[int, int] = {}
        self._proposing = False
        self._generator = getattr(model, "proposal_generator", None)
        self._hooks: list[Any] = []

    def __enter__(self):
        if self._generator is not None:
            self._hooks = [
                self._generator.register_forward_pre_hook(lambda *_: self._propose(True)),
                self._generator.register_forward_hook(lambda *_: self._propose(False)),
            ]
        return super().__enter__()

    def __exit__(self, *error):
        for hook in self._hooks:
            hook.remove()
        return super().__exit__(*error)

    def _propose(self, proposing: bool) -> None:
        self._proposing = proposing

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        for arg in args:
            if id(arg) in self._parameters:
                self._read[id(arg)] = arg.numel()
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.torchvision.nms.default:
            if self._proposing:
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
    with ForwardObserver(model, score_thresh) as observer:
        model(inputs)
    return observer


@torch.no_grad()
def count_flops(model: nn.Module, inputs: list[dict[str, Any]]) -> float:
    """
    fvcore's count for one forward pass in evaluation, in 1e9; a multiply with its add is one.

    Deformable convolutions and samples at positions, which fvcore does not know, are counted as
    mimicdet.layers says; element-wise work, RoIAlign, sorting and NMS are not counted.
    """
    images = [{"image": x["image"]} for x in inputs]
    analysis = FlopCountAnalysis(model, images)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
    analysis.tracer_warnings("none")
    return analysis.total() / 1e9

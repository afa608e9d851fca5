"""A trained model made ready to detect: the same detections, in less time."""

import copy
from collections import Counter

import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling.backbone.resnet import BasicBlock, BottleneckBlock
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torchvision.ops import FrozenBatchNorm2d as TorchvisionFrozenBatchNorm2d

from ..modeling.backbone.timm_backbone import TimmBackbone
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError, check_choice

PRECISIONS = {"float32": None, "float16": torch.float16, "bfloat16": torch.bfloat16}
# Of a CPU, float32 and float64 alone; not public, so it may be missing one day.
_ADD_RELU = getattr(torch.ops.aten, "_add_relu_", None)
_BATCH_NORMS = (
    FrozenBatchNorm2d,
    TorchvisionFrozenBatchNorm2d,  # timm's networks hold it where they are frozen
    nn.modules.batchnorm._BatchNorm,
)


def optimize_for_inference(
    model: nn.Module,
    *,
    channels_last: bool = True,
    precision: str = "float32",
    compile_backbone: bool = False,
) -> nn.Module:
    """
    An eval copy of a detector that is called like the original and detects the same.

    Batch norms are folded into the convolutions before them, weights lie channels last, ResNet
    blocks add their shortcut in the pass of their ReLU, and what the configured head does not need
    is left out (MimicDet's T-head). Any Detectron2 model is taken; the original is not touched.
    What comes back is for detection: training it would miss its batch norms.

    Args:
        model: a Detectron2 model on its device.
        channels_last: memory layout of the convolutions' weights, which their maps follow.
        precision: "float32"; or "float16", "bfloat16" (MimicDet alone): the backbone's weights and
            every dense layer's arithmetic; boxes, sample points and scores stay float32.
        compile_backbone: let torch.compile work on backbone and refinement convolution, which
            takes about a minute at the first image and again where sizes differ. MimicDet alone.

    Raises:
        UserError: an unknown precision, or an option that the model cannot take.
    """
    check_choice("precision", precision, PRECISIONS)
    if not isinstance(model, MimicDet) and (precision != "float32" or compile_backbone):
        raise UserError(
            "half precision and compilation are MimicDet's options; the model is "
            f"{type(model).__name__}"
        )
    model = copy_for_inference(model)
    fold_batch_norms(model)
    if channels_last:
        model.to(memory_format=torch.channels_last)
    dtype = PRECISIONS[precision]
    if dtype is not None:
        model.backbone.to(dtype)
        model.autocast_dtype = dtype
    if compile_backbone:  # which fuses by itself
        model.backbone.compile()
        model.proposal_generator.conv.compile()
    else:
        fuse_shortcuts(model)
    return model


def copy_for_inference(model: nn.Module) -> nn.Module:
    """A copy in evaluation mode, without gradients and without what is not run."""
    copies = {}
    if isinstance(model, MimicDet):
        unused = model.roi_heads if model.eval_head == "student" else model.student_head
        # More than half of the parameters: not even copied.
        copies.update({id(unused): None, id(model.averaged_teacher): None})
    return copy.deepcopy(model, copies).eval().requires_grad_(False)


def fold_batch_norms(model: nn.Module) -> int:
    """
    Fold every batch norm that is a Detectron2 convolution's own, or that follows a convolution in
    a Sequential or in a network of timm, into the convolution's weight and bias. In place; the
    model must be in eval mode. A network of timm that torch.fx cannot trace is left as it is.

    Returns:
        how many were folded.
    """
    folded = 0
    for module in list(model.modules()):
        own_norm = getattr(module, "norm", None)
        if isinstance(module, nn.Conv2d) and _is_batch_norm(own_norm):
            _fold(module, own_norm)
            module.norm = None
            folded += 1
        elif isinstance(module, TimmBackbone):
            for conv, name in _conv_norm_pairs(module.network):
                norm = module.network.get_submodule(name)
                _fold(conv, norm)
                module.network.set_submodule(name, _behind(norm))
                folded += 1
        elif isinstance(module, nn.Sequential):
            names = list(module._modules)
            for first, second in zip(names, names[1:]):
                conv, norm = module._modules[first], module._modules[second]
                plain = type(conv) is nn.Conv2d or getattr(conv, "activation", 0) is None
                if isinstance(conv, nn.Conv2d) and plain and _is_batch_norm(norm):
                    _fold(conv, norm)
                    module._modules[second] = _behind(norm)
                    folded += 1
    return folded


def _is_batch_norm(module: object) -> bool:
    # The last is timm's, which is an extra.
    return isinstance(module, _BATCH_NORMS) or type(module).__name__ == "FrozenBatchNormAct2d"


def _behind(norm: nn.Module) -> nn.Module:
    """What is left of a norm: timm's BatchNormAct2d holds the activation as well."""
    return getattr(norm, "act", nn.Identity())


class _LayerTracer(fx.Tracer):
    """The order of computation, with convolutions and batch norms as its smallest steps."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, nn.Conv2d) or _is_batch_norm(m)
        return leaf or super().is_leaf_module(m, module_qualified_name)


def _conv_norm_pairs(network: nn.Module) -> list[tuple[nn.Conv2d, str]]:
    """Each convolution whose output one batch norm reads and nothing else, and that norm's name."""
    try:
        graph = _LayerTracer().trace(network)
    except (fx.proxy.TraceError, TypeError):  # its steps depend on sizes or data
        return []
    calls = [node for node in graph.nodes if node.op == "call_module"]
    times = Counter(node.target for node in calls)
    modules = dict(network.named_modules())
    pairs = []
    for node in calls:
        conv, (user, *others) = modules[node.target], node.users or (None,)
        if not isinstance(conv, nn.Conv2d) or others or user not in calls:
            continue
        if _is_batch_norm(modules[user.target]) and times[node.target] == times[user.target] == 1:
            pairs.append((conv, user.target))
    return pairs


@torch.no_grad()
def _fold(conv: nn.Conv2d, norm: nn.Module) -> None:
    """norm(conv(x)) = conv'(x), in float64 on the way."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = -norm.running_mean.double() * scale
    if norm.bias is not None:
        bias = bias + norm.bias.double()
    if conv.bias is not None:
        bias = bias + conv.bias.double() * scale
    dtype = conv.weight.dtype
    weight = (conv.weight.double() * scale[:, None, None, None]).to(dtype)
    conv.weight = nn.Parameter(weight, requires_grad=False)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=False)


class FusedBlock(nn.Module):
    """
    A Detectron2 ResNet block whose sum with the shortcut and ReLU are one pass over memory.

    The maps of the first stages are larger than a CPU's caches. Parameters and their names are the
    block's.
    """

    def __init__(self, block: BasicBlock | BottleneckBlock):
        super().__init__()
        self.shortcut = block.shortcut
        self.conv1, self.conv2 = block.conv1, block.conv2
        self.conv3 = block.conv3 if isinstance(block, BottleneckBlock) else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv2(F.relu_(self.conv1(x)))
        if self.conv3 is not None:
            out = self.conv3(F.relu_(out))
        return _add_relu(out, x if self.shortcut is None else self.shortcut(x))


def _add_relu(x: Tensor, other: Tensor) -> Tensor:
    """relu(x + other), into x; where it is one operator, NaN becomes zero."""
    if _ADD_RELU is not None and x.device.type == "cpu" and x.dtype == torch.float32:
        return _ADD_RELU(x, other)
    return F.relu_(x.add_(other))


def fuse_shortcuts(model: nn.Module) -> int:
    """Replace every ResNet block by its FusedBlock. In place; returns how many there were."""
    blocks = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (BasicBlock, BottleneckBlock)
    ]
    for parent, name, child in blocks:
        setattr(parent, name, FusedBlock(child))
    return len(blocks)

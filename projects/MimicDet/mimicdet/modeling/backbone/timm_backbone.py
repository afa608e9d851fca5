"""Any network of timm with intermediate maps as a Detectron2 backbone (timm: Apache 2.0)."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn

from ...utils.errors import UserError, check_choice, check_choices, near_names
from ...utils.timm_networks import check_timm_network

NORMS = ("BN", "FrozenBN", "SyncBN")
# Height and width of the image that a new network is tried on.
TRIAL_SIZE = (128, 160)
# timm checks little: a bad option ends wherever a network first uses it.
_TIMM_ERRORS = (AssertionError, AttributeError, RuntimeError, TypeError, ValueError)


class SameConv2d(nn.Conv2d):
    """
    TensorFlow's "SAME" padding of a map whose sides the stride divides.

    It is the same for every such size, so that an exported network has constants where timm's
    Conv2dSame computes the padding from the size. The backbone's size_divisibility sees to it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, out_channels, H / stride, W / stride)."""
        pads: list[int] = []
        for kernel, stride, dilation in zip(self.kernel_size, self.stride, self.dilation):
            total = max(dilation * (kernel - 1) + 1 - stride, 0)
            pads = [total // 2, total - total // 2, *pads]
        return super().forward(F.pad(x, pads))


class TimmBackbone(Backbone):
    """
    The maps of a network of timm, named by stride as those of Detectron2's ResNets: res2 has 4,
    res3 8, res4 16, res5 32.

    `network.model` is timm's own network with its own names of parameters, less the layers behind
    the last map: they would have parameters without gradients.
    """

    def __init__(
        self,
        name: str,
        out_features: Sequence[str],
        options: Sequence[object] = (),
        norm: str = "BN",
        freeze_at: int = 0,
        in_channels: int = 3,
        omit: Sequence[str] = (),
    ):
        """
        Args:
            name: timm's name of the network. Its weights are random: nothing is downloaded.
            out_features: the maps; of several of one stride it is the last.
            options: of timm's network: NAME, VALUE, NAME, VALUE ...
            norm: "BN": batch norms as timm has them; "SyncBN" or "FrozenBN": in their place.
            freeze_at: 0 nothing; 1 all that the map of stride 2 is computed from, its batch norms
                too; 2 the same for res2; and so on.
            omit: names of modules of timm's network that give their input on: a lighter network.
                A map then has the channels of what is left.

        Raises:
            UserError: there is no such network, option, map or norm, or no map to freeze at, or the
                maps do not have the strides and channels that timm says.
        """
        super().__init__()
        check_choice("MODEL.TIMM.NORM", norm, NORMS)
        self.timm_name = name
        network = _create(name, options, in_channels)
        _omit(network, name, omit)
        from timm.layers import Conv2dSame, convert_sync_batchnorm, freeze_batch_norm_2d

        indices, shapes = _levels(network)
        check_choices(f"MODEL.TIMM.OUT_FEATURES of {name}", out_features, shapes)
        if not out_features:
            raise UserError("MODEL.TIMM.OUT_FEATURES is empty")
        weight = next(network.parameters())
        maps = _try_out(network, name, weight.new_zeros(1, in_channels, *TRIAL_SIZE), bool(omit))
        shapes = {
            n: ShapeSpec(channels=maps[n].shape[1], stride=s.stride) for n, s in shapes.items()
        }
        if freeze_at:
            _freeze(network, name, maps, freeze_at)
        self._shapes = {n: shape for n, shape in shapes.items() if n in out_features}
        # Again, of the maps that are asked for: this drops the layers behind them.
        network = type(network)(network.model, out_indices=[indices[n] for n in self._shapes])
        if norm == "FrozenBN":
            network = freeze_batch_norm_2d(network)
        elif norm == "SyncBN":
            network = convert_sync_batchnorm(network)
        for module in network.modules():
            if type(module) is Conv2dSame:
                module.__class__ = SameConv2d  # the same attributes, another forward
        self.network = network

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """
        Args:
            x: (N, C, H, W) normalised images, H and W divisible by size_divisibility.

        Returns:
            maps by name: (N, C, H / stride, W / stride).
        """
        return dict(zip(self._shapes, self.network(x)))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(self._shapes)

    @property
    def size_divisibility(self) -> int:
        return max(shape.stride for shape in self._shapes.values())


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg, input_shape: ShapeSpec) -> TimmBackbone:
    """The network of MODEL.TIMM, with random weights."""
    keys = cfg.MODEL.TIMM
    return TimmBackbone(
        keys.NAME,
        keys.OUT_FEATURES,
        keys.OPTIONS,
        keys.NORM,
        cfg.MODEL.BACKBONE.FREEZE_AT,
        input_shape.channels,
        keys.OMIT,
    )


def _create(name: str, options: Sequence[object], in_channels: int) -> nn.Module:
    """timm's network with all its maps, fine to coarse."""
    check_timm_network("MODEL.TIMM.NAME", name)
    import timm

    if len(options) % 2 or not all(isinstance(key, str) for key in options[::2]):
        raise UserError(f"MODEL.TIMM.OPTIONS are pairs NAME, VALUE; got {list(options)}")
    try:
        return timm.create_model(
            name,
            pretrained=False,
            features_only=True,
            feature_cls="getter",  # the one that keeps the names of parameters
            in_chans=in_channels,
            **dict(zip(options[::2], options[1::2])),
        )
    except _TIMM_ERRORS as error:
        raise UserError(f"MODEL.TIMM: {name} with OPTIONS {list(options)}: {error}") from error


def _omit(network: nn.Module, name: str, omit: Sequence[str]) -> None:
    known = [path for path, _ in network.model.named_modules() if path]
    for path in omit:
        if path not in known:
            raise UserError(
                f"MODEL.TIMM.OMIT: {name} has no module {path!r}{near_names(path, known)}"
            )
        network.model.set_submodule(path, nn.Identity())


def _levels(network: nn.Module) -> tuple[dict[str, int], dict[str, ShapeSpec]]:
    """By name of the maps, fine to coarse: their index in timm, and their shape as timm says."""
    info = network.feature_info
    indices, shapes = {}, {}
    for index, stride, channels in zip(info.out_indices, info.reduction(), info.channels()):
        if stride > 1 and stride.bit_count() == 1:  # a power of 2
            name = f"res{stride.bit_length() - 1}"
            indices[name], shapes[name] = index, ShapeSpec(channels=channels, stride=stride)
    return indices, shapes


def _try_out(network: nn.Module, name: str, image: Tensor, any_channels: bool) -> dict[str, Tensor]:
    """
    The maps of an image of TRIAL_SIZE, after a check that they are what timm says; any_channels:
    but for their channels.
    """
    network.eval()  # the image must leave no trace in the batch norms
    try:
        with torch.enable_grad():
            maps = network(image)
    except _TIMM_ERRORS as error:
        size = " x ".join(map(str, TRIAL_SIZE))
        raise UserError(f"MODEL.TIMM: {name} takes no image of {size}: {error}") from error
    network.train()
    indices, shapes = _levels(network)
    by_name = {n: maps[network.out_indices.index(i)] for n, i in indices.items()}
    for n, shape in shapes.items():
        channels = by_name[n].shape[1] if any_channels else shape.channels
        expected = (1, channels, *(side // shape.stride for side in TRIAL_SIZE))
        if by_name[n].shape != expected:
            raise UserError(
                f"MODEL.TIMM: {n} of {name} has the shape {tuple(by_name[n].shape)} where its "
                f"stride {shape.stride} and {channels} channels give {expected}"
            )
    return by_name


def _freeze(network: nn.Module, name: str, maps: Mapping[str, Tensor], freeze_at: int) -> None:
    """Freeze what the map of stride 2 ** freeze_at is computed from, by its gradients."""
    from timm.layers import freeze_batch_norm_2d

    last = f"res{freeze_at}"
    if last not in maps:
        raise UserError(
            f"MODEL.BACKBONE.FREEZE_AT {freeze_at}: {name} has no map of stride {2**freeze_at}, "
            f"only {', '.join(maps)}"
        )
    parameters = list(network.parameters())
    ones = torch.ones_like(maps[last])  # a sum would not be traced under no_grad
    gradients = torch.autograd.grad(maps[last], parameters, ones, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients):
        parameter.requires_grad = gradient is None
    for module in list(network.modules()):
        for child_name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d) and not child.weight.requires_grad:
                setattr(module, child_name, freeze_batch_norm_2d(child))

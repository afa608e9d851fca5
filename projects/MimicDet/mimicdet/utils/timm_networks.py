"""What timm says of a network before it is built; timm is an optional package."""

import re

from .errors import UserError, check_installed, near_names


def check_timm_network(key: str, name: str) -> None:
    """
    Raise UserError where timm is missing or has no network of that name.

    Args:
        key: the setting that named it; name: with or without timm's name of the weights, as in
            "tf_efficientnet_lite0" or "tf_efficientnet_lite0.in1k".
    """
    check_installed(f"{key} {name!r}", "timm", pip="timm")
    import timm

    known = timm.list_models() + timm.list_pretrained()
    if name not in known:
        raise UserError(f"{key}: timm has no network {name!r}{near_names(name, known)}")


def pixel_statistics(name: str) -> tuple[list[float], list[float]]:
    """Mean and deviation of R, G and B (0 to 255) that a network's weights expect, by timm."""
    check_timm_network("MODEL.TIMM.NAME", name)
    import timm

    data = timm.models.get_pretrained_cfg(name, allow_unregistered=False)
    mean, std = ([round(255.0 * x, 4) for x in values] for values in (data.mean, data.std))
    return mean, std


def _mobilenet_v2_layers() -> dict[str, str]:
    """timm's name of each layer of torchvision's MobileNetV2, by its path in `features`."""
    first = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    others = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2"}
    others |= {"2": "conv_pwl", "3": "bn3"}
    blocks = [f"{stage}.{i}" for stage, n in enumerate((1, 2, 3, 4, 3, 3, 1)) for i in range(n)]
    names = {"0.0": "conv_stem", "0.1": "bn1", "18.0": "conv_head", "18.1": "bn2"}
    for number, block in enumerate(blocks, 1):
        for path, layer in (first if number == 1 else others).items():
            names[f"{number}.conv.{path}"] = f"blocks.{block}.{layer}"
    return names


_MOBILENET_V2_LAYERS = _mobilenet_v2_layers()


def from_torchvision(key: str) -> str:
    """
    TimmBackbone's name of an entry of torchvision's MobileNetV2 (of any width) or VGG, such as
    "features.0.0.weight", which may have a prefix; any other key comes back as it is.
    """
    match = re.fullmatch(r"(|.*\.)features\.(\d.*)\.(\w+)", key)
    if not match or "network.model." in match[1]:
        return key
    prefix, path, name = match.groups()
    return f"{prefix}network.model.{_MOBILENET_V2_LAYERS.get(path, f'features.{path}')}.{name}"

"""What timm says of a network before it is built; timm is an optional package."""

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

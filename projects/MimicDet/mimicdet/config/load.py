"""From a config file and overrides to a config."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from ..utils.errors import UserError
from ..utils.timm_networks import pixel_statistics
from .defaults import add_mimicdet_config

# What a network of timm brings along, with the value that stands for "not set".
_PIXEL_KEYS = {"MODEL.PIXEL_MEAN": [], "MODEL.PIXEL_STD": [], "INPUT.FORMAT": ""}


def load_config(config_file: str, opts: Sequence[str] | None = None) -> CfgNode:
    """
    Detectron2's config with MimicDet's keys, a file and KEY VALUE overrides merged in; not frozen,
    data sets not looked at. Plain YAML alone is read, also through _BASE_: no tag runs code. Where
    the backbone is timm's, MODEL.PIXEL_MEAN, MODEL.PIXEL_STD and INPUT.FORMAT are what its weights
    expect, unless the file or an override sets them.

    Raises:
        UserError: names a missing file, an unknown key, a wrong type, a tag with its file and line,
            an override without a value or a network that timm has not.
    """
    cfg = get_cfg()
    add_mimicdet_config(cfg)
    defaults = {key: _get(cfg, key) for key in _PIXEL_KEYS}
    cfg.merge_from_list([x for pair in _PIXEL_KEYS.items() for x in pair])
    if config_file:
        if "://" not in config_file and not os.path.isfile(config_file):
            raise UserError(f"there is no config file {config_file!r}")
        with _merge_errors(config_file):
            cfg.merge_from_file(config_file, allow_unsafe=False)
    opts = list(opts or [])
    if len(opts) % 2:
        raise UserError(f"overrides are pairs KEY VALUE; {opts[-1]!r} stands alone in {opts}")
    for key, value in zip(opts[::2], opts[1::2]):
        with _merge_errors(f"override {key} {value!r}"):
            cfg.merge_from_list([key, value])
    if cfg.MODEL.LOAD_PROPOSALS:
        raise UserError(
            "MODEL.LOAD_PROPOSALS must be False, got True: such files are pickles and can run code"
        )
    unset = [key for key, value in _PIXEL_KEYS.items() if _get(cfg, key) == value]
    if unset and "build_timm_backbone" in (cfg.MODEL.BACKBONE.NAME, cfg.MODEL.PYRAMID.BOTTOM_UP):
        mean, std = pixel_statistics(cfg.MODEL.TIMM.NAME)
        defaults = dict(zip(_PIXEL_KEYS, (mean, std, "RGB")))
    cfg.merge_from_list([x for key in unset for x in (key, defaults[key])])
    return cfg


def _get(cfg: CfgNode, key: str) -> Any:
    return reduce(getattr, key.split("."), cfg)


@contextmanager
def _merge_errors(source: str) -> Iterator[None]:
    """Around one merge: what yacs, Detectron2 and PyYAML raise for its content is the user's."""
    try:
        yield
    except (AssertionError, KeyError, OSError, TypeError, ValueError, yaml.YAMLError) as error:
        # str() of a KeyError would be its message in quotes.
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UserError(f"{source}: {text}") from error

"""From a config file and overrides to a config."""

import os
from collections.abc import Sequence

import yaml
from detectron2.config import CfgNode, get_cfg

from ..utils.errors import UserError, error_text, file_errors
from .defaults import add_mimicdet_config


def load_config(config_file: str, opts: Sequence[str] | None = None) -> CfgNode:
    """
    Detectron2's config with MimicDet's keys, a file and KEY VALUE overrides merged in; not frozen,
    data sets not looked at. Raises UserError that names a missing file, an unknown key, a wrong
    type or an override without a value.
    """
    cfg = get_cfg()
    add_mimicdet_config(cfg)
    if config_file:
        if "://" not in config_file and not os.path.isfile(config_file):
            raise UserError(f"there is no config file {config_file!r}")
        try:
            with file_errors():
                cfg.merge_from_file(config_file)
        except UserError:  # the file or a _BASE_ of it cannot be read
            raise
        except (AssertionError, KeyError, TypeError, ValueError, yaml.YAMLError) as error:
            raise UserError(f"{config_file}: {error_text(error)}") from error
    opts = list(opts or [])
    if len(opts) % 2:
        raise UserError(f"overrides are pairs KEY VALUE; {opts[-1]!r} stands alone in {opts}")
    for key, value in zip(opts[::2], opts[1::2]):
        try:
            cfg.merge_from_list([key, value])
        except (AssertionError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"override {key} {value!r}: {error_text(error)}") from error
    return cfg

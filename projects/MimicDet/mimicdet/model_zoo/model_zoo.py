"""Find a config of configs/ by its name and load it."""

from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from mimicdet_runtime.zoo import read_registry

from ..checkpoint import load_weights
from ..checkpoint.registry import model_address
from ..checkpoint.student import load_deployed_cfg
from ..config import load_config
from ..data import register_datasets
from ..utils.errors import UserError, near_names

# Where configs/ can lie: inside the package (a built distribution) or at the repository's root.
_HERE = Path(__file__).resolve().parent
_CONFIG_FOLDERS = (_HERE / "configs", (_HERE / "../../../../configs").resolve())


def _config_root() -> Path:
    for folder in _CONFIG_FOLDERS:
        if folder.is_dir():
            return folder
    raise UserError(
        "MimicDet's configs/ folder is missing; looked at "
        + " and ".join(str(folder) for folder in _CONFIG_FOLDERS)
    )


def list_configs() -> list[str]:
    """Names of all models' configs relative to configs/, sorted; the Base-*.yaml are left out."""
    root = _config_root()
    names = (path.relative_to(root).as_posix() for path in root.rglob("*.yaml"))
    return sorted(name for name in names if not Path(name).name.startswith("Base-"))


def list_models() -> list[str]:
    """Names of the published models, sorted; MODEL_ZOO.md says what they are."""
    return sorted(read_registry())


def _full_name(name: str) -> str:
    """A name as list_configs() spells it; see get_config_file() for the spellings it takes."""
    if name in (registry := read_registry()):
        return registry[name]["config"]
    requested = name if name.endswith(".yaml") else name + ".yaml"
    known = list_configs()
    if requested in known:
        return requested
    matches = [full for full in known if Path(full).name == requested]
    if len(matches) == 1:
        return matches[0]
    if matches:
        raise UserError(f"The config name {name!r} is ambiguous: {', '.join(matches)}")
    hint = near_names(requested, known + [Path(full).name for full in known])
    raise UserError(f"There is no config {name!r} in {_config_root()}{hint}")


def get_config_file(name: str) -> str:
    """
    Path of a config file.

    Args:
        name: as list_configs() spells it, e.g. "COCO-Detection/mimicdet_R_50_FPN_1x.yaml"; the
            ".yaml" may be left out, and the folder too where the file's name is unique; or one of
            list_models().

    Raises:
        UserError: there is no such config, or several have this name; so do the functions below.
    """
    return str(_config_root() / _full_name(name))


def get_checkpoint_url(name: str) -> str:
    """
    Address of the trained checkpoint of a model or a config, for MODEL.WEIGHTS; RuntimeError where
    none is published.
    """
    full_name, registry = _full_name(name), read_registry()
    models = [x for x, entry in registry.items() if entry["config"] == full_name]
    if not models:
        raise RuntimeError(
            f"No trained checkpoint is published for {full_name}; train it, "
            "then set MODEL.WEIGHTS to its model_final.pth"
        )
    return model_address(name if name in models else models[0])


def get_config(name: str, trained: bool = False) -> CfgNode:
    """
    A config, loaded over Detectron2's and MimicDet's defaults.

    Args:
        name: see get_config_file().
        trained: set MODEL.WEIGHTS to get_checkpoint_url(name), which MimicCheckpointer checks
            against the registry, as a model's name does by itself; False leaves the ImageNet
            weights that a config's training starts from.
    """
    cfg = load_config(get_config_file(name))
    if trained or name in read_registry():
        cfg.MODEL.WEIGHTS = get_checkpoint_url(name)
    return cfg


def get(name: str, trained: bool = False, device: str | None = None) -> nn.Module:
    """
    A model in evaluation mode: get("bccd") is a published one.

    Args:
        name, trained: see get_config(); a config without `trained` gets random weights.
        device: None: CUDA where there is one, else the CPU.
    """
    trained = trained or name in read_registry()
    cfg = get_config(name, trained)
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES == 0:  # as many as the data have
        if trained:  # a student-only checkpoint knows, without the data
            cfg, _ = load_deployed_cfg(get_config_file(name), ["MODEL.WEIGHTS", cfg.MODEL.WEIGHTS])
        else:
            register_datasets(cfg)
    cfg.MODEL.DEVICE = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model(cfg).eval()
    if trained:
        load_weights(model, cfg.MODEL.WEIGHTS)
    return model

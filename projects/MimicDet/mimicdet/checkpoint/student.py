"""A student-only checkpoint: what inference and fine-tuning need, and what it was trained as."""

import json
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from ..config import load_config
from ..data import register_datasets
from ..utils.errors import UserError, check_installed
from ..utils.files import file_sha256, new_path
from .checkpointer import MimicCheckpointer
from .integrity import non_finite
from .registry import fetch, read_state_dict

ENDINGS = (".pth", ".safetensors")
METADATA_KEY = "mimicdet"  # in safetensors' header, in a .pth, in ONNX's metadata_props


def extract_student(
    cfg: CfgNode, class_names: list[str], source: str, output: str, *, half: bool = False
) -> int:
    """
    Write a training checkpoint's student.

    Args:
        cfg: the training's config, kept in the file's metadata without MODEL.WEIGHTS.
        source: the training checkpoint; output: name in .pth or .safetensors.
        half: write float16, half the size; a model that loads it computes in its own precision.

    Returns:
        the number of tensors written.

    Raises:
        UserError: `output` has another ending or no folder; `source` holds no student, or values
            that are not finite, in float16 where that is asked for.
    """
    if Path(output).suffix not in ENDINGS:
        raise UserError(f"--output: {output!r} must end in one of {ENDINGS}")
    if not Path(output).resolve().parent.is_dir():
        raise UserError(f"--output: there is no folder for {output!r}")
    if output.endswith(".safetensors"):
        check_installed(f"--output {output}", "safetensors")
    state = {
        name: (value.half() if half and value.is_floating_point() else value).contiguous()
        for name, value in read_state_dict(source).items()
        if not name.startswith(MimicCheckpointer.TRAINING_ONLY)
    }
    if not any(key.startswith("student_head.") for key in state):
        raise UserError(f"{source} holds no student: it has no parameter student_head.*")
    if name := non_finite(state):
        in_half = " in float16" if half else ""
        raise UserError(f"{source}: {name} holds values that are not finite{in_half}")
    kept = cfg.clone()
    kept.defrost()
    kept.MODEL.WEIGHTS = ""  # a path of the machine that the file was written on
    metadata = {
        "format_version": 1,
        "class_names": class_names,
        "config": kept.dump(),
        "source_sha256": file_sha256(source),
    }
    with new_path(output) as path:
        if output.endswith(".safetensors"):
            from safetensors.torch import save  # save_file's file is its owner's alone

            path.write_bytes(save(state, {METADATA_KEY: json.dumps(metadata)}))
        else:
            torch.save({"model": state, METADATA_KEY: metadata}, path)
    return len(state)


def read_student_metadata(path: str) -> dict[str, Any] | None:
    """The metadata of a file of `extract_student`; None for a checkpoint of another origin."""
    if path.endswith(".safetensors"):
        from safetensors import safe_open

        with safe_open(path, "pt") as f:
            text = (f.metadata() or {}).get(METADATA_KEY)
        return json.loads(text) if text else None
    if not path.endswith(".pth"):
        return None
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return content.get(METADATA_KEY) if isinstance(content, dict) else None


def load_deployed_cfg(config_file: str, opts: list[str]) -> tuple[CfgNode, list[str]]:
    """
    A config with its classes, for tools that work on a trained checkpoint.

    The classes come from MODEL.WEIGHTS where that is a student-only checkpoint, else from the data
    sets of the config, which must then be there.

    Returns:
        (cfg, class names); MODEL.WEIGHTS is a local file.
    """
    cfg = load_config(config_file, opts)
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: name a checkpoint")
    cfg.MODEL.WEIGHTS = fetch(cfg.MODEL.WEIGHTS)
    try:
        metadata = read_student_metadata(cfg.MODEL.WEIGHTS)
    except Exception as error:  # a file that is none fails in as many ways as there are formats
        raise UserError(f"{cfg.MODEL.WEIGHTS} is no checkpoint that can be read") from error
    if metadata is not None:
        names = list(metadata["class_names"])
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(names)
        return cfg, names
    register_datasets(cfg)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        if classes := MetadataCatalog.get(name).get("thing_classes", None):
            return cfg, list(classes)
    raise UserError("the classes' names are not known: no data set in DATASETS.TRAIN or TEST")

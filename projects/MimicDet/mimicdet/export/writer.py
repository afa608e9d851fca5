"""From a config and a checkpoint to a file that is known to be right."""

import json
import logging
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from mimicdet_runtime.detector import resize_image
from mimicdet_runtime.metadata import ResizeRule

from ..checkpoint import load_weights
from ..checkpoint.integrity import non_finite
from ..data import load_records, read_image, register_datasets
from ..modeling.meta_arch.config_checks import is_mimicdet
from ..modeling.meta_arch.mimicdet import MimicDet
from ..utils.errors import UserError, check_choice, check_installed
from ..utils.files import file_sha256, new_path
from .detector import INPUT_NAMES
from .formats import DEFAULT_OPSET, FORMATS, MIN_CANVAS, WRITERS, load_exported
from .metadata import export_metadata, read_metadata
from .quantize import CALIBRATION_IMAGES, quantize
from .verify import VERIFIED_IMAGES, sample_images, to_batch, verify

logger = logging.getLogger(__name__)

PRECISIONS = ("float32", "float16", "int8")


@dataclass(frozen=True)
class ExportOptions:
    """What the caller chooses; UserError for what is not known."""

    file_format: str = "onnx"  # a name of FORMATS
    # "float16": see ExportableDetector; "int8": ONNX alone, see quantize.py
    precision: str = "float32"
    include_resize: bool = False  # True: the graph resizes one image itself
    opset: int = DEFAULT_OPSET  # of ONNX
    # Folder of pictures to verify with, and to calibrate "int8"; empty: made ones, and for "int8"
    # those of DATASETS.TRAIN.
    sample_images: str = ""
    fixed_size: tuple[int, int] | None = None  # canvas of one image, of ONNX; None: any

    def __post_init__(self) -> None:
        check_choice("--format", self.file_format, FORMATS)
        check_choice("--precision", self.precision, PRECISIONS)
        if self.precision == "int8" and self.file_format != "onnx":
            raise UserError(f"--precision int8 is written as onnx alone, not {self.file_format}")
        if self.fixed_size:
            if self.file_format != "onnx":
                raise UserError(f"--fixed-size is written as onnx alone, not {self.file_format}")
            if self.include_resize:
                raise UserError("--fixed-size and --include-resize exclude each other")
            if min(self.fixed_size) < 1:
                raise UserError(f"--fixed-size must be above 0, got {self.fixed_size}")


def export_model(
    cfg: CfgNode,
    class_names: Sequence[str],
    output: str | Path,
    options: ExportOptions,
    config_name: str = "",
) -> dict[str, Any]:
    """
    Write the student of the model that cfg and MODEL.WEIGHTS describe, and verify the file.

    The file gets its name only after it has been run on sample images against the eager model.

    Args:
        cfg: with MODEL.WEIGHTS and the number of classes; the model runs on the CPU.
        class_names: of the K classes, in order.
        output: the file to write; replaced where it exists.
        config_name: for the metadata.

    Returns:
        the file's metadata.

    Raises:
        UserError: no checkpoint, no sample images, a model that is none of MimicDet's students,
            weights that are not finite, a file that does not agree with the model.
    """
    output = Path(output)
    if not output.parent.is_dir():
        raise UserError(f"--output: there is no folder {str(output.parent)!r}")
    if options.file_format == "pt2" and output.suffix != ".pt2":
        raise UserError(f"--output: torch.export takes a name in .pt2, got {output.name!r}")
    if options.file_format == "onnx":
        check_installed("--format onnx", "onnx", "onnxscript", "onnxruntime")
    sizes = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
    if options.include_resize and min(sizes) <= 0:
        raise UserError(
            f"--include-resize: INPUT.MIN_SIZE_TEST is {sizes[0]} and INPUT.MAX_SIZE_TEST "
            f"{sizes[1]}; the model is not meant to resize"
        )
    if options.precision == "int8":
        images = calibration_images(cfg, options.sample_images)
    else:
        images = sample_images(options.sample_images, cfg.INPUT.FORMAT)
    if not options.include_resize:  # as the model's test loader does
        rule = ResizeRule(*sizes, options.fixed_size)
        images = [resize_image(x, rule) for x in images]
    if options.file_format == "pt2":
        images = [x for x in images if min(x.shape[:2]) >= MIN_CANVAS]
        if not images:
            raise UserError(
                f"the format pt2 takes images from {MIN_CANVAS} pixels a side on, and at "
                f"INPUT.MIN_SIZE_TEST {sizes[0]} no sample image is so large"
            )
    model = load_student(cfg)
    metadata = export_metadata(
        cfg,
        class_names,
        config_name=config_name,
        weights_sha256=file_sha256(cfg.MODEL.WEIGHTS),
        size_divisor=model.backbone.size_divisibility,
        precision=options.precision,
        includes_resize=options.include_resize,
        opset=options.opset if options.file_format == "onnx" else None,
        fixed_size=options.fixed_size,
    )
    # A path of the output's name, which some formats write down.
    with new_path(output) as temporary:
        WRITERS[options.file_format](model, temporary, metadata)
        if options.precision == "int8":
            calibration = images  # a batch is made when it is asked for: all fill memory
            quantize(
                temporary,
                lambda: (
                    dict(zip(INPUT_NAMES, to_batch([x], options.fixed_size))) for x in calibration
                ),
            )
            images = images[:VERIFIED_IMAGES]
        check_content(temporary, options.file_format, metadata)
        count = verify(load_exported(temporary, options.file_format), model, images, metadata)
    logger.info("%s agrees with the model on %d images, %d detections", output, len(images), count)
    if not count:
        logger.warning("the model found nothing in the sample images: give it --sample-images DIR")
    return metadata


def calibration_images(cfg: CfgNode, folder: str = "") -> list[np.ndarray]:
    """
    Up to CALIBRATION_IMAGES pictures, of a folder or evenly over the training sets: (H, W, 3) uint8
    in INPUT.FORMAT. UserError where there is none.
    """
    if folder:
        return sample_images(folder, cfg.INPUT.FORMAT, CALIBRATION_IMAGES)
    if not cfg.DATASETS.TRAIN:
        raise UserError("--precision int8 needs DATASETS.TRAIN or --sample-images to calibrate")
    register_datasets(cfg)
    files = [x["file_name"] for name in cfg.DATASETS.TRAIN for x in load_records(name)]
    chosen = np.linspace(0, len(files) - 1, min(CALIBRATION_IMAGES, len(files))).astype(int)
    return [read_image(files[i], cfg.INPUT.FORMAT) for i in chosen]


def load_student(cfg: CfgNode) -> MimicDet:
    """The model in evaluation on the CPU, checked: a student, with finite weights."""
    if not is_mimicdet(cfg):
        raise UserError(
            f"only MimicDet can be exported, MODEL.META_ARCHITECTURE is "
            f"{cfg.MODEL.META_ARCHITECTURE!r}"
        )
    if not cfg.MODEL.WEIGHTS:
        raise UserError("MODEL.WEIGHTS is empty: name the checkpoint to export")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    load_weights(model, cfg.MODEL.WEIGHTS)
    if name := non_finite(model.state_dict()):
        raise UserError(f"{cfg.MODEL.WEIGHTS}: {name} holds values that are not finite")
    return model


def check_content(path: Path, file_format: str, metadata: dict[str, Any]) -> None:
    """UserError where the file lacks its metadata, or holds a parameter of the T-head."""
    if read_metadata(path, file_format) != metadata:
        raise UserError(f"{path.name}: the metadata did not get into the file")
    forbidden = [name for name in tensor_names(path, file_format) if "roi_heads" in name]
    if forbidden:
        raise UserError(f"{path.name}: the T-head got into the file: {forbidden[0]}")


def tensor_names(path: Path, file_format: str) -> list[str]:
    """Names of the weights in a written file."""
    if file_format == "onnx":
        import onnx

        return [x.name for x in onnx.load(str(path)).graph.initializer]
    if file_format == "torchscript":
        return list(torch.jit.load(str(path), map_location="cpu").state_dict())
    with zipfile.ZipFile(path) as archive:  # torch.export.load takes long
        name = next(x for x in archive.namelist() if x.endswith("/model_weights_config.json"))
        return list(json.loads(archive.read(name))["config"])

"""What an exported file says of itself."""

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ..checkpoint.student import METADATA_KEY
from ..utils.errors import UserError
from ..utils.version import __version__

FORMAT_VERSION = 1
METADATA_FILE = "mimicdet.json"  # in the archives of TorchScript and pt2


def export_metadata(
    cfg: CfgNode,
    class_names: Sequence[str],
    *,
    config_name: str,
    weights_sha256: str,
    size_divisor: int,
    precision: str,
    includes_resize: bool,
    opset: int | None,
    fixed_size: Sequence[int] | None,
) -> dict[str, Any]:
    """
    The content of the metadata: plain values, for json.

    Args:
        config_name: name of the config file; weights_sha256: of the file MODEL.WEIGHTS.
        size_divisor: what the graph pads to.
        opset: None for formats without one.
        fixed_size: (height, width) of the one canvas that the graph takes; None: any.
    """
    return {
        "format_version": FORMAT_VERSION,
        "mimicdet_version": __version__,
        "class_names": list(class_names),
        "input_format": cfg.INPUT.FORMAT,
        "pixel_mean": list(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": list(cfg.MODEL.PIXEL_STD),
        "resize": {
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "interpolation": "bilinear",
        },
        "includes_resize": includes_resize,
        "size_divisor": size_divisor,
        "fixed_size": list(fixed_size) if fixed_size else None,
        "score_threshold": cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST,
        "nms_threshold": cfg.MODEL.ROI_HEADS.NMS_THRESH_TEST,
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "precision": precision,
        "weights_sha256": weights_sha256,
        "config": config_name,
        "opset": opset,
    }


def read_metadata(path: str | Path, file_format: str) -> dict[str, Any]:
    """
    The metadata of a file that export_model wrote.

    Raises:
        UserError: the file holds none.
    """
    path = Path(path)
    if file_format == "onnx":
        import onnx

        props = onnx.load(str(path), load_external_data=False).metadata_props
        text = next((x.value for x in props if x.key == METADATA_KEY), None)
    else:
        with zipfile.ZipFile(path) as archive:  # of TorchScript and pt2, with extra files inside
            name = next((x for x in archive.namelist() if x.endswith("/" + METADATA_FILE)), None)
            text = archive.read(name) if name else None
    if text is None:
        raise UserError(f"{path} holds no MimicDet metadata")
    return json.loads(text)

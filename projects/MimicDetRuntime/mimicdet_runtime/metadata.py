"""What an exported model says about itself: the metadata key `mimicdet` of its ONNX file."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UserError

METADATA_KEY = "mimicdet"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class ResizeRule:
    """Detectron2's ResizeShortestEdge: the target of the shorter side and the longer one's limit.

    Both in pixels; min_size 0 leaves images as they are.
    """

    min_size: int
    max_size: int

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of an image of the given size after resizing."""
        if self.min_size == 0:
            return height, width
        scale = self.min_size / min(height, width)
        # The shorter side is set, not multiplied: rounding as Detectron2's.
        new_height = float(self.min_size) if height <= width else scale * height
        new_width = float(self.min_size) if width <= height else scale * width
        longest = max(new_height, new_width)
        if longest > self.max_size:
            new_height *= self.max_size / longest
            new_width *= self.max_size / longest
        return max(int(new_height + 0.5), 1), max(int(new_width + 0.5), 1)


@dataclass(frozen=True)
class ModelInfo:
    """The part of the metadata that running a model needs, and all of it as it was written."""

    class_names: tuple[str, ...]
    input_format: str  # order of the channels, "BGR" or "RGB"
    resize: ResizeRule
    includes_resize: bool  # the graph resizes, and its boxes are in pixels of the full image
    size_divisor: int  # height and width of the padded input are multiples of it
    score_threshold: float
    nms_threshold: float
    detections_per_image: int
    written: Mapping[str, Any]


def parse_metadata(metadata: Mapping[str, str], model: str) -> ModelInfo:
    """
    Read the metadata_props of an ONNX file, which messages call `model`.

    Raises:
        UserError: the file was not written by MimicDet's export, is of a later format, or a key
            is missing or of a wrong kind.
    """
    if METADATA_KEY not in metadata:
        raise UserError(f"{model}: not written by MimicDet's export (no metadata '{METADATA_KEY}')")
    try:
        written = json.loads(metadata[METADATA_KEY])
        version = written["format_version"]
        if version != FORMAT_VERSION:
            raise UserError(
                f"{model}: format version {version}; this runtime reads version {FORMAT_VERSION}"
            )
        return _model_info(written)
    except UserError:
        raise
    except KeyError as error:
        raise UserError(f"{model}: its metadata lack {error}") from error
    except (TypeError, ValueError) as error:
        raise UserError(f"{model}: its metadata are damaged: {error}") from error


def _model_info(written: Mapping[str, Any]) -> ModelInfo:
    input_format = written["input_format"]
    if input_format not in ("BGR", "RGB"):
        raise ValueError(f"input_format is {input_format!r}, not BGR or RGB")
    resize = written["resize"]
    return ModelInfo(
        class_names=tuple(str(name) for name in written["class_names"]),
        input_format=input_format,
        resize=ResizeRule(int(resize["min_size"]), int(resize["max_size"])),
        includes_resize=bool(written["includes_resize"]),
        size_divisor=max(int(written["size_divisor"]), 1),
        score_threshold=float(written["score_threshold"]),
        nms_threshold=float(written["nms_threshold"]),
        detections_per_image=int(written["detections_per_image"]),
        written=written,
    )


def format_metadata(info: ModelInfo) -> str:
    """The metadata as lines `key  value` for people; nested keys are joined by a dot."""
    rows: list[tuple[str, str]] = []
    for key, value in info.written.items():
        if isinstance(value, dict):
            rows += [(f"{key}.{inner}", str(value[inner])) for inner in value]
        elif key == "class_names":
            rows.append((key, f"{len(value)}: " + ", ".join(map(str, value))))
        elif isinstance(value, list):
            rows.append((key, ", ".join(map(str, value))))
        else:
            rows.append((key, str(value)))
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)

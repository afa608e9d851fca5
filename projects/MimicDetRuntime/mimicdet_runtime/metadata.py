"""What an exported model says about itself: the metadata key `mimicdet` of its ONNX file."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UserError

METADATA_KEY = "mimicdet"
FORMAT_VERSION = 1
MAX_SIDE = 4096  # pixels of what a model's images are resized to
_MAX_LENGTH = 2**20  # characters of all metadata
_MAX_DEPTH = 10
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class ResizeRule:
    """Detectron2's ResizeShortestEdge: the target of the shorter side and the longer one's limit.

    Both in pixels; min_size 0 leaves images as they are. What is larger than the canvas shrinks
    until it fits.
    """

    min_size: int
    max_size: int
    canvas: tuple[int, int] | None = None  # (height, width); None: as large as need be

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """(height, width) in pixels of an image of the given size after resizing."""
        new_height, new_width = float(height), float(width)
        if self.min_size > 0:
            scale = self.min_size / min(height, width)
            # The shorter side is set, not multiplied: rounding as Detectron2's.
            new_height = float(self.min_size) if height <= width else scale * height
            new_width = float(self.min_size) if width <= height else scale * width
            longest = max(new_height, new_width)
            if longest > self.max_size:
                new_height *= self.max_size / longest
                new_width *= self.max_size / longest
        if self.canvas:
            fit = min(self.canvas[0] / new_height, self.canvas[1] / new_width, 1.0)
            new_height, new_width = fit * new_height, fit * new_width
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
            is missing or has a value that it cannot have.
    """
    if METADATA_KEY not in metadata:
        raise UserError(f"{model}: not written by MimicDet's export (no metadata '{METADATA_KEY}')")
    try:
        written = _parse_json(metadata[METADATA_KEY])
        version = _value(written, "format_version")
        if type(version) is not int or version != FORMAT_VERSION:
            raise UserError(
                f"{model}: format version {_short(version)}; "
                f"this runtime reads version {FORMAT_VERSION}"
            )
        for key, (is_valid, expected) in _RULES.items():
            value = _value(written, key)
            if not is_valid(value):
                raise ValueError(f"{key} is {_short(value)}, not {expected}")
    except KeyError as error:
        raise UserError(f"{model}: its metadata lack {error}") from error
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{model}: its metadata are damaged: {error}") from error
    return _model_info(written)


def _parse_json(text: str) -> dict[str, Any]:
    if len(text) > _MAX_LENGTH:
        raise ValueError(f"they are longer than {_MAX_LENGTH} characters")
    try:
        written = json.loads(text)
    except RecursionError as error:
        raise ValueError("they are nested too deeply") from error
    if not isinstance(written, dict):
        raise ValueError("they are no table of keys and values")
    level: list[Any] = [written]
    for _ in range(_MAX_DEPTH):
        tables = [
            x.values() if isinstance(x, dict) else x for x in level if type(x) in (dict, list)
        ]
        level = [value for table in tables for value in table]
    if level:
        raise ValueError("they are nested too deeply")
    return written


def _value(written: dict[str, Any], key: str) -> Any:
    """The value of a key, or of "key.inner"; KeyError where it is missing."""
    outer, _, inner = key.partition(".")
    value = written[outer]
    if not inner:
        return value
    if not isinstance(value, dict):
        raise ValueError(f"{outer} is {_short(value)}, not a table")
    if inner not in value:
        raise KeyError(key)
    return value[inner]


def _short(value: Any) -> str:
    text = json.dumps(value)  # ASCII, whatever is in a string
    return text if len(text) <= 60 else text[:60] + "..."


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value) <= 1000 and not _CONTROL.search(value)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e9 and math.isfinite(value)


def _are_three(is_valid: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, list) and len(x) == 3 and all(map(is_valid, x))


def _whole(least: int, most: int) -> tuple[Callable[[Any], bool], str]:
    is_valid = lambda x: type(x) is int and least <= x <= most  # noqa: E731
    return is_valid, f"a whole number from {least} to {most}"


_TEXT = (_is_text, "text without control characters")
_PROBABILITY = (lambda x: _is_number(x) and 0 <= x <= 1, "a number from 0 to 1")
# What each key may hold, all of which the export writes.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "input_format": (lambda x: x in ("BGR", "RGB"), "BGR or RGB"),
    "class_names": (
        lambda x: isinstance(x, list) and 0 < len(x) <= 100_000 and all(map(_is_text, x)),
        "a list of names",
    ),
    "pixel_mean": (_are_three(_is_number), "three numbers"),
    "pixel_std": (_are_three(lambda x: _is_number(x) and x > 0), "three numbers above 0"),
    "resize.min_size": _whole(0, MAX_SIDE),
    "resize.max_size": _whole(1, MAX_SIDE),
    "resize.interpolation": (lambda x: x == "bilinear", "bilinear"),
    "includes_resize": (lambda x: isinstance(x, bool), "true or false"),
    "size_divisor": _whole(0, 1024),
    "score_threshold": _PROBABILITY,
    "nms_threshold": _PROBABILITY,
    "detections_per_image": _whole(1, 100_000),
    "precision": (
        lambda x: x in ("float32", "float16", "bfloat16", "int8"),
        "float32, float16, bfloat16 or int8",
    ),
    "weights_sha256": (
        lambda x: isinstance(x, str) and re.fullmatch("[0-9a-f]{64}", x) is not None,
        "64 hexadecimal digits",
    ),
    "mimicdet_version": _TEXT,
    "config": _TEXT,
    "opset": (lambda x: x is None or (type(x) is int and 1 <= x <= 1000), "a number or null"),
}


def _model_info(written: Mapping[str, Any]) -> ModelInfo:
    resize = written["resize"]
    return ModelInfo(
        class_names=tuple(written["class_names"]),
        input_format=written["input_format"],
        resize=ResizeRule(resize["min_size"], resize["max_size"]),
        includes_resize=written["includes_resize"],
        size_divisor=max(written["size_divisor"], 1),
        score_threshold=float(written["score_threshold"]),
        nms_threshold=float(written["nms_threshold"]),
        detections_per_image=written["detections_per_image"],
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
    # Keys that this version does not know are shown too, and may hold anything.
    rows = [(_CONTROL.sub("?", key), _CONTROL.sub("?", value)) for key, value in rows]
    width = max(len(key) for key, _ in rows)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in rows)

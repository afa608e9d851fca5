"""
A small ONNX model with the inputs, outputs and metadata of MimicDet's export.

Of each image it detects two things: class 1 in the middle half of the image, with the brightest
value of all channels / 255 as its score, and class 0 in the upper left quarter, with score 0.25.
A black image has no detections.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CLASS_NAMES = ["circle", "square"]
# Boxes in parts of the image: x0, y0, x1, y1.
FRACTIONS = np.float32([[[0.25, 0.25, 0.75, 0.75], [0.0, 0.0, 0.5, 0.5]]])
CORNER_SCORE = 0.25


def make_metadata(**changes: Any) -> dict[str, Any]:
    """The content of the metadata key `mimicdet`."""
    metadata = {
        "format_version": 1,
        "mimicdet_version": "0.1.0",
        "class_names": CLASS_NAMES,
        "input_format": "BGR",
        "pixel_mean": [103.53, 116.28, 123.675],
        "pixel_std": [1.0, 1.0, 1.0],
        "resize": {"min_size": 48, "max_size": 96, "interpolation": "bilinear"},
        "includes_resize": False,
        "size_divisor": 32,
        "score_threshold": 0.05,
        "nms_threshold": 0.6,
        "detections_per_image": 100,
        "precision": "float32",
        "weights_sha256": "0" * 64,
        "config": "mock.yaml",
        "opset": 17,
    }
    return {**metadata, **changes}


def _constants() -> list[onnx.TensorProto]:
    values = {
        "xyxy": np.int64([1, 0, 1, 0]),
        "axis1": np.int64([1]),
        "fractions": FRACTIONS,
        "white": np.float32(255.0),
        "corner": np.float32(CORNER_SCORE),
        "two": np.float32(2.0),
        "class_numbers": np.int64([[1, 0]]),
    }
    return [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]


def _nodes() -> list[onnx.NodeProto]:
    node = helper.make_node
    return [
        node("Cast", ["image_sizes"], ["sizes"], to=TensorProto.FLOAT),
        node("Gather", ["sizes", "xyxy"], ["whole"], axis=1),
        node("Unsqueeze", ["whole", "axis1"], ["whole_row"]),
        node("ReduceMax", ["images"], ["brightest"], axes=[1, 2, 3], keepdims=0),
        node("Sign", ["brightest"], ["any"]),
        node("Unsqueeze", ["any", "axis1"], ["any_row"]),
        node("Unsqueeze", ["any_row", "axis1"], ["any_box"]),
        node("Mul", ["whole_row", "fractions"], ["all_boxes"]),
        node("Mul", ["all_boxes", "any_box"], ["boxes"]),
        node("Div", ["brightest", "white"], ["brightness"]),
        node("Unsqueeze", ["brightness", "axis1"], ["first"]),
        node("Mul", ["any_row", "corner"], ["second"]),
        node("Concat", ["first", "second"], ["scores"], axis=1),
        node("Cast", ["any_row"], ["any_number"], to=TensorProto.INT64),
        node("Mul", ["class_numbers", "any_number"], ["classes"]),
        node("Mul", ["any", "two"], ["count"]),
        node("Cast", ["count"], ["num_detections"], to=TensorProto.INT64),
    ]


def write_mock(path: Path, metadata: dict[str, Any] | None = None, key: str = "mimicdet") -> Path:
    """Write the model; metadata: None for make_metadata()'s."""
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        _nodes(),
        "mock",
        [
            info("images", TensorProto.FLOAT, ["N", 3, "H", "W"]),
            info("image_sizes", TensorProto.INT64, ["N", 2]),
        ],
        [
            info("boxes", TensorProto.FLOAT, ["N", 2, 4]),
            info("scores", TensorProto.FLOAT, ["N", 2]),
            info("classes", TensorProto.INT64, ["N", 2]),
            info("num_detections", TensorProto.INT64, ["N"]),
        ],
        initializer=_constants(),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    content = make_metadata() if metadata is None else metadata
    helper.set_model_props(model, {key: json.dumps(content)})
    onnx.save(model, str(path))
    return path

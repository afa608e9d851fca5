"""
INT8 for ONNX files: ONNX Runtime's static quantisation of the convolutions on maps.

Backbone, pyramid and the refinement module's hidden layer compute in 8 bits, weights in 7 with a
scale for each channel: without VNNI, ONNX Runtime adds pairs of products in 16 bits, which hold
2 x 255 x 64 but not 2 x 255 x 127. The layers that give objectness and boxes, the S-head at its few
locations, decoding and NMS stay in float32: they are a small part of the time, and their digits
count.
"""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # onnx is an extra, and other formats do without it
    import onnx

CALIBRATION_IMAGES = 100
# On maps, next to convolutions; a convolution with a weight of these names stays as it is.
MAP_OPERATORS = ("Conv", "Clip", "Relu", "Add", "Resize", "MaxPool")
FLOAT_LAYERS = ("objectness_logits", "anchor_deltas")


def quantize(path: Path, inputs: Iterable[dict[str, np.ndarray]]) -> None:
    """
    Quantise a float32 file of write_onnx, in its place.

    Args:
        inputs: of the graph by name, a hundred or so images as the model will see them: the ranges
            of all maps are taken from them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs = iter(inputs)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    properties = {x.key: x.value for x in onnx.load(str(path)).metadata_props}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared = str(Path(folder) / path.name)
        # Folds batch norms and paddings into convolutions.
        quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        quantize_static(
            prepared,
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(MAP_OPERATORS),
            nodes_to_quantize=map_nodes(onnx.load(prepared).graph),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # of the weights
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))


def map_nodes(graph: "onnx.GraphProto") -> list[str]:
    """Names of the nodes to quantise: convolutions, and what runs on nothing but their maps."""
    constants = {x.name for x in graph.initializer} | {""}
    constants |= {x.output[0] for x in graph.node if x.op_type == "Constant"}
    maps: set[str] = set()
    names = []
    for node in graph.node:  # in the order of computation
        if node.op_type == "Conv":
            chosen = not any(layer in node.input[1] for layer in FLOAT_LAYERS)
        else:
            # Sizes of a Resize are computed, and neither maps nor constants.
            read = node.input[:1] if node.op_type == "Resize" else node.input
            rest = [x for x in read if x not in constants]
            chosen = bool(rest) and maps.issuperset(rest)
        if chosen and node.op_type in MAP_OPERATORS:
            maps.add(node.output[0])
            names.append(node.name)
    return names

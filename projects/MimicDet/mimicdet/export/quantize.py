"""
INT8 for ONNX files: ONNX Runtime's static quantisation of the convolutions on maps.

Backbone, pyramid, the refinement module's hidden layer and the S-head's alignment layers compute in
8 bits, weights in 7 with a scale for each channel: without VNNI, ONNX Runtime adds pairs of
products in 16 bits, which hold 2 x 255 x 64 but not 2 x 255 x 127. Depthwise convolutions, which it
adds in 32 bits everywhere, have weights of 8. What rounding a convolution's weight does to the mean
of its map is taken off the bias. The first convolutions, which all others
amplify, the layers that give objectness and boxes, the rest of the S-head, decoding and NMS stay in
float32: they are a small part of the time, and their digits count.
"""

import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:  # onnx is an extra, and other formats do without it
    import onnx

CALIBRATION_IMAGES = 100
LARGEST_WEIGHT = 64  # of 7 bits
LARGEST_DEPTHWISE_WEIGHT = 127
FLOAT_CONVOLUTIONS = 3  # the first ones stay as they are: EfficientNet-Lite's stem and first block
MAP_OPERATORS = ("Conv", "Clip", "Relu", "Add", "Resize", "MaxPool")
# A convolution with a weight of these names stays as it is.
FLOAT_LAYERS = ("objectness_logits", "anchor_deltas")


Inputs = Iterable[dict[str, np.ndarray]]  # of a graph by name, for one run after the other


def quantize(path: Path, inputs: Callable[[], Inputs]) -> None:
    """
    Quantise a float32 file of write_onnx, in its place.

    Args:
        inputs: gives a hundred or so images as the model will see them, the same each time: the
            ranges of all maps and the means of their channels are taken from them.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._inputs = iter(inputs())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self._inputs, None)

    properties = {x.key: x.value for x in onnx.load(str(path)).metadata_props}
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        prepared = str(Path(folder) / path.name)
        # Folds batch norms and paddings into convolutions.
        quant_pre_process(str(path), prepared, skip_symbolic_shape=True)
        model = onnx.load(prepared)
        nodes = map_nodes(model.graph)
        correct_biases(model, nodes, inputs())
        nodes += scale_alignments(model.graph)
        onnx.save(model, prepared)
        eight_bits = {"quant_type": QuantType.QInt8, "symmetric": True, "reduce_range": False}
        eight_bits["axis"] = 0
        quantize_static(
            prepared,
            str(path),
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*MAP_OPERATORS, "MatMul"],
            nodes_to_quantize=nodes,
            extra_options={
                "OpTypesToExcludeOutputQuantization": ["MatMul"],
                "TensorQuantOverrides": {x: [eight_bits] for x in depthwise_weights(model.graph)},
            },
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            reduce_range=True,  # of the weights
        )
    model = onnx.load(str(path))
    onnx.helper.set_model_props(model, properties)
    onnx.save(model, str(path))


def map_nodes(graph: "onnx.GraphProto") -> list[str]:
    """
    Names of the nodes to quantise: convolutions, and what runs on nothing but their maps. A sum or
    an enlarged map that no such node reads, as P2 for the S-head, stays as it is: rounding it again
    gains nothing.
    """
    constants = {x.name for x in graph.initializer} | {""}
    constants |= {x.output[0] for x in graph.node if x.op_type == "Constant"}
    maps: set[str] = set()
    chosen = []
    convolutions = 0
    for node in graph.node:  # in the order of computation
        if node.op_type == "Conv":
            convolutions += 1
            is_output = any(layer in node.input[1] for layer in FLOAT_LAYERS)
            on_maps = convolutions > FLOAT_CONVOLUTIONS and not is_output
        else:
            # Sizes of a Resize are computed, and neither maps nor constants.
            read = node.input[:1] if node.op_type == "Resize" else node.input
            rest = [x for x in read if x not in constants]
            on_maps = bool(rest) and maps.issuperset(rest)
        if on_maps and node.op_type in MAP_OPERATORS:
            maps.add(node.output[0])
            chosen.append(node)
    kept, read = [], set()
    for node in reversed(chosen):
        if node.op_type not in ("Add", "Resize") or node.output[0] in read:
            kept.append(node.name)
            read.update(node.input)
    return kept[::-1]


def depthwise_weights(graph: "onnx.GraphProto") -> set[str]:
    """Names of the weights of convolutions that give each channel a kernel of its own."""
    shapes = {x.name: x.dims for x in graph.initializer}
    names = set()
    for node in graph.node:
        groups = next((x.i for x in node.attribute if x.name == "group"), 1)
        if node.op_type == "Conv" and list(shapes[node.input[1]][:2]) == [groups, 1]:
            names.add(node.input[1])
    return names


def scale_alignments(graph: "onnx.GraphProto") -> list[str]:
    """
    Let each location's sampled features enter the alignment's product with their largest magnitude
    taken out, in place: P6 and P7 have no norm, and hold numbers 50 times those of P3.

    Returns:
        names of these products.
    """
    from onnx import helper, numpy_helper

    constants = {x.name for x in graph.initializer}
    sampled: set[str] = set()
    nodes, names = [], []
    for node in graph.node:
        # Sampling is the product without a weight: shares times rows.
        is_product = node.op_type == "MatMul" and constants.isdisjoint(node.input)
        is_sampled = is_product or not sampled.isdisjoint(node.input[:1])
        if not is_sampled or is_product or node.op_type != "MatMul":
            sampled.update(node.output if is_sampled else ())
            nodes.append(node)
            continue
        features, product = node.input[0], node.output[0]
        size, largest, divisor, scaled, axis, least, small = (
            f"{node.name}_{x}"
            for x in ("size", "largest", "divisor", "scaled", "axis", "least", "small")
        )
        graph.initializer.append(numpy_helper.from_array(np.array([-1]), axis))
        graph.initializer.append(numpy_helper.from_array(np.array(1e-9, np.float32), least))
        node.input[0], node.output[0] = scaled, small
        nodes += [
            helper.make_node("Abs", [features], [size], size),
            helper.make_node("ReduceMax", [size, axis], [largest], largest),
            helper.make_node("Max", [largest, least], [divisor], divisor),
            helper.make_node("Div", [features, divisor], [scaled], scaled),
            node,
            helper.make_node("Mul", [small, divisor], [product], f"{node.name}_product"),
        ]
        names.append(node.name)
    graph.ClearField("node")
    graph.node.extend(nodes)
    return names


def correct_biases(model: "onnx.ModelProto", names: Sequence[str], inputs: Inputs) -> None:
    """
    Take off the biases what rounding the weights adds to the means of the maps, in place.

    Weights that are off by d answer to inputs x with d * x too much. Its mean is d, summed over the
    kernel, times the mean of x over images and locations (bias correction of Nagel et al. 2019,
    arXiv:1906.04721, with means of images instead of those that batch norms expect). Padding is
    left out of the mean. Convolutions that share a bias get one each: their maps differ.

    Args:
        names: of the nodes to be quantised; those that are no convolutions are passed over.
    """
    from onnx import numpy_helper

    graph = model.graph
    nodes = [x for x in graph.node if x.op_type == "Conv" and x.name in names]
    means = channel_means(model, sorted({x.input[0] for x in nodes}), inputs)
    constants = {x.name: x for x in graph.initializer}
    depthwise = depthwise_weights(graph)
    for node in nodes:
        # (O, I/G, h, w)
        weight = numpy_helper.to_array(constants[node.input[1]]).astype(np.float64)
        highest = LARGEST_DEPTHWISE_WEIGHT if node.input[1] in depthwise else LARGEST_WEIGHT
        change = (rounded(weight, highest) - weight).sum(axis=(2, 3))
        groups = means[node.input[0]].reshape(-1, weight.shape[1])  # (G, I/G)
        shift = (change * groups.repeat(len(weight) // len(groups), axis=0)).sum(axis=1)
        old = numpy_helper.to_array(constants[node.input[2]]) if len(node.input) > 2 else 0.0
        name = f"{node.name}_corrected_bias"
        graph.initializer.append(numpy_helper.from_array((old - shift).astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)


def rounded(weight: np.ndarray, highest: int) -> np.ndarray:
    """(O, I, h, w) weights as whole numbers up to `highest` times one scale for each of O."""
    largest = np.abs(weight).max(axis=(1, 2, 3), keepdims=True)
    scale = np.where(largest > 0, largest, 1) / highest
    return np.round(weight / scale) * scale


def channel_means(
    model: "onnx.ModelProto", names: Sequence[str], inputs: Inputs
) -> dict[str, np.ndarray]:
    """(C,) means over images and locations of the (N, C, H, W) maps of these names."""
    import onnx
    from onnxruntime import InferenceSession, SessionOptions

    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    for name in names:
        mean = f"{name}_mean"
        probe.graph.node.append(onnx.helper.make_node("GlobalAveragePool", [name], [mean]))
        info = onnx.helper.make_tensor_value_info(mean, onnx.TensorProto.FLOAT, None)
        probe.graph.output.append(info)
    options = SessionOptions()
    options.log_severity_level = 3  # else it warns of what the means do not need
    session = InferenceSession(probe.SerializeToString(), options, ["CPUExecutionProvider"])
    runs = [[x.mean(axis=(0, 2, 3)) for x in session.run(None, feed)] for feed in inputs]
    return dict(zip(names, (np.mean(x, axis=0) for x in zip(*runs))))

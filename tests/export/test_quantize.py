"""Files of 8 bits: what is quantised, that they detect, and what is refused."""

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper, parser

from mimicdet.export import ExportOptions, load_exported, quantize, writer
from mimicdet.export.metadata import read_metadata
from mimicdet.export.quantize import map_nodes, scale_alignments
from mimicdet.export.verify import sample_images, to_batch
from mimicdet.utils.errors import UserError
from tests.export.conftest import eager
from tests.helpers import small_cfg

GRAPH = """
net (float[1, 3, 8, 8] images, int64[4] sizes) => (float[1, 3, 8, 8] out, float[1, 64] late) {
    shift = Constant <value = float {1.0}> ()
    moved = Sub (images, shift)
    [stem] x = Conv (moved, stem_weight)
    [early] y = Relu (x)
    [second] z = Conv (y, second_weight)
    [third] w = Conv (z, third_weight)
    [fourth] a = Conv (w, fourth_weight)
    [act] b = Relu (a)
    [up] c = Resize <mode = "nearest"> (b, , , sizes)
    [sum] d = Add (b, c)
    [fifth] e = Conv (d, fifth_weight)
    [head] f = Conv (e, p_objectness_logits_weight)
    [decode] g = Add (f, f)
    [finest_up] h = Resize <mode = "nearest"> (d, , , sizes)
    [finest] i = Add (e, h)
    [mixed] out = Add (i, images)
    flat = Flatten (i)
    [late] late = Relu (flat)
}
"""


def test_what_is_quantised():
    """
    Convolutions and what reads nothing but their maps; not the first three, no output layer, and no
    sum or enlarged map that only float layers read.
    """
    assert map_nodes(parser.parse_graph(GRAPH)) == ["fourth", "act", "up", "sum", "fifth"]


SAMPLED = """
<ir_version: 9, opset_import: ["" : 20]>
net (float[5, 4, 2] rows, float[5, 1, 2] points) => (float[5, 4] x, float[5, 4] out)
<float[2, 4] micro_weight = {1, 0, 2, 0, 0, 1, 0, 3}, int64[2] shape = {5, 2},
 float[2, 4] alignment_weight = {1, 2, 3, 4, 5, 6, 7, 8},
 float[4, 4] feature_weight = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1}>
{
    [micro] shares = MatMul (points, micro_weight)
    bins = MatMul (shares, rows)
    flat = Reshape (bins, shape)
    [aligned] x = MatMul (flat, alignment_weight)
    feature = Relu (x)
    [late] out = MatMul (feature, feature_weight)
}
"""


def test_alignments_alone_get_features_of_one_magnitude():
    """The numbers stay; what enters the product has magnitude 1 at each location, or is 0."""
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(5, 4, 2)).astype(np.float32)
    rows[2:] *= 50
    points = np.array([[-0.9, 0.0], [0.9, 0.2], [0.1, 0.1], [0.0, 0.0], [-0.2, 0.9]], np.float32)
    feed = {"rows": rows, "points": points[:, None]}
    model = parser.parse_model(SAMPLED)
    expected = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    assert scale_alignments(model.graph) == ["aligned"]
    inputs = {x.name: x.input[0] for x in model.graph.node}
    scaled = onnx.helper.make_tensor_value_info(inputs["aligned"], onnx.TensorProto.FLOAT, [5, 2])
    model.graph.output.append(scaled)
    onnx.checker.check_model(model)
    *actual, scaled = onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)
    for x, y in zip(actual, expected):
        np.testing.assert_allclose(x, y, rtol=1e-5)
    np.testing.assert_allclose(np.abs(scaled).max(axis=1), [1, 1, 1, 0, 1])


CHAIN = """
<ir_version: 9, opset_import: ["" : 18]>
net (float[N, 4, H, W] images) => (float[N, 6, H, W] first, float[N, 6, H, W] second) {
    [grouped] a = Conv <group = 2> (images, grouped_weight)
    [depthwise] b = Conv <group = 4> (a, depthwise_weight)
    [one] first = Conv (b, shared_weight, shared_bias)
    [two] second = Conv (images, shared_weight, shared_bias)
}
"""
SHAPES = {"grouped_weight": (4, 2, 3, 3), "depthwise_weight": (4, 1, 3, 3)}
SHAPES |= {"shared_weight": (6, 4, 1, 1), "shared_bias": (6,)}


def chain():
    rng = np.random.default_rng(0)
    model = parser.parse_model(CHAIN)
    for name, shape in SHAPES.items():
        value = rng.normal(size=shape).astype(np.float32)
        model.graph.initializer.append(numpy_helper.from_array(value, name))
    return model


def test_depthwise_weights_have_eight_bits(monkeypatch, tmp_path):
    """They add up in 32 bits on any CPU; the others have seven."""
    monkeypatch.setattr(quantize, "FLOAT_CONVOLUTIONS", 0)
    path = tmp_path / "model.onnx"
    onnx.save(chain(), path)
    rng = np.random.default_rng(0)
    images = rng.normal(size=(3, 1, 4, 16, 16)).astype(np.float32)
    quantize.quantize(path, lambda: ({"images": x} for x in images))
    weights = [x for x in onnx.load(path).graph.initializer if x.data_type == x.INT8]
    largest = {
        x.name.removesuffix("_quantized"): abs(numpy_helper.to_array(x).astype(int)).max()
        for x in weights
        if len(x.dims) == 4
    }
    assert largest == {"grouped_weight": 64, "depthwise_weight": 127, "shared_weight": 64}


def test_bias_correction_keeps_the_means(monkeypatch):
    """Rounded weights with corrected biases give channels the float model's mean."""
    monkeypatch.setattr(quantize, "LARGEST_WEIGHT", 3)  # coarse, so that it shows
    monkeypatch.setattr(quantize, "LARGEST_DEPTHWISE_WEIGHT", 2)
    rng = np.random.default_rng(0)
    model = chain()
    # Of one colour each: the means over what a kernel sees and over the image are the same.
    colours = rng.uniform(0, 2, (3, 1, 4, 1, 1)).astype(np.float32)
    feeds = [{"images": np.tile(x, (8, 8))} for x in colours]

    def means(with_correction, with_rounding):
        changed = onnx.ModelProto()
        changed.CopyFrom(model)
        if with_correction:
            quantize.correct_biases(changed, ["grouped", "depthwise", "one", "two"], feeds)
        if with_rounding:
            for x in changed.graph.initializer:
                if x.name.endswith("_weight"):
                    value = quantize.rounded(
                        numpy_helper.to_array(x), 2 if x.name == "depthwise_weight" else 3
                    ).astype(np.float32)
                    x.CopyFrom(numpy_helper.from_array(value, x.name))
        session = onnxruntime.InferenceSession(changed.SerializeToString())
        runs = [np.concatenate([y.mean((0, 2, 3)) for y in session.run(None, x)]) for x in feeds]
        return np.mean(runs, axis=0)

    expected = means(False, False)
    assert (abs(means(False, True) - expected) > 0.02).sum() > 6  # of 12, in both maps
    np.testing.assert_allclose(means(True, True), expected, atol=1e-5)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for i, image in enumerate(sample_images("", "BGR")[:4]):
        cv2.imwrite(str(folder / f"{i}.png"), image)
    return folder


def test_int8(student, exported, capfd, pictures, monkeypatch):
    # Random heads make much of small differences: that the two agree is for trained models.
    monkeypatch.setattr(writer, "verify", lambda run, model, images, metadata: len(images))
    arguments = ("onnx", "--precision", "int8", "--sample-images", str(pictures))
    path, printed = exported(*arguments, capture=capfd)
    assert read_metadata(path, "onnx") == printed and printed["precision"] == "int8"
    graph = onnx.load(path).graph
    types = {x.name: x.data_type for x in graph.initializer}
    kept = [n for n in types if "anchor_deltas.weight" in n or "objectness_logits.weight" in n]
    assert kept and all(types[n] == onnx.TensorProto.FLOAT for n in kept)
    first = [x.input[1] for x in graph.node if x.op_type == "Conv"][:4]
    assert [types.get(name) for name in first] == 3 * [onnx.TensorProto.FLOAT] + [None]
    assert sum(t == onnx.TensorProto.INT8 and "weight" in n for n, t in types.items()) > 20
    assert any("_corrected_bias" in name for name in types)
    producers = {x.output[0]: x.op_type for x in graph.node}
    rounded = {x.input[0] for x in graph.node if x.op_type == "QuantizeLinear"}
    products = [x for x in graph.node if x.op_type == "MatMul"]
    read = [{producers.get(name) for name in x.input} for x in products]
    assert read.count({"DequantizeLinear"}) == 2  # of 3x3 points on P3, 5x5 on the other levels
    assert not any("DequantizeLinear" in x for x in read if x != {"DequantizeLinear"})
    assert rounded.isdisjoint(x.output[0] for x in products)
    weights = [onnx.numpy_helper.to_array(x) for x in graph.initializer if x.data_type == x.INT8]
    largest = max(abs(x.astype(int)).max() for x in weights if x.ndim == 4)
    assert largest == 64  # 2 x 255 x 64 fits into 16 bits, where a CPU without VNNI adds in them
    scales = [x for x in graph.initializer if x.name.endswith("conv.weight_scale")]
    assert scales and any(x.dims[:] == [16] for x in scales)  # one for each channel
    run = load_exported(path, "onnx")
    image = sample_images(str(pictures), "BGR")[0][:132, :180]
    boxes, _, _, count = run(*to_batch([image]))
    expected = eager(student.model, [image])[0]
    assert 0.5 * len(expected) <= int(count[0]) <= 2 * len(expected)
    distance = torch.cdist(expected.pred_boxes.tensor, torch.from_numpy(boxes[0, : count[0]]))
    assert distance.amin(dim=1).median() < 10
    float_path, _ = exported("onnx", capture=capfd)
    assert path.stat().st_size < 0.4 * float_path.stat().st_size


def test_other_formats_are_refused():
    with pytest.raises(UserError, match="--precision int8 is written as onnx alone"):
        ExportOptions("torchscript", "int8")


def test_calibration_takes_the_training_set_evenly(monkeypatch):
    cfg = small_cfg("DATASETS.TRAIN", ("mimicdet_shapes_train",), "DATASETS.TEST", ())
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 0
    files = []
    monkeypatch.setattr(writer, "read_image", lambda name, format: files.append(name))
    monkeypatch.setattr(
        writer, "load_records", lambda name: [{"file_name": i} for i in range(1000)]
    )
    writer.calibration_images(cfg)
    assert len(files) == 100 and files[0] == 0 and files[-1] == 999
    with pytest.raises(UserError, match="needs DATASETS.TRAIN or --sample-images"):
        writer.calibration_images(small_cfg("DATASETS.TRAIN", ()))

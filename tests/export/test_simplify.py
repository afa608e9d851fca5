"""Graphs rewritten: the same numbers, without the enlarged map, and what is left alone."""

import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import parser
from onnxscript import ir

from mimicdet.export import formats
from mimicdet.export.simplify import simplify
from tests.export.conftest import assert_runs_alike, decided_model, noise
from tests.export.test_detector import FINER

GRAPH = """
<ir_version: 9, opset_import: ["" : 18]>
net (float[N, 3, %(height)s, 2*w] fine, float[N, %(channels)s, h, w] coarse, int64[4] sizes)
    => (float[%(rows)s] rows%(output)s)
<int64[%(rank)d] shape = {%(shape)s}, float[N, 3, %(height)s, 2*w] large,
 float[N, 3, %(height)s, 2*w] sum>
{
    large = Resize <mode = "nearest", coordinate_transformation_mode = "asymmetric",
                    nearest_mode = "%(nearest)s"> (coarse, , , sizes)
    sum = Add (fine, large)
    last = Transpose <perm = [0, 2, 3, 1]> (sum)
    rows = Reshape (last, shape)
}
"""


PLAIN = {"height": "2*h", "channels": "3", "nearest": "floor", "output": ""}
PLAIN |= {"shape": "0, -1, 3", "rows": "N, M, 3"}


def graph(**changed):
    names = PLAIN | changed
    text = GRAPH % {**names, "rank": names["rows"].count(",") + 1}
    # The parser knows no expressions.
    model = parser.parse_model(re.sub(r"(\d)\*(\w)", r"times\1\2", text))
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param.startswith("times"):
                dim.dim_param = "*".join(dim.dim_param[-2:])
    return model


def run(model, **feed):
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, feed)


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("shape, rows", [("0, -1, 3", "N, M, 3"), ("-1, 3", "M, 3")])
def test_rows_of_a_sum_with_a_smaller_map(swapped, shape, rows):
    model = graph(shape=shape, rows=rows)
    if swapped:
        total = next(x for x in model.graph.node if x.op_type == "Add")
        total.input[:] = total.input[::-1]
    simple = ir.from_proto(model)
    simplify(simple, int8=True)
    simple = ir.to_proto(simple)
    onnx.checker.check_model(simple)
    assert "Resize" not in {x.op_type for x in simple.graph.node}
    rng = np.random.default_rng(0)
    for size in ((2, 3, 4, 5), (1, 3, 1, 2)):
        coarse = rng.normal(size=size).astype(np.float32)
        sizes = np.array(size) * (1, 1, 2, 2)
        feed = {"fine": rng.normal(size=sizes).astype(np.float32), "coarse": coarse, "sizes": sizes}
        np.testing.assert_array_equal(*(run(x, **feed)[0] for x in (simple, model)))


@pytest.mark.parametrize(
    "changed", [{"height": "3*h"}, {"height": "k"}, {"channels": "1"}, {"nearest": "ceil"}]
)
@pytest.mark.parametrize("int8", [False, True])
def test_another_size_is_left_alone(changed, int8):
    simple = ir.from_proto(graph(**changed))
    simplify(simple, int8)
    assert [x.op_type for x in simple.graph] == ["Resize", "Add", "Transpose", "Reshape"]
    assert simple.graph[0].inputs[3].name == "sizes"


@pytest.mark.parametrize(
    "changed, int8",
    [
        ({"shape": "0, -1, 3", "rows": "N, M, C"}, True),
        ({"shape": "0, 3, -1", "rows": "N, 3, M"}, True),
        ({"output": ", float[N, 3, 2*h, 2*w] sum"}, True),  # the map itself is read too
        ({}, False),
    ],
)
def test_another_sum_enlarges_by_a_factor(changed, int8):
    model = graph(**changed)
    simple = ir.from_proto(model)
    simplify(simple, int8)
    simple = ir.to_proto(simple)
    onnx.checker.check_model(simple)
    node = next(x for x in simple.graph.node if x.op_type == "Resize")
    assert len(node.input) == 3
    size = np.array([2, 3, 4, 5])
    maps = {"fine": size * (1, 1, 2, 2), "coarse": size}
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=x).astype(np.float32) for name, x in maps.items()}
    feed["sizes"] = maps["fine"]
    for actual, expected in zip(run(simple, **feed), run(model, **feed)):
        np.testing.assert_array_equal(actual, expected)


@pytest.mark.parametrize("fixed_size", [None, (160, 192)])
def test_a_student_of_finer_maps(tmp_path, fixed_size):
    """In a file to be quantised, P3 is not enlarged for a plain P2, at any size of image."""
    model = decided_model(*FINER, "MODEL.MIMICDET.FPN.PLAIN_LEVELS", ["p2"])
    metadata = {"opset": 18, "includes_resize": False, "fixed_size": fixed_size}
    path = tmp_path / "model.onnx"
    images = [noise(160, 192, 1)] if fixed_size else [noise(90, 120, 1), noise(131, 75, 3)]
    for precision, count in (("float32", 3), ("int8", 2)):  # P5 to P4, P4 to P3; and P3 to P2
        own = {"precision": precision, "mimicdet_version": "test"}
        formats.write_onnx(model, path, metadata | own)
        enlarged = [x for x in onnx.load(path).graph.node if x.op_type == "Resize"]
        assert [len(x.input) for x in enlarged] == count * [3]  # no sizes, the fourth
        assert_runs_alike(formats.load_exported(path, "onnx"), model, images)

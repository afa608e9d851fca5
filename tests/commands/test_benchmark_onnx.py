"""tools/benchmark.py --onnx: files of any detector side by side."""

import numpy as np
import onnx
import pytest
import torch
from onnx import parser

from mimicdet import model_zoo
from mimicdet.commands.benchmark import onnx_files
from mimicdet.commands.benchmark.cli import main
from mimicdet.commands.benchmark.detectors import open_session
from tests.helpers import small_cfg

HEADER = '<ir_version: 8, opset_import: ["" : 18]>'


@pytest.fixture
def files(tmp_path):
    """One like MimicDet's, of any size, and one like a peer's, of 64 pixels."""
    ours = "(float[1, 3, H, W] images, int64[N, 2] image_sizes) => (float[1, 3, H, W] a) "
    ours += "{ s = Cast <to = 1> (image_sizes) b = ReduceMax (s) a = Div (images, b) }"
    peer = "(float[1, 3, 64, 64] x) => (float[1, 3, 64, 64] y) { y = Relu (x) }"
    for name, graph in (("ours", ours), ("peer", peer)):
        onnx.save(parser.parse_model(f"{HEADER} {name} {graph}"), str(tmp_path / f"{name}.onnx"))
    return [str(tmp_path / "peer.onnx"), str(tmp_path / "ours.onnx")]


def test_files_are_timed_side_by_side(files, capsys):
    assert main(["--onnx", *files, "--sizes", "64", "96", "--repeats", "3"]) == 0
    rows = [x.split(" | ") for x in capsys.readouterr().out.splitlines()[2:]]
    assert [(x[0].strip("| "), x[1], x[2]) for x in rows] == [
        *[("64", "1", "peer"), ("64", "1", "ours"), ("96", "1", "ours")],
        *[("64", "2", "peer"), ("64", "2", "ours"), ("96", "2", "ours")],
    ]
    assert all(float(x[3]) >= 0 for x in rows) and rows[0][5] == "1.00"


def test_each_file_gets_pixels_as_it_expects_them(files):
    pixels = np.full((1, 3, 64, 64), 255, np.float32)
    peer, ours = (onnx_files._feed(x, open_session(x, 1), pixels) for x in files)
    assert peer.keys() == {"x"} and peer["x"].max() == 1
    assert ours["images"].max() == 255 and ours["image_sizes"].tolist() == [[64, 64]]


def test_a_config_is_exported_and_timed_beside_them(files, monkeypatch, capsys):
    cfg = small_cfg()
    monkeypatch.setattr(model_zoo, "get_config", lambda name: cfg)
    asked: list[tuple[int, int, tuple[int, int] | None]] = []
    export = onnx_files.onnx_bytes

    def onnx_bytes(model, fixed_size=None):
        with torch.no_grad():
            found = model(onnx_files.make_inputs((64, 64), 1, 5))[0]["instances"]
        asked.append((model.num_classes, len(found), fixed_size))
        return export(model, fixed_size)

    monkeypatch.setattr(onnx_files, "onnx_bytes", onnx_bytes)
    settings = ["--sizes", "64", "--classes", "5", "--nms-boxes", "60", "--repeats", "2"]
    assert main(["--onnx", files[0], "Light/small.yaml", *settings]) == 0
    rows = [x.split(" | ") for x in capsys.readouterr().out.splitlines()[2:]]
    assert [(x[1], x[2]) for x in rows] == [
        *[("1", "peer"), ("1", "small"), ("2", "peer"), ("2", "small")]
    ]
    assert len(asked) == 1 and asked[0][0] == 5 and asked[0][1] > 0 and asked[0][2] == (64, 64)
    assert main(["--onnx", "Light/small.yaml", *settings, "--sizes", "64", "96"]) == 0
    assert len(asked) == 2 and asked[1][2] is None


def test_files_that_cannot_be_timed(files, tmp_path, capsys):
    assert main(["--onnx", str(tmp_path / "none.onnx")]) == 2
    assert "there is no file" in capsys.readouterr().err
    graph = "(float[1, 3] x) => (float[1, 3] y) { y = Relu (x) }"
    onnx.save(parser.parse_model(f"{HEADER} flat {graph}"), str(tmp_path / "flat.onnx"))
    assert main(["--onnx", str(tmp_path / "flat.onnx")]) == 2
    assert "does not take one image" in capsys.readouterr().err
    assert main(["--onnx", "Light/mimicdet_lite0_321px.yaml"]) == 2
    assert "mimicdet_lite0_320px" in capsys.readouterr().err
    assert main(["--onnx", "Distillation/bccd/retinanet_light_bccd.yaml"]) == 2
    assert "is no MimicDet, but RetinaNet" in capsys.readouterr().err

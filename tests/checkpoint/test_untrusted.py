"""Weights that come from anywhere run nothing, and addresses on the web come with a SHA-256."""

import functools
import http.server
import io
import os
import pickle
import struct
import subprocess
import threading
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from mimicdet.checkpoint import MimicCheckpointer, load_weights, registry
from mimicdet.checkpoint.pickles import load_arrays
from mimicdet.checkpoint.student import extract_student, load_deployed_cfg
from mimicdet.commands import export_model
from mimicdet.commands.train import load_for_evaluation
from mimicdet.engine.predictor import Predictor
from mimicdet.model_zoo.convert import convert_backbone
from mimicdet.utils.errors import UserError
from tests.helpers import small_cfg


class Calls:
    """Pickled as a call of `function`."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


class Sets:
    """Pickled as an object that is made by one call, and whose state by another."""

    def __init__(self, state):
        self.state = state

    def __reduce__(self):
        return OrderedDict, (), self.state


def torch_bytes(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def payloads(marker):
    """Name -> pickle that makes the file `marker` where it is read by pickle.load."""
    command = f"touch {marker}"
    system = Calls(os.system, command)
    text = command.encode()
    code = f"open({str(marker)!r}, 'w')"
    arrays = {"model": {"x": np.zeros(2, np.float32), "y": system}, "__author__": "Detectron2"}
    objects = np.empty(1, object)
    objects[0] = system
    pickled = {
        "os.system": system,
        "subprocess": Calls(subprocess.call, ["touch", str(marker)]),
        "eval": Calls(eval, code),
        "exec": Calls(exec, code),
        "open": Calls(open, str(marker), "w"),
        "partial": Calls(functools.partial(os.system, command)),
        "a call whose argument is a call": Calls(list, Calls(iter, [system])),
        "among arrays": arrays,
        "in an array of objects": {"blobs": {"x": objects}},
        "a key": {Calls(functools.partial(os.system, command)): 1},
        "a state": Sets({"x": system}),
        "torch inside": Calls(torch.storage._load_from_bytes, torch_bytes(system)),
        "pickle inside": Calls(pickle.loads, pickle.dumps(system)),
    }
    result = {f"{name}, protocol 2": pickle.dumps(x, 2) for name, x in pickled.items()}
    result |= {f"{name}, protocol 4": pickle.dumps(x, 4) for name, x in pickled.items()}
    result |= {f"{name}, protocol 5": pickle.dumps(x, 5) for name, x in pickled.items()}
    result |= {
        "GLOBAL": b"cos\nsystem\n(V" + text + b"\ntR.",
        "INST": b"(V" + text + b"\nios\nsystem\n.",
        "OBJ": b"(cos\nsystem\nV" + text + b"\no.",
        "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(V" + text + b"\ntR.",
        "dotted name": b"\x80\x04\x8c\x05posix\x8c\x06system\x93(V" + text + b"\ntR.",
        "before the end": b"cos\nsystem\n(V" + text + b"\ntR0}.",
    }
    return result


NAMES = sorted(payloads("x"))


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "executed"


@pytest.mark.parametrize("name", NAMES)
def test_a_payload_is_one(name, marker):
    """That the tests below would see it run."""
    pickle.loads(payloads(marker)[name])
    assert marker.exists()


def linear():
    return MimicCheckpointer(nn.Linear(2, 2))


def resume(path):
    (path.parent / "last_checkpoint").write_text(path.name)
    MimicCheckpointer(nn.Linear(2, 2), str(path.parent)).resume_or_load("")


WAYS = {
    "weights": lambda path: linear().load(str(path)),
    "file://": lambda path: linear().load(f"file://{path}"),
    "query": lambda path: linear().load(f"{path}?matching_heuristics=True"),
    "file:// and query": lambda path: linear().load(f"file://{path}?matching_heuristics=True"),
    "evaluation, teacher": lambda path: load_weights(nn.Linear(2, 2), str(path)),
    "last_checkpoint": resume,
    "state dict": lambda path: registry.read_state_dict(str(path)),
    "backbone": lambda path: convert_backbone(str(path), path.with_name("out.pkl")),
}


def written(folder, payload, kind):
    """The payload as a file: as it is, or as the pickle inside torch's archive."""
    if kind == "archive":
        path, good = folder / "weights.pth", io.BytesIO(torch_bytes({"x": torch.zeros(2)}))
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(path, "w") as target:
            for item in source.namelist():
                is_pickle = item.endswith("data.pkl")
                target.writestr(item, payload if is_pickle else source.read(item))
        return path
    path = folder / f"weights{kind}"
    path.write_bytes(payload)
    return path


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", [".pkl", ".pyth", ".pth", "archive"])
def test_nothing_runs(way, kind, marker, tmp_path):
    count = 0
    for payload in payloads(marker).values():
        path = written(tmp_path, payload, kind)
        with pytest.raises(UserError, match="weights"):
            WAYS[way](path)
        assert not marker.exists()
        count += 1
    assert count >= 40


@pytest.mark.parametrize("kind", [".pkl", ".pth", "archive"])
def test_nothing_runs_in_the_commands(kind, marker, tmp_path, capsys):
    path = written(tmp_path, payloads(marker)["os.system, protocol 2"], kind)
    config, opts = tmp_path / "x.yaml", ["MODEL.WEIGHTS", str(path)]
    sets = ["DATASETS.TRAIN", ("mimicdet_shapes_train",), "DATASETS.TEST", ()]
    config.write_text(small_cfg("MODEL.ROI_HEADS.NUM_CLASSES", 5, *sets).dump())
    cfg = small_cfg(*opts, "DATASETS.TEST", ("mimicdet_shapes_val",))
    output = str(tmp_path / "student.pth")
    for call in (
        lambda: load_for_evaluation(cfg),
        lambda: Predictor(cfg),
        lambda: extract_student(cfg, ["a"], str(path), output),
        lambda: load_weights(
            nn.Linear(2, 2), load_deployed_cfg(str(config), opts)[0].MODEL.WEIGHTS
        ),
    ):
        with pytest.raises(UserError, match=f"{path.name} is no"):
            call()
        assert not marker.exists()
    arguments = ["--config-file", str(config), "--output", str(tmp_path / "x.onnx"), *opts]
    assert export_model.main(arguments) == 2 and not marker.exists()
    assert f"{path.name} is no" in capsys.readouterr().err


def test_the_class_is_named(tmp_path):
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps({"model": Calls(os.system, "true")}))
    with pytest.raises(UserError, match=r"x\.pkl .*it asks for posix\.system: only arrays are"):
        linear().load(str(path))


ARRAYS = {
    "float": np.arange(6, dtype=np.float32).reshape(2, 3),
    "order": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    "big endian": np.arange(3, dtype=">f4"),
    "half": np.arange(3, dtype=np.float16),
    "integer": np.array(7),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 4), np.float32),
    "view": np.arange(10)[::2],
}


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_are_read_as_pickle_reads_them(protocol, tmp_path):
    content = OrderedDict(ARRAYS | {"scalar": np.float32(2.5), "text": "x", "more": {"again": 1}})
    content["more"]["array"] = content["same"] = content["float"]
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(content, protocol))
    found = load_arrays(str(path))
    assert list(found) == list(content) and found["text"] == "x" and found["more"]["again"] == 1
    assert found["same"] is not None and found["scalar"] == np.float32(2.5)
    for name, expected in (*ARRAYS.items(), ("same", content["same"])):
        np.testing.assert_array_equal(found[name], expected)
        assert found[name].dtype == expected.dtype.newbyteorder("=")
        torch.from_numpy(found[name])
    np.testing.assert_array_equal(found["more"]["array"], ARRAYS["float"])


def python2_pickle(array):
    """What Python 2 wrote: bytes as str, which is read as latin1."""
    raw, code = array.tobytes(), array.dtype.str[1:].encode()
    shape = b"".join(b"K" + bytes([x]) for x in array.shape)
    return (
        b"\x80\x02}U\x06conv_wcnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b"
        + b"\x87R(K\x01(" + shape + b"tcnumpy\ndtype\nU" + bytes([len(code)]) + code
        + b"K\x00K\x01\x87R(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", len(raw)) + raw + b"tbs."
    )  # fmt: skip


def test_files_of_python_2(tmp_path):
    path, array = tmp_path / "R-50.pkl", np.random.rand(2, 3).astype(np.float32)
    path.write_bytes(python2_pickle(array))
    found = load_arrays(str(path))
    assert np.array_equal(found["conv_w"], array)
    assert np.array_equal(pickle.loads(path.read_bytes(), encoding="latin1")["conv_w"], array)


@pytest.mark.parametrize(
    "array", [np.array(["a"]), np.zeros(2, "V8"), np.zeros(2, [("a", "f4")]), np.array([None])]
)
def test_arrays_of_other_things_are_refused(array, tmp_path):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"x": array}))
    with pytest.raises(UserError, match=r"x\.pkl .* not of numbers"):
        linear().load(str(tmp_path / "x.pkl"))


@pytest.mark.parametrize("form", ["Detectron2", "Caffe2", "blobs", "pycls"])
def test_the_model_zoos_files_are_read(form, tmp_path):
    weight, bias = np.eye(2, dtype=np.float32), np.ones(2, np.float32)
    names = {"Detectron2": ("weight", "bias")}.get(form, ("layer.weight", "layer.bias"))
    model = dict(zip(names, (weight, bias)))
    content = {
        "Detectron2": {"model": model, "__author__": "someone"},
        "Caffe2": model | {"layer.weight_momentum": weight},
        "blobs": {"blobs": model | {"layer.weight_momentum": weight}, "cfg": "text"},
        "pycls": {"model_state": {key: torch.from_numpy(x) for key, x in model.items()}},
    }[form]
    path = tmp_path / ("x.pyth" if form == "pycls" else "x.pkl")
    path.write_bytes(torch_bytes(content) if form == "pycls" else pickle.dumps(content, 2))
    inner = nn.Linear(2, 2)
    model = inner if form == "Detectron2" else nn.ModuleDict({"layer": inner})
    load_weights(model, str(path))
    assert torch.equal(inner.weight, torch.eye(2)) and torch.equal(inner.bias, torch.ones(2))


@pytest.fixture
def web(tmp_path, monkeypatch):
    """(address of a checkpoint on a local server, its SHA-256, the requests that were made)."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "web").mkdir()
    path, requests = tmp_path / "web" / "x.pth", []
    torch.save({"model": nn.Linear(2, 2).state_dict()}, path)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            requests.append(self.path)

    handler = functools.partial(Handler, directory=str(path.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/x.pth"
        yield address, registry.file_sha256(path), requests
        server.shutdown()


def test_an_address_on_the_web_needs_a_sha256(web):
    address, sha256, requests = web
    for wrong in ("", "#", "#sha256=", f"#sha256={sha256[:-1]}", f"#md5={sha256}"):
        with pytest.raises(UserError, match=f"only with its SHA-256.*{address}#sha256=<64"):
            linear().load(address + wrong)
    assert not requests
    linear().load(f"{address}#sha256={sha256}")
    linear().load(f"{address}?matching_heuristics=True#sha256={sha256.upper()}")
    with pytest.raises(UserError, match=f"{address}: the copy .* the address says {'0' * 64}"):
        linear().load(f"{address}#sha256={'0' * 64}")
    with pytest.raises(UserError, match="only with its SHA-256"):
        linear().load("https://1drv.ms/u/s!x")


def test_a_published_address_needs_none(web, monkeypatch):
    address, sha256, requests = web
    entry = {"checkpoint": {"url": address, "sha256": sha256}}
    monkeypatch.setattr(registry, "read_registry", lambda: {"x": entry})
    linear().load(address)
    with pytest.raises(UserError, match="the address says"):
        linear().load(f"{address}#sha256={'0' * 64}")
    entry["checkpoint"]["sha256"] = "0" * 64
    with pytest.raises(UserError, match="the registry says"):
        linear().load(f"{address}#sha256={sha256}")


@pytest.mark.parametrize("address", ["detectron2://x/y.pkl", "catalog://x/y"])
def test_detectron2s_catalogue_needs_none(address, monkeypatch, tmp_path):
    path = tmp_path / "y.pkl"
    state = {key: x.numpy() for key, x in nn.Linear(2, 2).state_dict().items()}
    path.write_bytes(pickle.dumps({"model": state, "__author__": "x"}))
    monkeypatch.setattr(
        registry.PathManager, "get_local_path", lambda x: str(path) if x == address else x
    )
    checkpointer = linear()
    checkpointer.load(address)
    loaded = checkpointer.model.state_dict()
    assert all((loaded[key].numpy() == x).all() for key, x in state.items())

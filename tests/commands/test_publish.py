"""A finished run becomes the files and the registry entry of a published model."""

import json

import pytest
import torch
from detectron2.modeling import build_model

from mimicdet.checkpoint.registry import file_sha256
from mimicdet.checkpoint.student import read_student_metadata
from mimicdet.commands import publish as publish_module
from mimicdet.commands.publish import main
from mimicdet.config import load_config
from mimicdet.model_zoo import get_config_file
from mimicdet.model_zoo.table import BEGIN, END
from mimicdet_runtime import zoo
from tests.helpers import REPOSITORY

pytest.importorskip("onnx", reason="needs onnx to write a model")
from tests.runtime.mock_model import write_mock  # noqa: E402

NAME = "Light/mimicdet_lite0_320px_bccd.yaml"
METRICS = [
    {"iteration": 4, "bbox/AP": 1.0, "time": 6.0},
    {"iteration": 9, "total_loss": 2.0, "time": 12.0},
]
CLASSES = ["RBC", "WBC", "Platelets"]


@pytest.fixture
def run(tmp_path):
    """The output folder of a run of ten iterations on two images."""
    folder = tmp_path / "run"
    folder.mkdir()
    bccd = REPOSITORY / "data" / "bccd"
    data = json.loads((bccd / "annotations" / "instances_test.json").read_text())
    data["images"] = data["images"][:2]
    kept = {x["id"] for x in data["images"]}
    data["annotations"] = [x for x in data["annotations"] if x["image_id"] in kept]
    (tmp_path / "data.json").write_text(json.dumps(data))
    data_sets = (f"coco:{tmp_path / 'data.json'}:{bccd / 'images'}",)
    opts = ["DATASETS.TRAIN", data_sets, "DATASETS.TEST", data_sets, "SOLVER.MAX_ITER", 10]
    opts += ["MODEL.ROI_HEADS.NUM_CLASSES", 3, "OUTPUT_DIR", str(folder)]
    cfg = load_config(get_config_file(NAME), opts)
    (folder / "config.yaml").write_text(cfg.dump())
    content = {"model": build_model(cfg).state_dict(), "iteration": 9}
    torch.save(content, folder / "model_final.pth")
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, METRICS)))
    return folder


@pytest.fixture(autouse=True)
def quick_export(tmp_path, monkeypatch):
    """The export itself has its own tests; here only what it is given, as a list."""
    calls = []

    def export(cfg, class_names, output, options, config_name):
        calls.append((cfg.MODEL.WEIGHTS, class_names, options.precision, config_name))
        write_mock(output)

    monkeypatch.setattr(publish_module, "export_model", export)
    (tmp_path / "registry.json").write_text("{}")
    (tmp_path / "page.md").write_text(f"before\n{BEGIN}{END}\nafter")
    monkeypatch.setattr(zoo, "REGISTRY_FILE", tmp_path / "registry.json")
    return calls


FACTS = ("weights", "seed", "iterations", "minutes", "machine", "data", "licence")


def call(run, *arguments):
    options = {"name": "cells", "config": NAME, "data": "BCCD", "licence": "MIT"}
    options |= {"machine": "a PC", "folder": run.parent / "out", "page": run.parent / "page.md"}
    listed = [str(x) for key, value in options.items() for x in (f"--{key}", value)]
    return main([str(run), *listed, *arguments])


def test_entry_says_all_of_the_files_that_were_written(run, tmp_path, quick_export):
    assert call(run, "--base-url", "https://example.org/models/") == 0
    out = tmp_path / "out"
    ((name, entry),) = zoo.read_registry().items()
    assert name == "cells" and entry["config"] == NAME
    assert entry["command"] == (
        f"python train_net.py --config-file configs/{NAME} SOLVER.MAX_ITER 10"
    )
    facts = [entry[key] for key in FACTS]
    assert facts == ["model_final.pth", 1, 10, 1.5, "a PC", "BCCD", "MIT"]
    assert set(entry["metrics"]) == {"student", "teacher", "onnx", "onnx_int8"}
    for metrics in entry["metrics"].values():
        assert {"AP", "AP50", *(f"AP-{name}" for name in CLASSES)} <= set(metrics)
    files = {"checkpoint": "cells.safetensors", "onnx": "cells.onnx"}
    for kind, file in {**files, "onnx_int8": "cells_int8.onnx"}.items():
        address = f"https://example.org/models/{file}"
        assert entry[kind] == {"file": file, "url": address, "sha256": file_sha256(out / file)}
    student = str(out / "cells.safetensors")
    rest = (CLASSES, NAME.split("/")[1])
    assert quick_export == [(student, rest[0], x, rest[1]) for x in ("float32", "int8")]
    page = (tmp_path / "page.md").read_text()
    assert page.startswith("before\n") and page.endswith("\nafter") and "| [cells](" in page


def test_no_path_of_the_machine_is_published(run, tmp_path):
    assert call(run) == 0
    student = tmp_path / "out" / "cells.safetensors"
    metadata = read_student_metadata(str(student))
    assert metadata["class_names"] == CLASSES and "MAX_ITER: 10" in metadata["config"]
    assert "- mimicdet_bccd_test" in metadata["config"]
    for content in (student.read_bytes(), zoo.REGISTRY_FILE.read_bytes()):
        assert str(tmp_path).encode() not in content


def test_runs_that_cannot_be_published(run, tmp_path, quick_export, monkeypatch, capsys):
    def error(*arguments):
        assert call(run, *arguments) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("error: ")
        return message

    assert "'Light/none.yaml'" in error("--config", "Light/none.yaml")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("MAX_ITER: 10", "MAX_ITER: 20"))
    assert "stopped at iteration 10" in error()
    private = text.replace("NAME: tf_efficientnet_lite0", "NAME: /home/x")
    (run / "config.yaml").write_text(private)
    assert "MODEL.TIMM.NAME of the run is '/home/x'" in error()
    (run / "config.yaml").write_text(text)
    (run / "metrics.json").write_text(json.dumps({"iteration": 1, "total_loss": 1.0}))
    assert "is not of a training run" in error()
    (run / "model_final.pth").unlink()
    assert "no model_final.pth" in error()
    assert not quick_export and not (tmp_path / "out").exists()


def test_large_files_are_refused(run, monkeypatch, capsys):
    monkeypatch.setattr(publish_module, "MAX_BYTES", 1000)
    assert call(run) == 2
    assert "more than 1000" in capsys.readouterr().err
    assert zoo.read_registry() == {}

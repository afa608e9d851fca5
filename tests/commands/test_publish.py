"""A finished run becomes the files and the registry entry of a published model."""

import json

import pytest
import torch

from mimicdet.checkpoint.registry import check_registry, file_sha256
from mimicdet.checkpoint.student import read_student_metadata
from mimicdet.commands import publish as publish_module
from mimicdet.commands.publish import final_metrics, main
from tests.helpers import small_cfg, small_model

NAME = "Quickstart/mimicdet_R_18_FPN_bccd_short.yaml"
METRICS = [
    {"iteration": 4, "bbox/AP": 1.0},
    {"iteration": 9, "total_loss": 2.0},
    {"iteration": 10, "bbox/AP": 3.5, "bbox/AP50": 7.0},
]


@pytest.fixture
def run(tmp_path):
    """The output folder of a run of ten iterations."""
    folder = tmp_path / "run"
    folder.mkdir()
    torch.save({"model": small_model().state_dict()}, folder / "model_final.pth")
    data = {"images": [{"id": 1, "file_name": "1.jpg", "width": 9, "height": 9}]}
    data |= {"annotations": [], "categories": [{"id": i, "name": f"c{i}"} for i in (1, 2, 3)]}
    (tmp_path / "1.jpg").touch()
    (tmp_path / "data.json").write_text(json.dumps(data))
    train = ("DATASETS.TRAIN", (f"coco:{tmp_path / 'data.json'}",), "DATASETS.TEST", ())
    cfg = small_cfg(*train, "SOLVER.MAX_ITER", 10)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "metrics.json").write_text("\n".join(map(json.dumps, METRICS)))
    return folder


@pytest.fixture
def quick_export(monkeypatch):
    """The export itself has its own tests; here only what it is given, as a list."""
    calls = []

    def export(cfg, class_names, output, options, config_name):
        calls.append((cfg.MODEL.WEIGHTS, class_names, options.file_format, config_name))
        output.write_bytes(b"graph")

    monkeypatch.setattr(publish_module, "export_model", export)
    return calls


def call(run, folder, *arguments):
    address = ["--name", NAME, "--base-url", "https://example.org/models/"]
    return main([str(run), str(folder), *address, *arguments])


def test_entry_names_the_files_that_were_written(run, tmp_path, quick_export):
    assert call(run, tmp_path / "out") == 0
    place = tmp_path / "out" / "Quickstart" / "mimicdet_R_18_FPN_bccd_short"
    entries = check_registry(json.loads((place / "entry.json").read_text()))
    (entry,) = entries.values()
    assert list(entries) == [NAME]
    assert entry["metrics"] == {"bbox/AP": 3.5, "bbox/AP50": 7.0}
    base = "https://example.org/models/Quickstart/mimicdet_R_18_FPN_bccd_short"
    for kind, file in (("checkpoint", "student.safetensors"), ("onnx", "model.onnx")):
        assert entry[kind] == {"url": f"{base}/{file}", "sha256": file_sha256(place / file)}
    assert read_student_metadata(str(place / "student.safetensors"))["class_names"] == [
        "c1",
        "c2",
        "c3",
    ]
    assert (place / "config.yaml").read_bytes() == (run / "config.yaml").read_bytes()
    student = str(place / "student.safetensors")
    assert quick_export == [(student, ["c1", "c2", "c3"], "onnx", NAME.split("/")[1])]


def test_runs_that_cannot_be_published(run, tmp_path, quick_export, capsys):
    def error(*arguments):
        assert call(run, tmp_path / "out", *arguments) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: ") and message.count("\n") == 1
        return message

    assert "'Quickstart/none.yaml'" in error("--name", "Quickstart/none.yaml")
    (run / "metrics.json").write_text(json.dumps(METRICS[0]))
    assert "stopped at iteration 5 of 10" in error()
    (run / "metrics.json").write_text(json.dumps(METRICS[1]))
    assert "not evaluated" in error()
    (run / "model_final.pth").unlink()
    assert "no model_final.pth" in error()
    assert not quick_export and not (tmp_path / "out").exists()


def test_metrics_are_those_of_the_last_evaluation(run):
    assert final_metrics(run / "metrics.json", 10) == {"bbox/AP": 3.5, "bbox/AP50": 7.0}

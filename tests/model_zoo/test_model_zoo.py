"""The registry of published models, and downloads that are checked against it."""

import json

import pytest
import torch

from mimicdet import model_zoo
from mimicdet.checkpoint import load_weights, registry, student
from mimicdet.model_zoo.table import BEGIN, END, format_models, write_models
from mimicdet_runtime import zoo
from tests.helpers import REPOSITORY, small_model

NAME = "Quickstart/mimicdet_R_18_FPN_shapes.yaml"
LIGHT = "Light/mimicdet_lite0_320px_bccd.yaml"


def write_registry(folder, monkeypatch, entries):
    file = folder / "registry.json"
    file.write_text(json.dumps(entries))
    monkeypatch.setattr(zoo, "REGISTRY_FILE", file)


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A model of the config NAME at a file:// address: (model, its file, its address)."""
    torch.manual_seed(1)
    model = model_zoo.get(NAME, device="cpu")
    path = tmp_path / "student.pth"
    torch.save({"model": model.state_dict()}, path)
    address = f"file://{path}"
    entry = {"checkpoint": {"url": address, "sha256": registry.file_sha256(path)}, "config": NAME}
    write_registry(tmp_path, monkeypatch, {"shapes": entry})
    return model, path, address


def test_registry_that_is_shipped_is_sound_and_names_configs():
    configs = {entry["config"] for entry in zoo.read_registry().values()}
    assert configs <= set(model_zoo.list_configs())


@pytest.mark.parametrize("name", sorted(zoo.read_registry()))
def test_shipped_weights_are_of_their_config(name):
    model = model_zoo.get(name, device="cpu")
    figures = zoo.read_registry()[name]["metrics"]["student"]
    assert model.num_classes == sum(key.startswith("AP-") for key in figures)


def test_published_model_is_fetched(published):
    model, _, address = published
    assert model_zoo.list_models() == ["shapes"]
    assert model_zoo.get_checkpoint_url(NAME) == address
    assert model_zoo.get_checkpoint_url("mimicdet_R_18_FPN_shapes") == address
    assert model_zoo.get_config(NAME, trained=True).MODEL.WEIGHTS == address
    assert model_zoo.get_config("shapes").MODEL.WEIGHTS == address
    loaded = model_zoo.get(NAME, trained=True, device="cpu")
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


def test_shipped_model_needs_neither_data_nor_network(tmp_path, monkeypatch):
    torch.manual_seed(1)
    model = model_zoo.get(LIGHT, device="cpu")
    cfg = model_zoo.get_config(LIGHT)
    torch.save({"model": model.state_dict()}, tmp_path / "model_final.pth")
    path = tmp_path / "cells.safetensors"
    source = str(tmp_path / "model_final.pth")
    student.extract_student(cfg, ["a", "b", "c"], source, str(path), half=True)
    entry = {"checkpoint": {"file": path.name, "sha256": registry.file_sha256(path)}}
    write_registry(tmp_path, monkeypatch, {"cells": {**entry, "config": LIGHT}})
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(tmp_path))
    monkeypatch.setattr(student, "register_datasets", None)
    monkeypatch.setattr(model_zoo.model_zoo, "register_datasets", None)
    assert model_zoo.get_checkpoint_url("cells") == "zoo://cells"
    loaded = model_zoo.get("cells", device="cpu")
    own = {k: v for k, v in model.state_dict().items() if not k.startswith("roi_heads.")}
    for name, value in own.items():
        found = loaded.state_dict()[name]
        assert found.dtype == value.dtype
        rounded = value.half().float() if value.is_floating_point() else value
        assert torch.equal(found, rounded)
    with pytest.raises(ValueError, match="zoo:// must be one of cells, got 'cell'"):
        registry.fetch("zoo://cell")
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ValueError, match="SHA-256.*registry"):
        model_zoo.get("cells", device="cpu")


def test_changed_copy_is_refused(published):
    _, path, address = published
    content = torch.load(path, weights_only=True)
    content["model"]["student_head.box_deltas.bias"] += 1
    torch.save(content, path)
    with pytest.raises(ValueError, match="SHA-256.*registry"):
        model_zoo.get(NAME, trained=True, device="cpu")
    with pytest.raises(ValueError, match="SHA-256.*registry"):
        load_weights(small_model(), address)


def test_models_without_a_checkpoint_say_so():
    for function in (model_zoo.get_checkpoint_url, lambda x: model_zoo.get(x, trained=True)):
        with pytest.raises(RuntimeError, match="No trained checkpoint.*mimicdet_R_50_FPN_1x.yaml"):
            function("COCO-Detection/mimicdet_R_50_FPN_1x.yaml")


def test_page_shows_the_registry(tmp_path):
    page = (REPOSITORY / "MODEL_ZOO.md").read_text(encoding="utf-8")
    table = page.partition(BEGIN)[2].partition(END)[0].strip()
    assert table == format_models(zoo.read_registry())
    ap = {"AP": 41.26, "AP50": 80.0, "AP-Fish": 30.04}
    metrics = {"student": ap, "teacher": {**ap, "AP": 45.0}}
    entry = {
        "config": LIGHT,
        "command": "python x",
        "weights": "model_best.pth",
        "seed": 1,
        "iterations": 600,
        "minutes": 20.4,
        "machine": "2 CPUs",
    }
    entry |= {"metrics": metrics, "data": "Fish", "licence": "MIT"}
    copy = tmp_path / "page.md"
    copy.write_text(page, encoding="utf-8")
    write_models(copy, {"fish": entry})
    text = copy.read_text(encoding="utf-8")
    assert f"| [fish](configs/{LIGHT}) | 41.3 | 45.0 |  |  | 80.0 | 20 | Fish; MIT |" in text
    facts = "`model_best.pth` of `python x`, iteration 600, seed 1, on 2 CPUs."
    assert f"- fish: AP by class: Fish 30.0. {facts}" in text
    assert text.startswith(page.partition(BEGIN)[0]) and text.endswith(page.partition(END)[2])

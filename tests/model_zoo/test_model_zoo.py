"""The registry of published models, and downloads that are checked against it."""

import json

import pytest
import torch

from mimicdet import model_zoo
from mimicdet.checkpoint import load_weights, registry
from tests.helpers import small_model

NAME = "Quickstart/mimicdet_R_18_FPN_shapes.yaml"


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A model published as NAME at a file:// address: (model, its file, its address)."""
    torch.manual_seed(1)
    model = model_zoo.get(NAME, device="cpu")
    path = tmp_path / "student.pth"
    torch.save({"model": model.state_dict()}, path)
    address = f"file://{path}"
    entry = {"checkpoint": {"url": address, "sha256": registry.file_sha256(path)}}
    file = tmp_path / "registry.json"
    file.write_text(json.dumps({NAME: entry | {"metrics": {"bbox/AP": 1.0}}}))
    monkeypatch.setattr(registry, "REGISTRY_FILE", file)
    return model, path, address


def test_registry_that_is_shipped_is_sound_and_names_configs():
    assert set(registry.read_registry()) <= set(model_zoo.list_configs())


def test_published_model_is_fetched(published):
    model, _, address = published
    assert model_zoo.get_checkpoint_url(NAME) == address
    assert model_zoo.get_checkpoint_url("mimicdet_R_18_FPN_shapes") == address
    assert model_zoo.get_config(NAME, trained=True).MODEL.WEIGHTS == address
    loaded = model_zoo.get(NAME, trained=True, device="cpu")
    assert not loaded.training
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])


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


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "JSON object"),
        ({NAME: {}}, "shapes.yaml' has no 'checkpoint'"),
        ({NAME: {"checkpoint": {"url": "https://x"}}}, "shapes.yaml': checkpoint needs a url"),
        (
            {NAME: {"checkpoint": {"url": "u", "sha256": "0" * 64}, "onnx": {"url": "u"}}},
            "shapes.yaml': onnx needs",
        ),
    ],
)
def test_broken_entries_are_named(entries, said):
    with pytest.raises(ValueError, match=said):
        registry.check_registry(entries)

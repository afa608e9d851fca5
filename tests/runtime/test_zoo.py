"""Published models by name: where their files are found, and what is refused."""

import hashlib
import json
import shutil

import pytest

from mimicdet_runtime import server, zoo
from mimicdet_runtime.cli import main
from mimicdet_runtime.errors import UserError


@pytest.fixture
def published(model_file, tmp_path, monkeypatch):
    """The file of a model "mock", in the folder of models."""
    folder = tmp_path / "models"
    folder.mkdir()
    path = folder / "mock.onnx"
    shutil.copyfile(model_file, path)
    file = {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    entry = {"config": "a.yaml", "checkpoint": {"url": "u", "sha256": "0" * 64}, "onnx": file}
    entry["onnx_int8"] = {**file, "file": "mock_int8.onnx"}
    (tmp_path / "registry.json").write_text(json.dumps({"mock": entry}))
    monkeypatch.setattr(zoo, "REGISTRY_FILE", tmp_path / "registry.json")
    monkeypatch.setattr(zoo, "CHECKOUT_FOLDER", folder)
    monkeypatch.delenv(zoo.FOLDER_VARIABLE, raising=False)
    return path


def test_detects_by_name(published, image_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", "--model", "mock", str(image_folder)]) == 0
    by_name = (tmp_path / "detections" / "results.json").read_text()
    assert main(["detect", str(published), str(image_folder), "-o", "of_path"]) == 0
    assert by_name == (tmp_path / "of_path" / "results.json").read_text() and len(by_name) > 9
    assert main(["info", "mock"]) == 0
    capsys.readouterr()
    assert main(["detect", "mock"]) == 2
    assert capsys.readouterr().err.startswith("error: mock: nothing to detect in")


def test_web_page_serves_by_name(published, monkeypatch):
    served = []
    monkeypatch.setattr(server, "serve", lambda models, host, port: served.append(models))
    assert main(["serve", str(published), "--model", "mock"]) == 0
    assert [name for name, _ in served[0]._models.values()] == ["mock.onnx", "mock"]


def test_own_folder_comes_first(published, tmp_path, monkeypatch):
    own = tmp_path / "own"
    own.mkdir()
    monkeypatch.setenv(zoo.FOLDER_VARIABLE, str(own))
    assert zoo.find_model("mock") == published
    shutil.copyfile(published, own / "mock.onnx")
    assert zoo.find_model("mock") == own / "mock.onnx"


def test_paths_stay_paths(published, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("none.onnx", "folder/none"):
        assert str(zoo.find_model(path)) == path
    (tmp_path / "mock").touch()
    assert str(zoo.find_model("mock")) == "mock"


def test_what_cannot_be_used(published):
    with pytest.raises(UserError, match=r"mocc: no such file.*mean mock\?.*mock, mock_int8$"):
        zoo.find_model("mocc")
    missing = "mock_int8.onnx is not in .*models.*get it from.*variable MIMICDET_MODELS"
    with pytest.raises(UserError, match=missing):
        zoo.find_model("mock_int8")
    published.write_bytes(published.read_bytes() + b" ")
    with pytest.raises(UserError, match="mock.onnx has SHA-256.*registry"):
        zoo.find_model("mock")


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ([], "JSON object"),
        ({"a": {"config": "a.yaml"}}, "'a' has no 'checkpoint'"),
        ({"a": {"checkpoint": {}}}, "'a' has no 'config'"),
        ({"a": {"config": "c", "checkpoint": {"url": "u"}}}, "'a': checkpoint needs a file or"),
        (
            {"a": {"config": "c", "checkpoint": {"url": "u", "sha256": "0" * 64}, "onnx": {}}},
            "'a': onnx needs",
        ),
    ],
)
def test_broken_entries_are_named(entries, said):
    with pytest.raises(UserError, match=said):
        zoo.check_registry(entries)


def test_shipped_files_are_those_of_the_registry():
    files = [e[k] for e in zoo.read_registry().values() for k in zoo.FILE_KINDS if k in e]
    paths = [zoo.find_file(file) for file in files if "file" in file]
    assert all(path.stat().st_size <= 10_000_000 for path in paths)
    assert set(zoo.CHECKOUT_FOLDER.glob("*.*")) <= {*paths, zoo.CHECKOUT_FOLDER / "README.md"}

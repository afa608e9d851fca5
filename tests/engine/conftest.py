"""One trained tiny model for all tests of this folder; catalogs put back after each."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

# pytest's importlib mode leaves this folder off the path; spawned processes import from it too.
sys.path.insert(0, str(Path(__file__).parent))

import tiny_run


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Folder with the tiny data set, its address and its config file."""
    folder = tmp_path_factory.mktemp("tiny")
    address = tiny_run.write_coco(folder)
    config = tiny_run.write_config(folder / "tiny.yaml", address)
    return SimpleNamespace(folder=folder, address=address, config=config)


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """`train_net.py --config-file tiny.yaml` run to its end in a process of its own."""
    output = tmp_path_factory.mktemp("trained") / "output"
    process = tiny_run.start("--config-file", data.config, "OUTPUT_DIR", output)
    code, log = tiny_run.finish(process)
    assert code == 0, log[-5000:]
    yield SimpleNamespace(output=output, log=log)
    tiny_run.remove(output)


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """As fast as more for models this small, and steady beside other work on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def left_as_found(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MIMICDET_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

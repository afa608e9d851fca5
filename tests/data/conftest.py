"""Puts everything the tests write into temporary folders, and the catalogs back afterwards."""

import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

# pytest's importlib mode leaves this folder off the path, and data_folders.py is no test.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def clean_catalogs(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("MIMICDET_CACHE", str(tmp_path_factory.mktemp("cache")))
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)

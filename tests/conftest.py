"""
One thread: the tests are many small tensors, and OpenMP's threads wait for each other on a busy
machine. It has to be said before torch is imported, and holds for the processes that tests start.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture
def clean_catalogs(monkeypatch, tmp_path_factory):
    """Data sets that the test registers are gone after it; the cache is a temporary folder."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    monkeypatch.setenv("MIMICDET_CACHE", str(tmp_path_factory.mktemp("cache")))
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture(autouse=True)
def loggers_as_found():
    """What one test's run sets up must not swallow or garble the messages of the next."""
    from tests.engine.tiny_run import loggers_restored  # torch, behind the line above

    with loggers_restored():
        yield

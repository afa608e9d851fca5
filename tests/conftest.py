"""
One thread: the tests are many small tensors, and OpenMP's threads wait for each other on a busy
machine. It has to be said before torch is imported, and holds for the processes that tests start.

Where Detectron2 cannot be imported, a test file or a test that imports it, torch or what comes with
them is left out, and the summary says how many were. No list names them: the import itself does it.
"""

import importlib
import os
import sys

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


def left_out_packages():
    """Detectron2, if it cannot be imported, and those of its requirements that cannot either."""
    missing = set()
    for name in ("torch", "torchvision", "yaml", "fvcore", "detectron2._C"):
        try:
            importlib.import_module(name)
        except ImportError:
            missing.add(name.split(".")[0])
    return missing if "detectron2" in missing else set()


class LeaveOut:
    """An import finder that finds nothing: it skips the test or the file that imports a package."""

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in self.packages:
            pytest.skip(f"needs {name.split('.')[0]}", allow_module_level=True)


LEFT_OUT = left_out_packages()
if LEFT_OUT:
    # One without its compiled part is there but of no use.
    for module in [name for name in sys.modules if name.split(".")[0] in LEFT_OUT]:
        del sys.modules[module]
    sys.meta_path.insert(0, LeaveOut(LEFT_OUT))


def pytest_collectstart(collector):
    """A package whose import broke off leaves modules that the next file would take for whole."""
    if LEFT_OUT and "mimicdet" not in sys.modules:
        for module in [name for name in sys.modules if name.startswith("mimicdet.")]:
            del sys.modules[module]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """One process where tests are left out: workers report a reason once, not for every file."""
    return 0 if LEFT_OUT else None


def pytest_terminal_summary(terminalreporter):
    if not LEFT_OUT:
        return
    reasons = {f"Skipped: needs {name}" for name in LEFT_OUT}
    skipped = terminalreporter.stats.get("skipped", [])
    skipped = [x for x in skipped if isinstance(x.longrepr, tuple) and x.longrepr[2] in reasons]
    tests = sum(isinstance(x, pytest.TestReport) for x in skipped)
    paths = [terminalreporter.config.rootpath / x.nodeid for x in skipped]
    # Of a folder whose conftest.py imports one of them there is one report for all its files.
    files = sum(len([*x.rglob("test_*.py")]) if x.is_dir() else x.is_file() for x in paths)
    terminalreporter.write_line(
        f"LEFT OUT: {files} test files and {tests} tests of other files, because "
        f"Detectron2 cannot be imported here (missing: {', '.join(sorted(LEFT_OUT))})"
    )


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
    if LEFT_OUT:
        yield
        return
    from tests.engine.tiny_run import loggers_restored  # torch, behind the line above

    with loggers_restored():
        yield


@pytest.fixture
def bfloat16_cpu(monkeypatch):
    """A CPU that computes in bfloat16, or is made to emulate it."""
    monkeypatch.setattr("mimicdet.modeling.layers.precision.cpu_has_bfloat16", lambda: True)

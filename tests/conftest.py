"""
One thread: the tests are many small tensors, and OpenMP's threads wait for each other on a busy
machine. It has to be said before torch is imported, and holds for the processes that tests start.
"""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def loggers_as_found():
    """What one test's run sets up must not swallow or garble the messages of the next."""
    from tests.engine.tiny_run import loggers_restored  # torch, behind the line above

    with loggers_restored():
        yield

"""Data sets that a test registers are gone after it; what is cached goes to a temporary folder."""

import sys
from pathlib import Path

import pytest

# pytest's importlib mode leaves this folder off the path, and data_folders.py is no test.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def catalogs_cleaned(clean_catalogs):
    pass

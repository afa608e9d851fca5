"""tools/compare_runs.py: configs x seeds x data sets, paired statistics, tables and a page."""

from .cli import main

__all__ = ["main"]

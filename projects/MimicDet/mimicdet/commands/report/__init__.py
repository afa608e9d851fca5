"""One self-contained HTML page of one run or several; see tools/report.py."""

from .main import write_report

__all__ = ["write_report"]

"""One self-contained HTML page of one run or several; see tools/report.py."""

from .cli import write_report

__all__ = ["write_report"]

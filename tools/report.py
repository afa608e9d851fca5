#!/usr/bin/env python
"""One self-contained HTML page about a run, or about several side by side."""

import sys

from mimicdet.commands.report.cli import main

if __name__ == "__main__":
    sys.exit(main())

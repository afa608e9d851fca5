#!/usr/bin/env python
"""Train configs with several seeds, on several data sets; paired differences, tables and a page."""

import sys

from mimicdet.commands.compare_runs import main

if __name__ == "__main__":
    sys.exit(main())

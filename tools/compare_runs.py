#!/usr/bin/env python
"""Train configs with several seeds each and tabulate AP, mean and spread."""

import sys

from mimicdet.commands.compare_runs import main

if __name__ == "__main__":
    sys.exit(main())

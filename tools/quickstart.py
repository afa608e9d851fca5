#!/usr/bin/env python
"""Make the embedded data, train on it, evaluate and draw: what `make demo` runs."""

import sys

from mimicdet.commands.quickstart import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Draw where the S-head looks: adjusted anchor boxes and sampling points (the paper's Fig. 3)."""

import sys

from mimicdet.commands.visualize_sampling import main

if __name__ == "__main__":
    sys.exit(main())

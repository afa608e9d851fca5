#!/usr/bin/env python
"""Draw imitation masks, variances, differences and ranks of a student and its teacher."""

import sys

from mimicdet.visualization.distillation_tool import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""Draw imitation masks, variances, differences and ranks of a student and its teacher."""

import sys

from mimicdet.commands.visualize_distillation import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""
Turn a finished run into an entry of the model zoo:

    python tools/publish.py output/quickstart/shapes published/ \
        --name Quickstart/mimicdet_R_18_FPN_shapes.yaml --base-url https://example.org/models

See docs/export.md.
"""

import sys

from mimicdet.commands.publish import main

if __name__ == "__main__":
    sys.exit(main())

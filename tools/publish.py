#!/usr/bin/env python
"""
Turn a finished run into a model of the zoo, its files, its entry in the registry and its row in
MODEL_ZOO.md:

    python tools/publish.py output/light/bccd --name bccd \
        --config Light/mimicdet_lite0_320px_bccd.yaml --licence MIT \
        --data "BCCD (data/bccd)" --machine "2 CPU cores"

See docs/export.md.
"""

import sys

from mimicdet.commands.publish import main

if __name__ == "__main__":
    sys.exit(main())

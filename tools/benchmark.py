#!/usr/bin/env python
"""Measure MimicDet beside Detectron2's RetinaNet, FCOS and Faster R-CNN: see --help."""

import sys

from mimicdet.commands.benchmark.cli import main

if __name__ == "__main__":
    sys.exit(main())

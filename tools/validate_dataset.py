#!/usr/bin/env python
"""
Find what is wrong with data sets, and count what is in them; exit code 1: something is wrong.

    python tools/validate_dataset.py coco:annotations/train.json:images voc:VOC2007:test --images

--images reads and decodes every image, as training will.
"""

import sys

from mimicdet.commands.validate_dataset import main

if __name__ == "__main__":
    sys.exit(main())

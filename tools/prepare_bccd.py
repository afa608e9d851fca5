#!/usr/bin/env python
"""
Write the blood cell images of BCCD as COCO JSON. This made data/bccd; without --width the images
stay as they are.

    git clone https://github.com/Shenggan/BCCD_Dataset ../BCCD_Dataset
    git -C ../BCCD_Dataset checkout d272fb14cdff6e473fafeeeba32aba5f560e9e43
    python tools/prepare_bccd.py ../BCCD_Dataset data/bccd --width 480
"""

import sys

from mimicdet.commands.prepare_bccd import main

if __name__ == "__main__":
    sys.exit(main())

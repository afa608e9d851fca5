#!/usr/bin/env python
"""
Write the blood cell images of BCCD in the layout that the *_bccd configs read.

    git clone https://github.com/Shenggan/BCCD_Dataset ../BCCD_Dataset
    git -C ../BCCD_Dataset checkout d272fb14cdff6e473fafeeeba32aba5f560e9e43
    python tools/prepare_bccd.py ../BCCD_Dataset ../shared/data/bccd
"""

import sys

from mimicdet.commands.prepare_bccd import main

if __name__ == "__main__":
    sys.exit(main())

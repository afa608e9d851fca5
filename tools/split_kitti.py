#!/usr/bin/env python
"""
Split KITTI's training images so that no video sequence is on both sides.

    python tools/split_kitti.py devkit_object/mapping ImageSets

The devkit's mapping folder has train_mapping.txt and train_rand.txt. Two lists are written,
train.txt and val.txt, for data sets named kitti:LABEL_FOLDER:IMAGE_FOLDER:ImageSets/train.txt.
"""

import sys

from mimicdet.commands.split_kitti import main

if __name__ == "__main__":
    sys.exit(main())

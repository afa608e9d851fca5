#!/usr/bin/env python
"""
Write a trained student as one verified file, see docs/export.md:

    python tools/export_model.py --config-file configs/COCO-Detection/mimicdet_R_50_FPN_1x.yaml \
        --format onnx --output model.onnx MODEL.WEIGHTS output/model_final.pth
"""

import sys

from mimicdet.commands.export_model import main

if __name__ == "__main__":
    sys.exit(main())

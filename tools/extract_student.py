#!/usr/bin/env python
"""
Write the student of a training checkpoint, without T-head and optimizer:

    python tools/extract_student.py --config-file output/config.yaml \
        --output student.safetensors MODEL.WEIGHTS output/model_final.pth

The result is a MODEL.WEIGHTS for --eval-only, for fine-tuning and for tools/export_model.py.
"""

import sys

from mimicdet.commands.extract_student import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python3
r"""
Detect with a checkpoint, as Detectron2's demo does.

    python demo/demo.py --config-file CONFIG --input images/ --output drawn/ \
        --opts MODEL.WEIGHTS FILE
    python demo/demo.py --config-file CONFIG --video-input clip.mp4 --output drawn/ \
        --opts MODEL.WEIGHTS FILE
    python demo/demo.py --config-file CONFIG --webcam --opts MODEL.WEIGHTS FILE
"""

from mimicdet.commands.demo import main

if __name__ == "__main__":
    raise SystemExit(main())

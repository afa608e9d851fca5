#!/usr/bin/env python3
r"""
Detect with a checkpoint, as Detectron2's demo does.

    python demo/demo.py --config-file CONFIG --input images/ --output drawn/ \
        --opts MODEL.WEIGHTS FILE
    python demo/demo.py --config-file CONFIG --video-input clip.mp4 --output drawn/ \
        --opts MODEL.WEIGHTS FILE
    python demo/demo.py --config-file CONFIG --webcam --opts MODEL.WEIGHTS FILE
"""

from mimicdet_runtime.images import import_cv2

import_cv2()  # first: OpenCV reads the limit on the size of images when it is loaded

from mimicdet.commands.demo import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())

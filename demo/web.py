#!/usr/bin/env python3
"""
A web page that tries a checkpoint and shows what its S-head samples.

    python demo/web.py --config-file CONFIG --weights output/model_final.pth

For an exported model, without PyTorch: mimicdet serve model.onnx
"""

from mimicdet_runtime.images import import_cv2

import_cv2()  # first: OpenCV reads the limit on the size of images when it is loaded

from mimicdet.commands.web import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main())

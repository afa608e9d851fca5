#!/usr/bin/env python3
"""
A web page that tries a checkpoint and shows what its S-head samples.

    python demo/web.py --config-file CONFIG --weights output/model_final.pth

For an exported model, without PyTorch: mimicdet serve model.onnx
"""

from mimicdet.commands.web import main

if __name__ == "__main__":
    raise SystemExit(main())

#!/usr/bin/env python
"""
Bring a torchvision ImageNet backbone into Detectron2's format.

    python tools/convert_backbone.py resnext101_64x4d pretrained/resnext101_64x4d.pkl
    python tools/convert_backbone.py my_resnet50.pth pretrained/my_resnet50.pkl

A config that starts from the result takes torchvision's normalisation: INPUT.FORMAT "RGB",
MODEL.PIXEL_MEAN and PIXEL_STD as printed, and for a ResNet MODEL.RESNETS.STRIDE_IN_1X1 False.
"""

import sys

from mimicdet.commands.convert_backbone import main

if __name__ == "__main__":
    sys.exit(main())

#!/usr/bin/env python
"""
Bring a torchvision ImageNet backbone into Detectron2's format.

    python tools/convert_backbone.py resnext101_64x4d pretrained/resnext101_64x4d.pkl
    python tools/convert_backbone.py my_resnet50.pth pretrained/my_resnet50.pkl

A config that starts from the result takes torchvision's normalisation: INPUT.FORMAT "RGB",
MODEL.PIXEL_MEAN and PIXEL_STD as printed, and for a ResNet MODEL.RESNETS.STRIDE_IN_1X1 False.
"""

import argparse
import sys

from mimicdet.model_zoo.convert import ARCHITECTURES, PIXEL_MEAN, PIXEL_STD, convert_backbone


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help=f"{', '.join(ARCHITECTURES)}, or a .pth file")
    parser.add_argument("output", help="the .pkl file to write")
    parser.add_argument(
        "--weights", default="IMAGENET1K_V1", help="torchvision's name of the weights"
    )
    args = parser.parse_args()
    try:
        count = convert_backbone(args.source, args.output, args.weights)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} arrays written to {args.output}")
    print(
        f"Use it with INPUT.FORMAT RGB, MODEL.PIXEL_MEAN {PIXEL_MEAN}, "
        f"MODEL.PIXEL_STD {PIXEL_STD}, MODEL.RESNETS.STRIDE_IN_1X1 False"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
